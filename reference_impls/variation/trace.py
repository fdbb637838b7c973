"""A profile as a Chrome trace, which Perfetto and `chrome://tracing` open: each thread a track, each stage a bar."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reference_impls.variation.profiler import Span


def trace_events(spans: Iterable[Span]) -> list[dict[str, Any]]:
    """Complete events (`ph` "X") in microseconds since the first begin; what never ended is a begin without an end."""
    ordered = sorted(spans, key=lambda span: span.start)
    origin = ordered[0].start if ordered else 0
    return [_event(span, origin) for span in ordered]


def _event(span: Span, origin: int) -> dict[str, Any]:
    known: Mapping[str, Any] = {
        "frame": span.frame,
        "cpu_us": None if span.passed.cpu is None else span.passed.cpu / 1000,
        "queue_us": None if span.passed.queue is None else span.passed.queue / 1000,
        "failed": span.failed or None,
        **span.counts,
    }
    event = {
        "name": f"frame {span.frame}" if span.name is None else span.name,
        "cat": "frame" if span.name is None else "stage",
        "ph": "B" if span.failed == "never ended" else "X",
        "ts": (span.start - origin) / 1000,
        "pid": span.process,
        "tid": span.thread,
        "args": {name: value for name, value in known.items() if value is not None},
    }
    return event if event["ph"] == "B" else {**event, "dur": span.passed.wall / 1000}


def write_trace(spans: Iterable[Span], file: Path | str) -> None:
    """Write the trace, whole or not at all.

    Raises: OSError that names the file; the spans stay with the profiler, to be written elsewhere.
    """
    target = Path(file)
    text = json.dumps({"traceEvents": trace_events(spans), "displayTimeUnit": "ms"}, allow_nan=False)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        written = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            written.replace(target)
        finally:
            written.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the trace ({error.strerror})", str(target)) from error
