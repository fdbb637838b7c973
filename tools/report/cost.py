"""What a report costs: `python -m tools.report.cost [NAME...]`.

Each model is measured at the default sample in a process of its own, on as many threads as the machine has cores: the
seconds of the whole report, and how far memory rises above that of the loaded model with its data.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from reference_impls.data import images
from reference_impls.models.residual_cnn import Block
from reference_impls.models.smollm2 import load_smollm2
from reference_impls.models.vit import imagenet_normalise, saliency_vit_s14
from reference_impls.report import report
from reference_impls.report.result import Kind
from reference_impls.study import training
from reference_impls.study.machine import machine, versions

from .examples import HOME, mails_to_go_on, salient
from .measured import Cost, Costs

FILE = HOME / "cost.json"
ITEMS = 64
HERE = f"{__package__}.cost"
"""This module, which is `__main__` as a program."""


@dataclass(frozen=True)
class Case:
    """A model and its data."""

    model: Callable[[], nn.Module]
    data: Callable[[], Iterator[Any]]
    kind: Kind = "image"
    answer: Callable[[Tensor], Tensor] | None = None


def resnet_18() -> nn.Module:
    """ResNet-18 (He et al., arXiv 1512.03385) for 1,000 classes, with random weights: for its cost alone."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [64, 64, 128, 256, 512]
    stages = [nn.Sequential(Block(a, b, 1 if a == b == 64 else 2), Block(b, b)) for a, b in itertools.pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    return nn.Sequential(*stem, *stages, *head)


def crops() -> Iterator[Tensor]:
    """64 squares of 224 pixels from photos."""
    _, squares = images.photos(512)
    draws = torch.Generator().manual_seed(1)
    places = torch.randint(0, 512 - 224 + 1, (ITEMS, 2), generator=draws).tolist()
    cut = [squares[i % len(squares)][:, a : a + 224, b : b + 224] for i, (a, b) in enumerate(places)]
    yield from imagenet_normalise(torch.stack(cut)).split(8)


CASES: Mapping[str, Case] = {
    "resnet-18": Case(lambda: training.seeded(0, resnet_18).eval(), crops),
    "saliency-vit-s14": Case(saliency_vit_s14, crops, answer=salient),
    "smollm2-135m": Case(lambda: load_smollm2()[0], mails_to_go_on, "text"),
}


def measured(name: str) -> Cost:
    """One report, in this process."""
    case = CASES[name]
    model, data = case.model(), list(case.data())
    with torch.no_grad():
        model(**data[0]) if isinstance(data[0], dict) else model(data[0])
    before = _memory(reset=True)
    found = report(model, data, kind=case.kind, items=ITEMS, answer=case.answer)
    after = _memory()
    return Cost(
        model=found.model.name,
        parameters=found.model.parameters,
        macs=found.model.macs,
        items=found.data.items,
        seconds=found.seconds,
        extra_mb=None if before is None or after is None else max(after - before, 0) / 2**20,
        findings=len(found.findings),
    )


def _memory(reset: bool = False) -> int | None:
    """Bytes at the peak since the last reset; with `reset`, what is held now, from which the peak then counts."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
            return int(psutil.Process().memory_info().rss)
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


def main() -> int:
    if sys.argv[1:2] == ["--here"]:
        print(measured(sys.argv[2]).model_dump_json())
        return 0
    names = sys.argv[1:] or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        print(f"there is no case {unknown[0]!r}; there are: {', '.join(CASES)}", file=sys.stderr)
        return 2
    costs = dict(Costs.model_validate_json(FILE.read_text(encoding="utf-8")).costs) if FILE.exists() else {}
    for name in names:
        command = [sys.executable, "-m", HERE, "--here", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        costs[name] = Cost.model_validate(json.loads(done.stdout.splitlines()[-1]))
        one = costs[name]
        extra = "unknown" if one.extra_mb is None else f"{one.extra_mb:.0f} MB"
        print(f"{name:20}{one.seconds:8.1f} s  extra memory {extra}  {one.findings} findings", flush=True)
        whole = Costs(machine=machine("cpu", torch.get_num_threads()), versions=versions(), costs=costs)
        FILE.write_text(whole.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
