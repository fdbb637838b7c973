"""Early exit: the rules, compaction of the batch, the closed form of its cost, calibration, and BERT in stages."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.contract import Case, Cases, Expectation, Invalid, NoEffectWarning, UnsupportedHost, generator
from reference_impls.hosts.bert import Ramps, ramp_features, staged_bert
from reference_impls.hosts.staged import (
    AllExits,
    Shared,
    Staged,
    StageMacs,
    batch_size,
    count_stages,
    joint_loss,
    select,
)
from reference_impls.models.minilm import MiniLM
from reference_impls.models.residual_cnn import residual_cnn
from reference_impls.redundancy.sufficiency import settled, sufficiency
from reference_impls.study import fork_seed, seeded
from reference_impls.techniques import confidence_early_exit as technique
from reference_impls.techniques.confidence_early_exit import EarlyExit, at_exits, calibrate, exit_decisions

EXITS = 4
RULES = ("confidence", "entropy", "patience")
EARLY_EXIT = technique.ConfidenceEarlyExit()

# --- Cases with exactly known exits


def exactly(weight: Tensor) -> nn.Linear:
    """A dense layer with this weight (C_out, C_in) and no bias."""
    layer = nn.Linear(*weight.T.shape, bias=False)
    layer.weight.data = weight.clone()
    return layer


def ring(exits: int, classes: int) -> Staged:
    """A network whose exits see exactly what the inputs (B, E * C) hold: the logits of exit e are block e.

    Each stage turns the ring on, so a stage that is left out or run twice shows as wrong logits.
    """
    n = exits * classes
    turn, first = torch.eye(n).roll(classes, dims=1), torch.eye(n)[:classes]
    stages = [nn.Identity(), *(exactly(turn) for _ in range(exits - 1))]
    macs = StageMacs((0, *[n * n] * (exits - 1)), (n * classes,) * exits)
    return Staged(stages, [exactly(first) for _ in range(exits)], macs)


def ring_inputs(logits: Tensor) -> Tensor:
    """Inputs with which `ring` gives these logits at its exits: (E, B, C) -> (B, E * C)."""
    return logits.transpose(0, 1).flatten(1).contiguous()


def does(function: Callable) -> nn.Module:
    """A module that does what a function does."""
    module = nn.Identity()
    module.forward = function
    return module


def decided_cnn(seed: int) -> Staged:
    """An untrained CNN whose exits are sure of some inputs and not of others."""
    network = seeded(seed, lambda: residual_cnn(8, width=4))
    for head in network.heads:
        head[-1].weight.data *= 30
    return network.eval()


class EarlyExitCases(Cases):
    """`redundant`: every exit is sure of the same class. `null`: every exit before the last is unsure, and wrong."""

    classes = 5
    batch = 32

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        draws = generator(seed)
        if kind == "typical":
            target, inputs = decided_cnn(seed), torch.randn(self.batch, 1, 8, 8, generator=draws)
        else:
            final = torch.randint(self.classes, (self.batch,), generator=draws)
            shift = torch.arange(EXITS - 1, -1, -1).unsqueeze(1) if kind == "null" else torch.zeros(EXITS, 1).long()
            answers = (final + shift) % self.classes  # (E, B): in `null`, each exit gives an answer of its own
            sure = torch.full((EXITS, 1, 1), 8.0)
            if kind == "null":
                sure[:-1] = 0.1
            target, inputs = ring(EXITS, self.classes), ring_inputs(F.one_hot(answers, self.classes) * sure)
        return Case(target.eval().to(device), inputs.to(device), lambda network, x: network(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        for rule, threshold in (("confidence", 0.8), ("entropy", 0.5), ("patience", 1)):
            batched, alone = EarlyExit(case.target, rule, threshold), EarlyExit(case.target, rule, threshold)
            logits = batched(case.inputs)
            pairs = [(alone(x.unsqueeze(0)), alone.left) for x in case.inputs]
            yield Expectation(f"{rule}: exits one by one", torch.cat([left for _, left in pairs]), batched.left)
            yield Expectation(f"{rule}: logits one by one", torch.cat([one for one, _ in pairs]), logits)
            offline = exit_decisions(case.target.exits(case.inputs).detach(), rule, threshold)
            yield Expectation(f"{rule}: exits from all logits", offline, batched.left)
            yield Expectation(f"{rule}: several exits", torch.tensor(True), torch.tensor(len(offline.unique()) > 1))
        # By hand: probabilities of two classes, (E, B, C), such that every rule takes another exit.
        given = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [0.2, 0.8]], device=device).log().unsqueeze(1)
        for rule, t, e in (("confidence", 0.65, 1), ("entropy", 0.4, 2), ("patience", 1, 1), ("patience", 3, 3)):
            by_hand = torch.tensor([e], device=device)
            yield Expectation(f"{rule} {t} by hand", by_hand, exit_decisions(given, rule, t))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        logits = 3 * torch.randn(EXITS, 32, self.classes, generator=generator(seed))
        logits[..., 0] = -20 - torch.arange(32.0)  # names the sample, whichever exit answers
        runner = EarlyExit(ring(EXITS, self.classes).eval().to(device), "confidence", 0.7)
        out = runner(ring_inputs(logits).to(device))
        yield Expectation("each sample answered once, in its place", -20 - torch.arange(32.0), out[:, 0].cpu())
        yield Expectation("samples over exits", torch.tensor(32), runner.left.bincount(minlength=EXITS).sum().cpu())
        yield Expectation("logits are those of the exit taken", at_exits(logits, runner.left.cpu()), out.cpu())

    def invalid(self, device: str) -> Iterable[Invalid]:
        network = self.build("null", 0, device).target
        x = torch.zeros(2, EXITS * self.classes, device=device)
        bad = x.clone()
        bad[0, 0] = float("nan")
        beyond = partial(EARLY_EXIT.apply, network, threshold=1.5)
        yield Invalid("above 1", beyond, "threshold of the confidence rule must")
        yield Invalid("half a step of patience", partial(beyond, rule="patience"), "must be an integer")
        yield Invalid("NaN", lambda: EarlyExit(network, "confidence", 0.5)(bad), "exit 1 holds values that are not fin")
        yield Invalid("NaN measured", lambda: EARLY_EXIT.measure(network, bad), "exit 1 holds values that are not fin")
        yield Invalid("an empty batch", lambda: EarlyExit(network, "confidence", 0.5)(x[:0]), "the batch is empty")
        yield Invalid("nothing measured", lambda: EARLY_EXIT.measure(network, x[:0]), "the batch is empty")
        yield Invalid("nothing counted", lambda: count_stages(network, x[:0]), "the batch is empty")
        yield Invalid("no batch", lambda: EarlyExit(network, "confidence", 0.5)(()), "first axis")
        yield Invalid("logits without exits", lambda: exit_decisions(x, "entropy", 0.5), "must have shape (E, B, C)")
        training = self.build("typical", 0, device).target.train()
        images = self.build("typical", 0, device).inputs
        yield Invalid("batch norm in training mode", lambda: EARLY_EXIT.apply(training, threshold=0.5), "eval")
        yield Invalid("a training run", lambda: EarlyExit(training, "entropy", 1)(images), "Call network.eval() first")
        training.macs = None
        yield Invalid("unknown MACs", lambda: EARLY_EXIT.saving(training, images, {"left": images}), "count_stages")
        yield Invalid("one head for two stages", lambda: Staged([nn.Identity()] * 2, [nn.Identity()]), "a head is due")
        yield Invalid("no encoder", lambda: staged_bert(nn.Linear(2, 2), classes=2), "an encoder with a list of layers")


CASES = EarlyExitCases()


@pytest.fixture
def logits() -> Tensor:
    """(E, B, C) logits that grow surer with depth."""
    return torch.randn(EXITS, 200, 5, generator=generator(3)) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]


# --- The rules


def test_scores_are_those_of_torch_distributions(logits: Tensor) -> None:
    categorical = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(technique.entropy(logits), categorical.entropy())
    torch.testing.assert_close(technique.entropy(logits, normalised=True), categorical.entropy() / math.log(5))
    torch.testing.assert_close(technique.confidence(logits), categorical.probs.max(-1).values)
    certain = torch.tensor([[1e4, 0.0, 0.0]])
    assert (technique.confidence(certain).item(), technique.entropy(certain).item()) == (1, 0)


@pytest.mark.parametrize("rule", RULES)
def test_exits_are_monotone_in_the_threshold_from_the_last_to_the_first(logits: Tensor, rule: str) -> None:
    careful_to_bold = [exit_decisions(logits, rule, t) for t in technique.grid(rule, EXITS, 5)]
    assert all(bool((a >= b).all()) for a, b in pairwise(careful_to_bold))
    assert careful_to_bold[0].sum() > careful_to_bold[-1].sum() == 0
    always = {"confidence": 0.0, "entropy": math.inf, "patience": 0}[rule]
    assert exit_decisions(logits, rule, always).tolist() == [0] * 200
    assert exit_decisions(logits, rule, technique.never(rule, EXITS)).tolist() == [EXITS - 1] * 200
    if rule != "patience":  # certain logits, of probability 1 and entropy 0 in float32, do not leave early either
        assert exit_decisions(1e5 * logits, rule, technique.never(rule, EXITS)).tolist() == [EXITS - 1] * 200


@pytest.mark.parametrize(("rule", "careful", "bold"), [("entropy", 0.0, 0.01), ("patience", EXITS - 1, EXITS - 2)])
def test_the_careful_end_of_each_rule_warns(rule: str, careful: float, bold: float) -> None:
    with pytest.warns(NoEffectWarning, match=f"by the {rule} rule nothing leaves early"):
        EARLY_EXIT.apply(decided_cnn(1), rule=rule, threshold=careful)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EARLY_EXIT.apply(decided_cnn(1), rule=rule, threshold=bold)


def test_patience_by_brute_force(logits: Tensor) -> None:
    for patience in range(EXITS + 1):
        expected = [
            next((e for e in range(patience, EXITS - 1) if len(set(given[e - patience : e + 1])) == 1), EXITS - 1)
            for given in logits.argmax(-1).T.tolist()
        ]
        assert exit_decisions(logits, "patience", patience).tolist() == expected


# --- Compaction


def test_stages_see_only_the_samples_that_stayed(logits: Tensor) -> None:
    target = ring(EXITS, 5).eval()
    seen: list[int] = []
    for stage in target.stages:
        stage.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    runner = EarlyExit(target, "confidence", 0.8)
    runner(ring_inputs(logits))
    assert seen == [int((runner.left >= e).sum()) for e in range(EXITS)]
    assert 200 == seen[0] > seen[1] > seen[2] > seen[3] > 0


def test_select_keeps_the_structure_of_a_state() -> None:
    x = torch.arange(6).view(3, 2)
    state = {"x": x, "more": (x + 10, [x + 20]), "name": "kept", "nothing": None}
    picked = select(state, torch.tensor([2, 0]))
    assert picked["x"].tolist() == [[4, 5], [0, 1]]
    assert isinstance(picked["more"], tuple)
    assert (picked["more"][1][0].tolist(), picked["name"], picked["nothing"]) == ([[24, 25], [20, 21]], "kept", None)
    assert batch_size(state) == 3
    with pytest.raises(ValueError, match="first axis"):
        batch_size({"x": x, "table": torch.zeros(5)})


@pytest.mark.parametrize(
    ("stage", "read", "says"),
    [
        (lambda x: {"x": x, "table": torch.zeros(7)}, lambda state: state["x"], "first axis of every tensor"),
        (lambda x: x.expand(5, *x.shape), lambda state: state[0], "stage 1 left a state of 5 samples instead of 2"),
    ],
)
def test_a_state_whose_first_axis_is_not_the_batch_is_refused(stage: Callable, read: Callable, says: str) -> None:
    target = Staged([does(stage), nn.Identity()], [does(read), does(read)]).eval()
    with pytest.raises(ValueError, match=says):
        EarlyExit(target, "confidence", 0.8)(torch.tensor([[9.0, 0.0], [0.0, 0.1]]))


class State(NamedTuple):
    x: Tensor
    scale: Shared


@dataclass
class Opaque:
    x: Tensor


def test_what_is_shared_stays_and_what_is_unknown_is_refused() -> None:
    x = torch.arange(6).view(3, 2)
    picked = select(State(x, Shared(torch.zeros(5))), torch.tensor([1]))
    assert (picked.x.tolist(), picked.scale.value.shape) == ([[2, 3]], (5,))
    with pytest.raises(
        TypeError, match=r"got a Opaque: put what is the same for all samples into hosts\.staged\.Shared"
    ):
        select((x, Opaque(x)), torch.tensor([1]))


# --- Degenerate classes, logits and modes


HEADS = {
    "one class": ([1, 1], "heads of at least 2 classes, of which exit 1 has 1"),
    "no class": ([0, 0], "heads of at least 2 classes, of which exit 1 has 0"),
    "one class at the end": ([3, 1], "of which exit 2 has 1"),
    "other classes": ([3, 4], "the same number of classes"),
}


@pytest.mark.parametrize("what", HEADS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_heads_that_nothing_can_be_decided_on_are_refused_before_a_run(what: str) -> None:
    classes, says = HEADS[what]
    target = Staged([nn.Tanh(), nn.Tanh()], [nn.Sequential(nn.Flatten(), nn.Linear(8, n)) for n in classes]).eval()
    x = torch.randn(6, 8, generator=generator(0))
    for refused in (lambda: EARLY_EXIT.apply(target, threshold=0.9), lambda: EARLY_EXIT.measure(target, x)):
        with pytest.raises(UnsupportedHost, match=says):
            refused()


LOGITS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], str]] = {
    "one class": (lambda x: x[:, :1], lambda x: x[:, :1], "exit 1 must tell at least 2 classes apart, got 1"),
    "no class": (lambda x: x[:, :0], lambda x: x[:, :0], "exit 1 must tell at least 2 classes apart, got 0"),
    "other classes": (lambda x: x, lambda x: x[:, :2], r"exit 2 must have shape \(\d, 3\)"),
    "one for all samples": (lambda x: x[:1], lambda x: x, r"exit 1 must have shape \(4, C\)"),
    "sequences": (lambda x: x.unsqueeze(1), lambda x: x, r"exit 1 must have shape \(B, C\)"),
    "integers": (lambda x: x.long(), lambda x: x, "exit 1 must hold floating point numbers"),
    "no tensor": (lambda x: (x,), lambda x: x, "exit 1 must be a tensor"),
    "infinity": (lambda x: x, lambda x: x / 0, "exit 2 holds values that are not finite"),
}


@pytest.mark.parametrize("what", LOGITS)
@pytest.mark.parametrize("run", ["run", "measure"])
def test_logits_that_nothing_can_be_decided_on_are_refused_at_the_exit(what: str, run: str) -> None:
    first, last, says = LOGITS[what]
    target = Staged([nn.Identity(), nn.Identity()], [does(first), does(last)], StageMacs((1, 1), (1, 1))).eval()
    x = torch.tensor([[0.0, 0.1, 0.2]]).repeat(4, 1)
    with pytest.raises((TypeError, ValueError), match=says):
        EARLY_EXIT.apply(target, threshold=0.9).target(x) if run == "run" else EARLY_EXIT.measure(target, x)


@pytest.mark.parametrize("bend", [lambda n: n.train(), lambda n: n.stages[1].train(), lambda n: n.heads[0].train()])
def test_apply_measure_and_run_want_every_module_in_eval_mode(bend: Callable[[Staged], object]) -> None:
    target = decided_cnn(0)
    runner, x = EARLY_EXIT.apply(target, threshold=0.9).target, torch.zeros(2, 1, 8, 8)
    bend(target)
    for refused in (
        lambda: EARLY_EXIT.apply(target, threshold=0.9),
        lambda: EARLY_EXIT.measure(target, x),
        lambda: runner(x),
    ):
        with pytest.raises(UnsupportedHost, match=r"every module in eval mode.*Call network\.eval\(\) first"):
            refused()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("rule", "threshold"), [("confidence", 0.8), ("entropy", 0.5), ("patience", 1)])
def test_decisions_are_those_of_float32(logits: Tensor, dtype: torch.dtype, rule: str, threshold: float) -> None:
    given = logits.to(dtype)
    runner = EarlyExit(ring(EXITS, 5).eval().to(dtype), rule, threshold)
    assert runner(ring_inputs(given)).dtype == dtype
    assert runner.left.tolist() == exit_decisions(given.float(), rule, threshold).tolist()
    assert exit_decisions(given, rule, threshold).tolist() == runner.left.tolist()
    assert calibrate(given, None, rule, 0.01) == calibrate(given.float(), None, rule, 0.01)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda runner: pickle.loads(pickle.dumps(runner))])
def test_copies_of_a_runner_are_independent(copied: Callable[[EarlyExit], EarlyExit]) -> None:
    runner, x = EarlyExit(decided_cnn(0), "confidence", 0.8), torch.randn(8, 1, 8, 8, generator=generator(0))
    expected, left = runner(x), runner.left
    twin = copied(runner)
    for p in runner.network.parameters():
        p.data.zero_()
    runner(x)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    assert twin.left.tolist() == left.tolist() != runner.left.tolist()
    twin.network.train()
    runner(x)


# --- Cost


@pytest.mark.parametrize("size", [8, 28])
def test_closed_form_of_the_cnn_equals_the_counter(size: int) -> None:
    network = residual_cnn(size, width=4).eval()
    assert count_stages(network, torch.zeros(2, 1, size, size)) == network.macs


# --- Sufficiency


def test_sufficiency_by_hand() -> None:
    answers = torch.tensor([[1, 0, 2], [1, 1, 2], [1, 1, 0]])  # settled at exits 0, 1 and 2
    found = sufficiency(answers, macs=(50, 30, 10))
    assert found.value == pytest.approx((40 / 40 + 10 / 40 + 0) / 3)
    assert found.where == pytest.approx({"exit 1": 1 / 3, "exit 2": 2 / 3, "exit 3": 1.0})
    for costs in ((1, 2), (1, 0, 0), (1, -1, 3), (1, math.nan, 1), (1, math.inf, 1)):
        with pytest.raises(ValueError, match=r"cost"):
            sufficiency(answers, costs)


def test_sufficiency_of_nothing_is_refused() -> None:
    for answers in (torch.zeros(3, 0).long(), torch.zeros(0, 3).long()):
        with pytest.raises(ValueError, match="at least one exit and one sample"):
            sufficiency(answers, (1, 1, 1))
    with pytest.raises(TypeError, match="answers must hold integers"):
        sufficiency(torch.zeros(3, 4), (1, 1, 1))


def test_settled_by_brute_force_and_no_rule_saves_more_without_changing_an_answer(logits: Tensor) -> None:
    answers = logits.argmax(-1)
    for given, found in zip(answers.T.tolist(), settled(answers).tolist(), strict=True):
        assert found == next(e for e in range(EXITS) if set(given[e:]) == {given[-1]})
    kept_all = [
        left
        for rule in RULES
        for left in (exit_decisions(logits, rule, t) for t in technique.grid(rule, EXITS, 5))
        if torch.equal(at_exits(logits, left).argmax(-1), answers[-1])
    ]
    assert kept_all
    assert all(left.sum() >= settled(answers).sum() for left in kept_all)


# --- Calibration


@pytest.fixture
def easy() -> tuple[Tensor, Tensor]:
    """Logits of 2,000 samples that are right more often, and surer, with depth; and their labels."""
    draw, strength = generator(7), torch.tensor([2.0, 3.0, 5.0, 8.0])[:, None, None]
    y = torch.randint(5, (2000,), generator=draw)
    return strength * F.one_hot(y, 5) + 1.3 * torch.randn(EXITS, 2000, 5, generator=draw), y


def rights(logits: Tensor, y: Tensor, rule: str, threshold: float) -> tuple[Tensor, Tensor]:
    """Which samples the last exit, and the exit that a rule takes, get right: (B,) each."""
    return logits[-1].argmax(-1) == y, at_exits(logits, exit_decisions(logits, rule, threshold)).argmax(-1) == y


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", [0.0, 0.005, 0.02])
def test_calibration_meets_its_budget_on_the_held_out_data(easy, rule: str, budget: float) -> None:
    logits, y = easy
    found = calibrate(logits, y, rule, budget)
    last, kept = rights(logits, y, rule, found.threshold)
    assert found.loss == pytest.approx((last.double().mean() - kept.double().mean()).item())
    assert found.loss <= min(budget + 1e-12, found.harm)


def test_a_larger_budget_is_never_more_careful_and_a_certified_one_is(easy) -> None:
    logits, y = easy
    depths = [calibrate(logits, y, "confidence", budget).depth for budget in (0.0, 0.005, 0.02, 0.1, 1.0)]
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] == 0 < depths[0]
    certified = calibrate(logits, y, "confidence", 0.02, delta=0.05)
    assert certified.depth > depths[2]
    assert certified.harm < certified.bound <= 0.02


def test_certified_budgets_hold_on_new_data_as_often_as_stated(easy) -> None:
    logits, y = easy
    broken = 0
    for seed in range(30):
        held, rest = torch.randperm(2000, generator=generator(seed)).split([700, 1300])
        found = calibrate(logits[:, held], y[held], "confidence", 0.03, delta=0.1)
        last, kept = rights(logits, y, "confidence", found.threshold)
        broken += (last & ~kept)[rest].double().mean().item() > 0.03
    assert broken <= 0.1 * 30 + 3


def test_without_labels_the_loss_counts_changed_answers(easy) -> None:
    logits, _ = easy
    found = calibrate(logits, None, "entropy", 0.01)
    _, same = rights(logits, logits[-1].argmax(-1), "entropy", found.threshold)
    assert found.loss == found.harm == pytest.approx((~same).double().mean().item())
    assert found.loss <= 0.01


def test_calibration_says_how_many_samples_a_bound_needs(easy) -> None:
    logits, y = easy
    with pytest.raises(ValueError, match="299 samples are needed"):
        calibrate(logits[:, :298], y[:298], "confidence", 0.01, delta=0.05)
    assert calibrate(logits[:, :299], y[:299], "confidence", 0.01, delta=0.05).bound <= 0.01
    with pytest.raises(ValueError, match="budget must be"):
        calibrate(logits, y, "confidence", -0.1)


TARGETS = {
    "none has": (torch.full((100,), -100), r"\[0, 3\), got -100 for sample 0: leave out the 100 samples"),
    "one too many": (torch.arange(100) % 4, r"\[0, 3\), got 3 for sample 3: leave out the 25 samples"),
    "one for all": (torch.zeros(1).long(), "each of 100 samples, got 1"),
    "a column": (torch.zeros(100, 1).long(), r"must have shape \(B\)"),
    "one hot": (torch.zeros(100, 3).long(), r"must have shape \(B\)"),
    "floats": (torch.zeros(100), "targets must hold integers"),
    "bools": (torch.zeros(100).bool(), "targets must hold integers"),
    "a list": ([0] * 100, "targets must be a tensor"),
}


@pytest.mark.parametrize("what", TARGETS)
def test_calibration_refuses_targets_that_are_no_classes(what: str) -> None:
    targets, says = TARGETS[what]
    with pytest.raises((TypeError, ValueError), match=says):
        calibrate(torch.randn(4, 100, 3, generator=generator(0)), targets, "confidence", 0.0)


@pytest.mark.parametrize(
    "decide", [lambda x: calibrate(x, None, "entropy", 0.0), lambda x: exit_decisions(x, "patience", 1)]
)
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((4, 100, 1), "at least 2 classes"),
        ((4, 100, 0), "at least 2 classes"),
        ((4, 0, 3), "at least one sample"),
        ((0, 100, 3), "one exit"),
        ((100, 3), "must have shape"),
    ],
)
def test_logits_without_classes_samples_or_exits_are_refused(
    decide: Callable, shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        decide(torch.zeros(shape))


def test_an_unknown_rule_is_named() -> None:
    for call in (lambda: calibrate(torch.zeros(2, 3, 2), None, "sure", 0.0), lambda: technique.never("sure", 3)):
        with pytest.raises(ValueError, match="rule must be 'confidence', 'entropy' or 'patience', got 'sure'"):
            call()


def test_upper_bound_is_clopper_pearson() -> None:
    assert technique.upper_bound(0, 50, 0.05) == pytest.approx(1 - 0.05 ** (1 / 50))
    assert technique.upper_bound(50, 50, 0.05) == 1
    for k, n in ((1, 20), (7, 90)):
        p = technique.upper_bound(k, n, 0.05)
        assert sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)) == pytest.approx(0.05)


# --- Hosts and training


def bert_inputs(vocabulary: int) -> dict[str, Tensor]:
    draw = generator(0)
    real = torch.arange(9) < torch.tensor([9, 5, 7, 2, 9, 3]).unsqueeze(1)
    return {"ids": torch.randint(1, vocabulary, (6, 9), generator=draw) * real, "real": real}


def small_minilm() -> MiniLM:
    return MiniLM(vocabulary=50, positions=16, dim=24, depth=3, num_heads=2, hidden=48).eval()


@torch.no_grad()
def test_masks_leave_the_batch_with_their_tokens() -> None:
    with fork_seed(0):
        network = staged_bert(small_minilm(), classes=3)
        for ramp in network.heads:
            ramp.classifier.weight.mul_(8)
    inputs = bert_inputs(50)
    runner = EarlyExit(network, "confidence", 0.75)
    together, left = runner(inputs), runner.left
    assert len(left.unique()) > 1
    for i in range(6):
        n = int(inputs["real"][i].sum())  # alone and without padding
        alone = runner({"ids": inputs["ids"][i : i + 1, :n], "real": inputs["real"][i : i + 1, :n]})
        assert runner.left.item() == left[i].item()
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_joint_loss_reaches_every_exit() -> None:
    network = seeded(0, lambda: residual_cnn(8, width=2))
    loss = joint_loss(AllExits(network)(torch.zeros(4, 1, 8, 8)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(head[-1].bias.grad.abs().sum() > 0 for head in network.heads)


def test_ramps_leave_features_that_never_change_alone() -> None:
    features = torch.randn(8, 3, 4, generator=generator(0))
    features[..., 0] = 7
    assert Ramps(features)(features).isfinite().all()
    for bad, says in (
        (features[:1], "number of samples"),
        (features[0], "must have shape"),
        (features / 0, "not finite"),
    ):
        with pytest.raises(ValueError, match=says):
            Ramps(bad)


@torch.no_grad()
def test_ramps_trained_on_features_are_those_of_the_network() -> None:
    with fork_seed(0):
        network, inputs = staged_bert(small_minilm(), classes=2), bert_inputs(50)
        features = ramp_features(network, inputs)
        ramps = Ramps(features)
    ramps.copy_into(network)
    torch.testing.assert_close(network.exits(inputs), ramps(features), rtol=1e-4, atol=1e-5)
