"""Experiments of activation quantisation: how few bits networks bear that were trained in floating point.

- `digits-bits`: a CNN on digits, in the benchmark of low precision: accuracy against bits, with steps found at run time
  and with static ranges; networks trained at so few bits as the control.
- `minilm-mails`: a sentence encoder on e-mails with integer products on the CPU: time, and how far sentences move, for
  each remedy for outliers. `minilm-openings`: the same on 16 tokens at a time, where most of the bytes are weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import low_precision as benchmark
from reference_impls.benchmarks.low_precision import SHORT, Fold, NetPlan, attached, trained_with
from reference_impls.contract import Handle
from reference_impls.data.text import legible_mails
from reference_impls.hosts.bert import mean_pool
from reference_impls.layers.quantised import Span
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.models.minilm import MiniLM, load_minilm, pad, tokenise
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Scenario, Study, forward, measured, over_items, table
from reference_impls.techniques.activation_quantisation import ActivationQuantisation, channel_peaks
from reference_impls.techniques.pim_quantization import spans

QUANTISED = ActivationQuantisation()
TRAINED = "trained at these bits"
TRAINED_ABOUT = "Static ranges, of networks whose training went through the rounding (gradients straight through)."
FOLLOWED = (2,)
"""Bits at which networks are also trained."""


def null() -> float:
    """The measure on rows in which every code is as frequent."""
    every = (torch.arange(255.0) - 127).expand(4, 255) / 127
    return QUANTISED.measure(nn.Linear(255, 2), every).value


def static(fold: Fold, model: nn.Module) -> dict[str, Span]:
    """Ranges of the layers' inputs on 256 training images."""
    return spans(model, fold.parts.train.x[:256], digital=())


def few_bits(study: Study[NetPlan]) -> Record:
    """Weights of 8 bits and activations of fewer, in all layers, the first and the last included."""
    plan, found = study.plan, benchmark.float_folds(study)
    bits = (2, 3, 4, 6, 8) if plan.epochs > 3 else (2, 8)

    def quantised(b: int, ranges: Mapping[str, Span] | None, model: nn.Module) -> Handle:
        return QUANTISED.apply(model, activation_bits=b, spans=ranges)

    for fold in found:
        benchmark.add(study, fold, BASELINE, {}, attached(fold.network))
        for b in bits:
            for ranges in (None, static(fold, fold.network)):
                knobs = {"activation_bits": b, "ranges": "at run time" if ranges is None else "static"}
                benchmark.add(study, fold, TECHNIQUE, knobs, attached(fold.network, partial(quantised, b, ranges)))
            if b in FOLLOWED:
                study.progress(f"{b} bits", fold.seed, len(found))
                how = {"precision": "activations", "bits": b}
                part, own = fold.parts.train, partial(quantised, b, static(fold, fold.network))
                network = trained_with(plan, part, fold.seed, how, own)
                knobs = {"activation_bits": b, "ranges": "static"}
                benchmark.add(study, fold, TRAINED, knobs, attached(network, own))
    study.prepare("calibration", "one run on 256 training images, to find static ranges", _calibration(found[0]))
    return benchmark.report(
        study,
        found,
        {TRAINED: TRAINED_ABOUT},
        measured(
            [QUANTISED.measure(fold.network, fold.parts.test.x[:128]) for fold in found], {"all codes as often": null()}
        ),
        digital="no layer in floating point",
        shared="training the network in floating point",
        knobs=("activation_bits", "ranges"),
        notes=(
            "Weights have 8 bits, with a step for each output.",
            "Convolutions multiply integers that are held in floating point: only linear layers have kernels of int8.",
            "Networks of the control are trained at their bits, in the ranges of the network in floating point.",
        ),
    )


def _calibration(fold: Fold) -> int:
    return 256 * benchmark.macs_of(attached(fold.network), fold.parts.train.x)


# --------------------------------------------------------------------------------------------------------------------
# A sentence encoder


