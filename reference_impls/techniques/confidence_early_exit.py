"""Early exit: stop computing on a sample once the network is sure enough of its answer.

Classifiers ("exits") sit between the stages of a network. A sample leaves at the first exit whose answer a rule trusts:

- confidence: the largest class probability exceeds a threshold;
- entropy: the entropy of the class probabilities is below a threshold, in nats
  (BranchyNet: teerapittayanon-2016-branchynet, arXiv 1709.01686; DeeBERT: xin-2020-deebert, arXiv 2004.12993);
- patience: the last `t` exits gave the same answer as the exit before them
  (PABEE: zhou-2020-bert, arXiv 2006.04152; the counter of agreements must reach the patience t).

Probabilities, entropies and answers are computed in float32, whatever the dtype of the logits.

What makes it pay beyond a batch of one is compaction: samples that left are taken out of the batch, so the next stage
runs on a smaller dense tensor. `EarlyExit` runs a network so. `exit_decisions` takes the same decisions from the logits
of all exits, computed once, which is how thresholds are swept and calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from reference_impls.accounting.preparation import prepares
from reference_impls.contract import (
    Choice,
    Handle,
    Number,
    Redundancy,
    Setting,
    Technique,
    UnsupportedHost,
    check_range,
    check_tensor,
    tensors,
    warn_no_effect,
)
from reference_impls.contract.replacement import refuse_capture
from reference_impls.hosts.staged import Staged, State, batch_size, count_stages, select
from reference_impls.redundancy.sufficiency import sufficiency

Rule = Literal["confidence", "entropy", "patience"]


# --------------------------------------------------------------------------------------------------------------------
# The rules, on logits


def confidence(logits: Tensor) -> Tensor:
    """Largest class probability. logits (..., C) -> (...) float32, in [1 / C, 1]."""
    return logits.float().softmax(-1).amax(-1)


def entropy(logits: Tensor, *, normalised: bool = False) -> Tensor:
    """Entropy of the class probabilities, the score of BranchyNet and DeeBERT. logits (..., C) -> (...) float32.

    In nats, from 0 to log C; as a share of log C if `normalised`.
    """
    logp = logits.float().log_softmax(-1)
    nats = -(logp.exp() * logp).sum(-1)
    return nats / math.log(logits.shape[-1]) if normalised else nats


def never(rule: Rule, exits: int) -> float:
    """The threshold at which the rule sends every sample to the last of `exits` exits."""
    _check_name(rule)
    return {"confidence": 1.0, "entropy": 0.0, "patience": exits}[rule]


def _check_name(rule: Rule) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be 'confidence', 'entropy' or 'patience', got {rule!r}")


def check_rule(rule: Rule, threshold: float) -> None:
    """ValueError or TypeError unless the rule exists and the threshold is one of its own."""
    _check_name(rule)
    high = 1.0 if rule == "confidence" else math.inf
    check_range(f"threshold of the {rule} rule", threshold, 0, high, integer=rule == "patience")


def trusts(rule: Rule, threshold: float, logits: Tensor, agreements: Tensor | None) -> Tensor:
    """Which samples may leave at an exit, (B,) bool, by its logits (B, C).

    agreements: (B,) how many exits directly before gave the same answer in a row; only patience needs it.
    """
    if rule == "confidence":
        return confidence(logits) > threshold
    if rule == "entropy":
        return entropy(logits) < threshold
    assert agreements is not None
    return agreements >= threshold


def check_logits(name: str, logits: Any, shape: str) -> Tensor:
    """Return logits of this shape in float32, in which everything is decided; (..., C) is its last axis.

    Raises: TypeError or ValueError for another shape or dtype, for fewer than 2 classes, for an empty batch, and for
    values that are not finite.
    """
    logits = check_tensor(name, logits, shape).float()
    if logits.shape[-1] < 2:
        raise ValueError(
            f"{name} must tell at least 2 classes apart, got {logits.shape[-1]}: by one class, every rule is sure of "
            "every sample (for a single logit z of two classes, give the logits 0 and z)"
        )
    if 0 in logits.shape:
        raise ValueError(f"{name} must hold at least one sample and one exit, got shape {tuple(logits.shape)}")
    return logits


def count_agreements(answers: Tensor, previous: Tensor | None, agreements: Tensor | None) -> Tensor:
    """PABEE's counter: one more where the answer is the previous exit's, else 0. All (B,)."""
    if previous is None or agreements is None:
        return torch.zeros_like(answers)
    return torch.where(answers == previous, agreements + 1, torch.zeros_like(agreements))


def exit_decisions(logits: Tensor, rule: Rule, threshold: float) -> Tensor:
    """At which exit each sample leaves, (B,) int64 in [0, E - 1], from the logits of all exits (E, B, C).

    Raises: ValueError for a bad rule, threshold or shape, for fewer than 2 classes or no sample, or for logits that are
    not finite.
    """
    check_rule(rule, threshold)
    logits = check_logits("logits", logits, "E B C")
    left = torch.full(logits.shape[1:2], len(logits) - 1, device=logits.device)
    previous = agreements = None
    inside = torch.ones_like(left, dtype=torch.bool)
    for e, at_exit in enumerate(logits[:-1]):
        answers = at_exit.argmax(-1)
        agreements = count_agreements(answers, previous, agreements)
        leaves = inside & trusts(rule, threshold, at_exit, agreements)
        left = torch.where(leaves, e, left)
        inside, previous = inside & ~leaves, answers
    return left


def at_exits(logits: Tensor, left: Tensor) -> Tensor:
    """The logits with which samples leave: logits (E, B, C) and exits (B,) -> (B, C)."""
    return logits[left, torch.arange(len(left), device=logits.device)]


# --------------------------------------------------------------------------------------------------------------------
# The run, with compaction of the batch


class EarlyExit(nn.Module):
    """Runs a staged network and lets samples leave at its exits. Called like the network, it gives logits (B, C).

    After each exit the samples that left are taken out of the batch. The logits come back in the order of the inputs.
    Each decision waits for the device. `left` holds the exit of every sample of the last run that ended; runs at the
    same time in several threads do not disturb one another.

    Raises: ValueError for a bad rule or threshold, for an empty batch, and for logits that are not finite, have fewer
        than 2 classes or another number than an earlier exit's, or no row for each sample; UnsupportedHost for a
        network that is not in eval mode; NotImplementedError while a graph is captured (`torch.export`,
        `torch.jit.trace`), because the shapes depend on the data.
    """

    def __init__(self, network: Staged, rule: Rule, threshold: float) -> None:
        super().__init__()
        check_rule(rule, threshold)
        self.network, self.rule, self.threshold = network, rule, threshold
        self.left: Tensor | None = None
        self.training = network.training
        self._parts = list(network.modules())  # to walk through them in each run would take as long as a small stage

    @torch.no_grad()
    def forward(self, inputs: State) -> Tensor:
        refuse_capture("how many samples a stage computes depends on the data", "around captured stages and heads")
        if any(part.training for part in self._parts):
            _check_mode(self.network)
        state, n, last = inputs, batch_size(inputs), len(self.network.stages) - 1
        waiting = torch.arange(n, device=next(tensors(inputs)).device)  # (b,) where the samples still inside belong
        answered: list[tuple[Tensor, Tensor]] = []  # at each exit taken: places and logits
        exits: list[int] = []
        previous = agreements = None
        classes = "C"
        for e, (stage, head) in enumerate(zip(self.network.stages, self.network.heads, strict=True)):
            state = stage(state)
            logits = head(state)  # (b, C)
            decided = _logits_of_exit(e, logits, len(waiting), classes)
            classes = str(decided.shape[1])
            if self.rule == "patience":
                answers = decided.argmax(-1)
                agreements, previous = count_agreements(answers, previous, agreements), answers
            leaves = trusts(self.rule, self.threshold, decided, agreements)
            number = len(waiting) if e == last else int(leaves.sum())
            exits += [e] * number
            if number == 0:
                continue
            if number == len(waiting):
                answered.append((waiting, logits))
                break
            if batch_size(state) != len(waiting):
                raise ValueError(f"stage {e + 1} left a state of {batch_size(state)} samples instead of {len(waiting)}")
            gone, stay = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
            answered.append((waiting[gone], logits[gone]))
            state, waiting = select(state, stay), waiting[stay]
            if previous is not None and agreements is not None:
                previous, agreements = previous[stay], agreements[stay]
        left = torch.tensor(exits, device=waiting.device)
        if len(answered) == 1:  # all left together, in order
            self.left = left
            return answered[0][1]
        places = torch.cat([place for place, _ in answered]).argsort()  # (B,)
        self.left = left[places]
        return torch.cat([logits for _, logits in answered])[places]


def _logits_of_exit(e: int, logits: Tensor, samples: int, classes: str) -> Tensor:
    """The logits of an exit in float32. Raises as `check_logits`, and for another number of samples or classes."""
    name = f"the logits of exit {e + 1}"
    fits = isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] > 1 and logits.is_floating_point()
    if fits and classes in ("C", str(logits.shape[1])) and len(logits) == samples:
        decided = logits.float()
        if math.isfinite(decided.sum().item()):  # the full check costs several kernels more
            return decided
    decided = check_logits(name, logits, "B C")
    return check_tensor(name, decided, f"{samples} {classes}")


def _check_mode(network: Staged) -> None:
    """UnsupportedHost unless every module of the network is in eval mode."""
    for name, module in network.named_modules():
        if module.training:
            raise UnsupportedHost(
                ConfidenceEarlyExit.id,
                network,
                f"every module in eval mode, but {name or 'the network'} is in training mode, where dropout is random "
                "and batch norm depends on which samples have left. Call network.eval() first",
            )


# --------------------------------------------------------------------------------------------------------------------
# Calibration


@dataclass(frozen=True)
class Calibration:
    """A threshold chosen on held-out data."""

    rule: Rule
    threshold: float
    loss: float
    """Share of held-out samples that the last exit gets right, minus the share that the rule gets right."""
    harm: float
    """Share of held-out samples that the last exit gets right and the rule does not; at least `loss`."""
    bound: float
    """Upper confidence bound of the harm on new data from the same source (1 if none was asked for)."""
    depth: float
    """Mean exit, from 0 (all at the first) to E - 1 (all at the last)."""


def upper_bound(harmed: int, n: int, delta: float) -> float:
    """Clopper-Pearson: the rate p at which `harmed` or fewer of n would be seen with probability `delta`."""
    if harmed >= n:
        return 1.0
    k = torch.arange(harmed + 1, dtype=torch.float64)
    choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    low, high = harmed / n, 1.0
    for _ in range(50):
        p = (low + high) / 2
        seen = torch.logsumexp(choose + k * math.log(p) + (n - k) * math.log1p(-p), 0).exp().item()
        low, high = (p, high) if seen > delta else (low, p)
    return high


def grid(rule: Rule, exits: int, classes: int) -> list[float]:
    """Thresholds to try, from the most careful to the boldest; fixed before any data are seen."""
    if rule == "patience":
        return list(range(exits - 2, -1, -1))
    careful = torch.logspace(-5, 0, 101, dtype=torch.float64)  # distance from certainty
    if rule == "confidence":
        return (1 - careful).tolist()
    return (careful * math.log(classes) * 1.0001).tolist()


def check_targets(targets: Any, samples: int, classes: int) -> Tensor:
    """Return right classes (B,) if there is one for each sample, in [0, classes).

    Raises: TypeError for another dtype than integers; ValueError for another shape or range.
    """
    targets = check_tensor("targets", targets, "B", floating=False)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must hold integers, the right class of each sample, got {targets.dtype}")
    if len(targets) != samples:
        raise ValueError(f"targets must hold the right class of each of {samples} samples, got {len(targets)}")
    outside = (targets < 0) | (targets >= classes)
    if bool(outside.any()):
        raise ValueError(
            f"targets must lie in [0, {classes}), got {int(targets[outside][0])} for sample {int(outside.nonzero()[0])}"
            f": leave out the {int(outside.sum())} samples that have no right class"
        )
    return targets


@prepares("calibration")
def calibrate(
    logits: Tensor, targets: Tensor | None, rule: Rule, budget: float, *, delta: float | None = None
) -> Calibration:
    """The boldest threshold of `grid` whose loss of accuracy on held-out data stays within `budget`.

    Thresholds are tried from the most careful on, up to the first that breaks the budget. With `delta`, what must stay
    within the budget is the Clopper-Pearson bound of the harm at confidence 1 - delta. Because the order is fixed
    beforehand, that bound needs no correction for the number of thresholds tried (fixed-sequence testing), provided
    that new data come from the same source. Without `delta` nothing is promised for data other than the held-out ones.

    Args:
        logits: (E, B, C) of all exits on held-out data that trained nothing.
        targets: (B,) right classes, integers in [0, C); None to hold to the last exit's answers instead (then the loss
            counts changes).
        budget: largest loss, as a share of the samples.
    Raises: TypeError or ValueError for bad logits (as `exit_decisions`), targets or budget; ValueError if B is so small
        that no bound can meet the budget.
    """
    check_rule(rule, never(rule, 1))
    logits = check_logits("logits", logits, "E B C")
    check_range("budget", budget, 0, 1)
    exits, n, classes = logits.shape
    if delta is not None:
        check_range("delta", delta, 0, 1, low_open=True)
        if upper_bound(0, n, delta) > budget:
            needed = math.ceil(math.log(delta) / math.log1p(-budget)) if budget > 0 else math.inf
            raise ValueError(
                f"{n} samples cannot show a loss of at most {budget:g} at confidence {1 - delta:g}, even if none is "
                f"harmed: {needed} samples are needed"
            )
    targets = logits[-1].argmax(-1) if targets is None else check_targets(targets, n, classes).to(logits.device)
    right = logits.argmax(-1) == targets  # (E, B)
    best = Calibration(rule, never(rule, exits), 0.0, 0.0, 0.0, exits - 1.0)  # never leaving loses nothing
    for threshold in grid(rule, exits, classes):
        left = exit_decisions(logits, rule, threshold)
        kept = right[left, torch.arange(n, device=left.device)]
        loss = (right[-1].sum() - kept.sum()).item() / n
        harmed = int((right[-1] & ~kept).sum())
        bound = 1.0 if delta is None else upper_bound(harmed, n, delta)
        if (loss if delta is None else bound) > budget:
            break
        best = Calibration(rule, threshold, loss, harmed / n, bound, left.double().mean().item())
    return best


# --------------------------------------------------------------------------------------------------------------------
# The contract


class ConfidenceEarlyExit(Technique):
    """Early exit on the contract; targets are `hosts.staged.Staged` classifiers in eval mode."""

    id = "confidence-early-exit"
    execution = "real"
    exploits: ClassVar = {"exits": {}}
    knobs: ClassVar = {
        "rule": Choice(
            "confidence",
            options=("confidence", "entropy", "patience"),
            about="what an exit is trusted by: its largest class probability, its entropy, or agreement of exits",
        ),
        "threshold": Number(
            0.9,
            low=0,
            about="leave above this probability, below this entropy in nats, or after so many exits that agree",
        ),
    }

    def settings(self) -> list[Setting]:
        swept = [Setting(f"confidence above {t}", {"threshold": t}, adaptive=True) for t in (0.95, 0.7)]
        never_leave = Setting("never leave", {"threshold": 1.0}, off=True)
        return [never_leave, *swept, Setting("leave at the first exit", {"threshold": 0.0})]

    @torch.no_grad()
    def measure(self, target: Staged, inputs: State) -> Redundancy:
        """Share of the computation after the answer has settled (`redundancy.sufficiency`), weighted by MACs.

        Raises: as `apply` and as the run: UnsupportedHost, and ValueError for inputs or logits that cannot be decided.
        """
        check_target(target)
        n, state, answers, classes = batch_size(inputs), inputs, [], "C"
        for e, (stage, head) in enumerate(zip(target.stages, target.heads, strict=True)):
            state = stage(state)
            logits = _logits_of_exit(e, head(state), n, classes)
            classes = str(logits.shape[1])
            answers.append(logits.argmax(-1))
        costs = target.macs or count_stages(target, inputs)
        return sufficiency(torch.stack(answers), costs.stages)

    def attach(self, target: Staged, rule: Rule, threshold: float) -> Handle:
        """Let samples leave. The target itself is not changed: the handle's target is an `EarlyExit` that runs it.

        The trace holds `left`, the exit of every sample of the last run, (B,) int64.

        Raises: UnsupportedHost for anything but a `Staged` classifier in eval mode, and for heads whose last linear
        layer gives one class, or other classes than another head's; ValueError or TypeError for a threshold that is
        none of the rule's.
        """
        check_target(target)
        runner = EarlyExit(target, rule, threshold)
        last = len(target.stages) - 1
        lets = {"confidence": threshold < 1, "entropy": threshold > 0, "patience": threshold < last}
        if not lets[rule]:
            warn_no_effect(self.id, f"by the {rule} rule nothing leaves early at a threshold of {threshold:g}")
        return Handle(runner, trace=lambda: {"left": runner.left})

    def saving(self, target: Staged, inputs: State, trace: Mapping[str, Any]) -> int:
        """All stages and the last head for every sample, minus what each sample pays up to its exit.

        Raises: ValueError if the target does not say its MACs; set them with `hosts.staged.count_stages`.
        """
        return len(trace["left"]) * target.costs().plain - target.costs().spent(trace["left"])


def check_target(target: Any) -> None:
    """UnsupportedHost for what no run can decide on, as far as the target tells without being run."""
    if not isinstance(target, Staged):
        needs = "a hosts.staged.Staged classifier: stages with a head after each"
        raise UnsupportedHost(ConfidenceEarlyExit.id, target, needs)
    _check_mode(target)
    classes = {e + 1: layer.out_features for e, head in enumerate(target.heads) if (layer := _last_linear(head))}
    for e, number in classes.items():
        if number < 2:
            needs = f"heads of at least 2 classes, of which exit {e} has {number}: by one, every rule is always sure"
            raise UnsupportedHost(ConfidenceEarlyExit.id, target, needs)
    if len(set(classes.values())) > 1:
        needs = f"heads of the same number of classes, got (exit: classes) {classes}"
        raise UnsupportedHost(ConfidenceEarlyExit.id, target, needs)


def _last_linear(head: nn.Module) -> nn.Linear | None:
    """The layer that gives a head's logits, where that is plain to see."""
    modules = [m for m in head.modules() if not list(m.children())]
    return modules[-1] if isinstance(modules[-1], nn.Linear) else None
