"""Why the time of an inference varies: a profiler of stages, spread with its evidence, and where the spread comes from.

    from reference_impls.variation import Profiler, report

    profiler = Profiler(clocks=ALL)
    for image in stream:
        with profiler.frame():
            with profiler.stage("decode"):
                ...
    print(report(profiler.spans).to_text())

`redundancy profile SCRIPT.py` does the same for a script that marks its stages with `frame` and `stage` of this module,
which cost next to nothing when nobody profiles.

Source: liu-2022-understanding names the perspectives; the definitions are ours.
"""

from reference_impls.variation.attribution import constant, decomposition, shares
from reference_impls.variation.clocks import ALL, WALL, Clocks, Reading, ScriptedClock
from reference_impls.variation.fusion import Arrival, Fused, synchronise
from reference_impls.variation.prediction import Fit, accuracy, fit
from reference_impls.variation.profiler import Profiler, Span, frame, load, stage
from reference_impls.variation.report import Report, report
from reference_impls.variation.spread import Spread, TooFewSamples, percentile, queries, spread, violations
from reference_impls.variation.trace import write_trace

__all__ = [
    "ALL",
    "WALL",
    "Arrival",
    "Clocks",
    "Fit",
    "Fused",
    "Profiler",
    "Reading",
    "Report",
    "ScriptedClock",
    "Span",
    "Spread",
    "TooFewSamples",
    "accuracy",
    "constant",
    "decomposition",
    "fit",
    "frame",
    "load",
    "percentile",
    "queries",
    "report",
    "shares",
    "spread",
    "stage",
    "synchronise",
    "violations",
    "write_trace",
]