@dataclass(frozen=True, kw_only=True)
class MailPlan(Plan):
    mails: int = 64
    timed: int = 8
    tokens: int = 128
    bits: tuple[int, ...] = (8, 6, 4)
    folders: Mapping[str, int] | None = None
    """As in `legible_mails`."""
    needs: tuple[str, ...] = ("minilm", "spam-assassin")


ONE = MailPlan(timed=1, tokens=16, bits=(8, 4))
"""A short text at a time."""


class Batch(NamedTuple):
    ids: Tensor
    real: Tensor | None


@torch.no_grad()
def sentences(model: MiniLM, batches: Sequence[Batch]) -> Tensor:
    """(N, D): the mean token of each text, of length 1."""
    return torch.cat([F.normalize(mean_pool(model(*batch), batch.real), dim=1) for batch in batches])


def mails(study: Study[MailPlan]) -> Record:
    """MiniLM in 8 bits of weights, by bits of activations and what is done about outliers."""
    plan = study.plan
    model, tokenizer = load_minilm()
    need = plan.mails + 16
    texts = [mail.text for mail in legible_mails(plan.folders) if len(mail.text) > 8 * plan.tokens]
    spread = texts[:: max(1, len(texts) // (2 * need))]
    ids = [one for one in tokenise(tokenizer, spread, plan.tokens) if len(one) == plan.tokens][:need]
    batches = [Batch(*pad(ids[i : i + 8])) for i in range(0, plan.mails, 8)]
    timed = torch.tensor(ids[: plan.timed])
    seen = torch.tensor(ids[plan.mails :])  # mails that are in no batch; all have as many tokens
    exact, peaks, apart = sentences(model, batches), channel_peaks(model, seen), list[tuple[Any, ...]]()
    study.add(BASELINE, call=forward(model, timed), units=plan.timed, score=1.0)

    def add(b: int, label: str, **how: Any) -> None:
        knobs: dict[str, Any] = {"activation_bits": b, "outliers": label}
        ours = copy_sharing_weights(model)
        handle = QUANTISED.apply(ours, activation_bits=b, **how)
        cosines = (sentences(ours, batches) * exact).sum(1).tolist()
        study.add(TECHNIQUE, knobs, forward(ours, timed), units=plan.timed, quality=over_items(cosines))
        layers = handle.trace["layers"].values()
        apart.append((b, label, sum(one.outliers / one.shape[-1] for one in layers) / len(layers)))

    for b in plan.bits:
        add(b, "one step", step="tensor")
        for remedy in ("none", "decompose", "smooth", "rotate"):
            add(b, remedy, outliers=remedy, peaks=peaks)
    study.measure()
    with torch.no_grad():
        macs = benchmark.macs_of(attached(model), seen) * len(seen)
    study.prepare("calibration", "one run on 16 other mails, to find the largest values of channels", macs)
    return study.record(
        data=f"{plan.mails} mails of SpamAssassin, their first {plan.tokens} tokens; {plan.timed} timed together",
        model="all-MiniLM-L6-v2, 22.6 M parameters; weights of 8 bits in all linear layers",
        unit="one mail",
        knobs=("activation_bits", "outliers"),
        metric="cosine of a sentence with that of floating point",
        redundancy=measured([QUANTISED.measure(model, batches[0].ids)], {"all codes as often": null()}),
        tables={
            "apart": table(
                "Share of the input channels that stay in floating point, mean over layers.",
                ("activation_bits", "outliers", "share"),
                apart,
            )
        },
        notes=(
            "A step for each token, but where it says one step.",
            "Channels stay apart from a magnitude of 6 on, and smoothing shares ranges evenly: the papers' defaults.",
            "Rotations are full matrices at run time; Hadamard's, or one folded into the layer before, costs less.",
        ),
    )


SMALL = MailPlan(repetitions=2, mails=2, timed=1, tokens=16, bits=(8,), folders={"easy-ham-1": 60})
SCENARIOS = (
    Scenario("minilm-openings", "MiniLM on integers, openings of e-mails", mails, ONE, SMALL),
    Scenario("minilm-mails", "MiniLM on integers, e-mails", mails, MailPlan(), SMALL),
    benchmark.task("digits-bits", "Few bits of activations, digits", few_bits, *SHORT),
)
