"""The conformance checks: the checks that hold an implementation to the contract.

It is a library. To examine a technique of your own, write its `Cases` and call

    check_technique(MyTechnique(), MyCases()).raise_for_failures()

Each check is a function of a technique, cases and a device, and builds its own cases, so checks are independent and may
run in any order; only counts that several of them need are kept (`counts`). A check that cannot apply is waived with a
reason in the class (`Technique.waivers`); nothing else is ever left out.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import random
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract.errors import NoEffectWarning, UnsupportedHost
from reference_impls.contract.technique import Case, Cases, Expectation, Handle, Invalid, Setting, Technique, tensors

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""Largest error allowed where arithmetic cannot be equal bit for bit, relative to the largest magnitude."""
PRECISIONS = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16, "autocast": None}
"""What a technique is tried in besides float32; None: a float32 target under autocast to bfloat16."""
SLACK = 4
"""How many times the target's own error in a low precision the technique's may be."""
NOISE, NOISE_DRAWS = 2.0**-4, 3
"""Relative noise, well above bfloat16's rounding, under which a decision must not change to be compared at all."""
DRIFT_FRAMES = 60
SEED = 20


class CheckFailed(AssertionError):
    """An implementation broke its contract; the message says how."""


@dataclass(frozen=True)
class Check:
    """One promise of the contract."""

    name: str
    about: str
    run: Callable[[Technique, Cases, str], None]


CHECKS: list[Check] = []


def check(function: Callable[[Technique, Cases, str], None]) -> Callable[[Technique, Cases, str], None]:
    about = " ".join((function.__doc__ or "").split())
    CHECKS.append(Check(function.__name__.replace("_", "-"), about, function))
    return function


@dataclass
class Report:
    """Outcome of the conformance checks: name of the check -> "passed", "waived: reason" or "failed: reason"."""

    technique: str
    passed: list[str] = field(default_factory=list)
    waived: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def raise_for_failures(self) -> None:
        """Raise `CheckFailed` with every failure, if there is one."""
        if self.failed:
            lines = "\n".join(f"  {name}: {why}" for name, why in self.failed.items())
            raise CheckFailed(f"{self.technique} fails {len(self.failed)} of {len(CHECKS)} checks:\n{lines}")


def checks_for(technique: Technique) -> list[Check]:
    """The checks that this technique must pass: all of them but those it waives with a reason."""
    if unknown := set(technique.waivers) - {c.name for c in CHECKS}:
        raise CheckFailed(f"{technique.id} waives checks that do not exist: {', '.join(sorted(unknown))}")
    return [c for c in CHECKS if c.name not in technique.waivers]


def check_technique(technique: Technique, cases: Cases, device: str = "cpu") -> Report:
    """Run every check that applies and report them all; a failing check does not stop the others."""
    report = Report(technique.id, waived=dict(technique.waivers))
    for one in checks_for(technique):
        try:
            one.run(technique, cases, device)
        except Exception as error:
            report.failed[one.name] = f"{type(error).__name__}: {error}"
        else:
            report.passed.append(one.name)
    return report


# --------------------------------------------------------------------------------------------------------------------
# Small tools of the checks


def require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


def off_setting(technique: Technique) -> Setting:
    return next(s for s in technique.settings() if s.off)


def active_settings(technique: Technique) -> list[Setting]:
    return [s for s in technique.settings() if not s.off]


def require_close(a: Tensor, b: Tensor, what: str) -> None:
    """The largest difference, relative to the largest magnitude of `a`, is within tolerance."""
    require(a.shape == b.shape, f"{what}: shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if not torch.equal(a, b):
        tolerance, error = TOLERANCE.get(a.dtype, 0.0), relative_error(a, b)
        require(error <= tolerance, f"{what}: relative error {error:.3g} is above {tolerance:g}")


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """The largest difference, relative to the largest magnitude expected."""
    expected, actual = expected.double(), actual.double()
    return (expected - actual).abs().max().item() / max(expected.abs().max().item(), 1e-30)


def applied(technique: Technique, case: Case, setting: Setting) -> Handle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        return technique.apply(case.target, **setting.knobs)


def run(case: Case, target: Any = None, inputs: Any = None) -> Tensor:
    """The case's result without gradients, of its own target and inputs unless others are given."""
    with torch.no_grad():
        return case.run(case.target if target is None else target, case.inputs if inputs is None else inputs)


def run_with(technique: Technique, case: Case, setting: Setting) -> Tensor:
    with applied(technique, case, setting) as handle:
        return run(case, handle.target)


Kind = Literal["typical", "redundant", "null"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_COUNTS: weakref.WeakKeyDictionary[Cases, dict[Any, tuple[int, int]]] = weakref.WeakKeyDictionary()


def counts(technique: Technique, cases: Cases, kind: Kind, setting: Setting | None, device: str) -> tuple[int, int]:
    """MACs executed with the setting (applying included; None: dense), and the closed form of what it saved.

    Several checks need them, and some techniques search for seconds: they are counted once for each class and cases.
    """
    known = _COUNTS.setdefault(cases, {})
    key = (kind, device) if setting is None else (kind, device, type(technique), setting.name)
    if key in known:
        return known[key]
    case = cases.build(kind, SEED, device)
    with count() as tally, applied(technique, case, setting) if setting else Handle(case.target) as handle:
        run(case, handle.target)
        executed = tally.macs
        # Inside the block, so that a closed form may look at the target it was applied to, and not compute with it.
        saving = technique.saving(case.target, case.inputs, handle.trace) if setting else 0
    require(tally.macs == executed, "saving() executed counted MACs: it must be a closed form")
    known[key] = executed, saving
    return known[key]


def module_state(target: Any) -> dict[str, Any]:
    """What `undo` must bring back on an `nn.Module`: values, hooks, attributes, modes."""
    if not isinstance(target, nn.Module):
        return {}
    state: dict[str, Any] = {"values": {k: v.clone() for k, v in target.state_dict().items()}}
    for name, module in target.named_modules():
        state[f"{name}:hooks"] = {key: len(x) for key, x in vars(module).items() if key.endswith("_hooks") and x}
        state[f"{name}:attributes"] = sorted(vars(module))
        state[f"{name}:class"] = type(module)
        state[f"{name}:training"] = module.training
    return state


def tensors_of(target: Any) -> list[Tensor]:
    """Parameters and buffers of a target that is a module."""
    return [*target.parameters(), *target.buffers()] if isinstance(target, nn.Module) else []


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    return bool(a == b)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a target or of inputs with every floating point tensor changed, as `nn.Module.to(dtype)` does."""

    def floats(x: Tensor) -> Tensor:
        return change(x) if x.is_floating_point() else x

    if isinstance(value, Tensor):
        return floats(value)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value)._apply(floats)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    made = copy.copy(value)  # a data set or the like, which keeps its tensors in attributes
    vars(made).update({name: floats(x) for name, x in vars(value).items() if isinstance(x, Tensor)})
    return made


def recast(case: Case, change: Callable[[Tensor], Tensor]) -> Case:
    """A copy of the case, the floating point tensors of its target and inputs changed."""
    return Case(mapped(case.target, change), mapped(case.inputs, change), case.run)


def decisions(trace: Any, name: str = "") -> dict[str, Any]:
    """What a trace tells, by name: the rows of tensors, and values. What is floating point may differ by rounding."""
    if isinstance(trace, Tensor) and trace.ndim > 0:
        rows = {} if trace.is_floating_point() else {f"{name}[{i}]": row.tolist() for i, row in enumerate(trace)}
        return {f"shape of {name}": tuple(trace.shape)} | rows
    if isinstance(trace, Mapping | list | tuple):
        parts = trace.items() if isinstance(trace, Mapping) else enumerate(trace)
        found = {f"parts of {name}": len(trace)}
        for key, value in parts:
            found |= decisions(value, f"{name}[{key}]" if name else str(key))
        return found
    floating = isinstance(trace, float) or (isinstance(trace, Tensor) and trace.is_floating_point())
    return {} if floating else {name: trace.item() if isinstance(trace, Tensor) else trace}


def decided(technique: Technique, case: Case, setting: Setting) -> tuple[dict[str, Any], Tensor]:
    """What the technique decides on a case, and its result."""
    with applied(technique, case, setting) as handle:
        try:
            result = run(case, handle.target)
        except UnsupportedHost as error:
            raise CheckFailed(f"{setting.name} is refused in the run and not by apply: {error}") from error
        return decisions(handle.trace), result


def firm(technique: Technique, case: Case, setting: Setting, found: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the decisions `found` that noise in all weights and inputs, well above bfloat16's rounding, leaves.

    Equal values get equal noise, so that what repeats still does.
    """
    kept = dict(found)
    for draw in range(NOISE_DRAWS):

        def noisy(x: Tensor) -> Tensor:
            return x * (1 + NOISE * torch.sin((1e4 + 4e3 * draw) * x))  # noqa: B023

        other, _ = decided(technique, recast(case, noisy), setting)
        kept = {name: value for name, value in kept.items() if name in other and other[name] == value}
    return kept


def global_generators() -> tuple[Any, ...]:
    state = np.random.get_state(legacy=True)  # noqa: NPY002 the check is that nobody touched the global one
    return torch.get_rng_state(), tuple(map(np.asarray, state)), random.getstate()


def require_all(quantities: Iterable[Expectation], what: str) -> None:
    quantities = list(quantities)
    require(len(quantities) > 0, f"no {what} is given to check")
    for one in quantities:
        if one.expected.is_floating_point():
            require_close(one.expected, one.actual, one.name)
        else:
            require(torch.equal(one.expected, one.actual), f"{one.name}: {one.actual} differs")


# --------------------------------------------------------------------------------------------------------------------
# The checks, in the order in which they are reported


@check
def settings(technique: Technique, cases: Cases, device: str) -> None:
    """There are at least two settings with names of their own; the first one, and only it, is off."""
    given = technique.settings()
    require(len(given) >= 2, f"{len(given)} setting(s), at least 2 are needed")
    require(len({s.name for s in given}) == len(given), "two settings share a name")
    off = [s.off for s in given]
    require(off[0] and sum(off) == 1, "the first setting, and only it, must be off")


@check
def documentation(technique: Technique, cases: Cases, device: str) -> None:
    """The module names its papers, and every public function and class says what it does."""
    module = sys.modules[type(technique).__module__]
    text = module.__doc__ or ""
    require(any(mark in text for mark in ("arXiv", "doi", "DOI", "http")), "the module docstring names no paper")
    for name, value in vars(module).items():
        public = not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        if public and (inspect.isfunction(value) or inspect.isclass(value)):
            require(bool(inspect.getdoc(value)), f"{name} has no docstring")


@check
def off_equals_baseline(technique: Technique, cases: Cases, device: str) -> None:
    """Switched off, the technique leaves the baseline's result."""
    for kind in KINDS:
        case = cases.build(kind, SEED, device)
        plain, got = run(case), run_with(technique, case, off_setting(technique))
        require_close(plain, got, f"on the {kind} case, off differs from the baseline")


@check
def measure_finds_redundancy(technique: Technique, cases: Cases, device: str) -> None:
    """Data built of nothing but redundancy measure about 1."""
    case = cases.build("redundant", SEED, device)
    value = technique.measure(case.target, case.inputs).value
    require(value >= 0.95, f"measured {value:.3f} on data built of nothing but redundancy, at least 0.95 is due")


@check
def measure_finds_nothing_in_null(technique: Technique, cases: Cases, device: str) -> None:
    """Data built without redundancy measure about 0."""
    case = cases.build("null", SEED, device)
    value = technique.measure(case.target, case.inputs).value
    require(value <= 0.05, f"measured {value:.3f} on data built without redundancy, at most 0.05 is due")


@check
def savings_are_monotone(technique: Technique, cases: Cases, device: str) -> None:
    """A more aggressive setting never executes more MACs, on typical and on redundant inputs."""
    for kind in KINDS[:2]:
        executed = [counts(technique, cases, kind, setting, device)[0] for setting in active_settings(technique)]
        require(executed == sorted(executed, reverse=True), f"{kind}: MACs by setting are not falling: {executed}")


@check
def macs_match_closed_form(technique: Technique, cases: Cases, device: str) -> None:
    """Counted MACs agree, to the unit, with the closed form of the saving."""
    for kind in KINDS:
        dense, _ = counts(technique, cases, kind, None, device)
        for setting in technique.settings():
            executed, saving = counts(technique, cases, kind, setting, device)
            require(
                dense - executed == saving,
                f"{kind}, {setting.name}: {dense} - {executed} = {dense - executed} MACs were saved, "
                f"the closed form says {saving}",
            )


@check
def execution_is_as_declared(technique: Technique, cases: Cases, device: str) -> None:
    """`real` executes fewer MACs on redundant input and no fewer on null input; `simulated` never fewer."""
    adaptive = [s for s in technique.settings() if s.adaptive]
    require(len(adaptive) > 0, "no setting is adaptive, so nothing shows that the saving follows from the data")
    for setting in adaptive:
        dense, executed = (counts(technique, cases, "redundant", one, device)[0] for one in (None, setting))
        require(
            (executed < dense) == (technique.execution == "real"),
            f"{setting.name} is declared {technique.execution}, but executes {executed} MACs on redundant input where "
            f"the baseline executes {dense}",
        )
        dense, executed = (counts(technique, cases, "null", one, device)[0] for one in (None, setting))
        require(
            executed >= dense,
            f"{setting.name} executes {executed} MACs on null input, fewer than the {dense} of the baseline: something "
            "that was not redundant was left out",
        )


@check
def selection_equals_brute_force(technique: Technique, cases: Cases, device: str) -> None:
    """What is selected agrees with brute force on small cases."""
    require_all(cases.selection(SEED, device), "selection")


@check
def nothing_lost_or_counted_twice(technique: Technique, cases: Cases, device: str) -> None:
    """Conserved quantities are conserved."""
    require_all(cases.conserved(SEED, device), "conserved quantity")


@check
def no_drift(technique: Technique, cases: Cases, device: str) -> None:
    """State carried over time does not drift in 50 frames or more; a technique without state carries nothing over."""
    setting = active_settings(technique)[0]
    if not technique.stateful:
        case, other = (cases.build("typical", seed, device) for seed in (SEED, SEED + 1))
        with applied(technique, case, setting) as handle:
            first = run(case, handle.target)
            if isinstance(handle.target, nn.Module):
                run(case, handle.target, other.inputs)
            again = run(case, handle.target)
        require(torch.equal(first, again), "the second run on the same input differs from the first")
        return
    case = cases.stream(DRIFT_FRAMES, SEED, device)
    dense, got = run(case), run_with(technique, case, setting)
    errors = (got.double() - dense.double()).flatten(1).abs().amax(1)  # (frames,)
    early, late = errors[1:11].max().item(), errors[-10:].max().item()
    floor = TOLERANCE[dense.dtype] * dense.abs().max().item()
    require(late <= 2 * early + floor, f"the error grows from {early:.3g} in frames 2-11 to {late:.3g} in the last ten")


@check
def undo_restores(technique: Technique, cases: Cases, device: str) -> None:
    """Undo restores outputs, parameters, hooks and attributes; a second undo does nothing."""
    for setting in technique.settings():
        case = cases.build("typical", SEED, device)
        before, plain = module_state(case.target), run(case)
        handle = applied(technique, case, setting)
        run(case, handle.target)
        handle.undo()
        handle.undo()
        after = module_state(case.target)
        changed = [key for key in before.keys() | after.keys() if not same(before.get(key), after.get(key))]
        require(not changed, f"{setting.name}: undo leaves changes in {', '.join(sorted(changed))}")
        require(torch.equal(run(case), plain), f"{setting.name}: outputs differ")


@check
def handles_nest(technique: Technique, cases: Cases, device: str) -> None:
    """Applied twice to one target, each undo takes out its own, whichever of the two comes first."""
    first, last = active_settings(technique)[0], active_settings(technique)[-1]
    case = cases.build("typical", SEED, device)
    plain = run(case)
    below = applied(technique, case, first)
    alone = run(case, below.target)
    with applied(technique, case, last) as above:
        run(case, above.target)
    below.reset()
    require(torch.equal(run(case, below.target), alone), f"{last.name} over {first.name} does not end with its undo")
    above = applied(technique, case, first)
    below.undo()
    require(torch.equal(run(case, above.target), alone), f"{first.name} over itself ends with the undo of the other")
    above.undo()
    require(torch.equal(run(case), plain), f"{first.name} does not end with its undo once others were undone")


@check
def copies_are_independent(technique: Technique, cases: Cases, device: str) -> None:
    """A deep copy of a target with the technique, and one that was pickled, work, on weights of their own."""
    setting = active_settings(technique)[0]
    case = cases.build("typical", SEED, device)
    with applied(technique, case, setting) as handle:
        expected = run(case, handle.target)
        handle.reset()
        copies = {"deep copy": copy.deepcopy(handle.target)}
        try:
            copies["unpickled copy"] = pickle.loads(pickle.dumps(handle.target))
        except Exception as error:  # what cannot be pickled must say so as `contract.replacement` does
            said = isinstance(error, TypeError) and technique.id in str(error)
            require(said, f"pickling fails without a word of {technique.id}: {error}")
        with torch.no_grad():
            for tensor in tensors_of(case.target):
                tensor.zero_()
    for what, target in copies.items():
        require(torch.equal(run(case, target), expected), f"the {what} gives another result than the original gave")


@check
def threads_do_not_mix(technique: Technique, cases: Cases, device: str) -> None:
    """Several threads on one target each get what they would get alone; of a stateful technique, with a handle each."""
    setting = active_settings(technique)[0]
    case = cases.build("typical", SEED, device)
    inputs = [cases.build("typical", SEED + n, device).inputs for n in range(4)]
    if not isinstance(case.target, nn.Module):  # a data set: its items are not computed
        return
    with ExitStack() as stack:
        number = len(inputs) if technique.stateful else 1
        handles = [stack.enter_context(applied(technique, case, setting)) for _ in range(number)] * len(inputs)

        def results(n: int, times: int) -> list[Tensor]:
            found = []
            for _ in range(times):
                handles[n].reset()
                found.append(run(case, handles[n].target, inputs[n]))
            return found

        expected = [results(n, 1)[0] for n in range(len(inputs))]
        with ThreadPoolExecutor(len(inputs)) as pool:
            together = list(pool.map(results, range(len(inputs)), [3] * len(inputs)))
        right = all(torch.equal(one, got) for one, some in zip(expected, together, strict=True) for got in some)
        require(right, "a thread gets another result than it would get alone")


@check
def gradients_flow(technique: Technique, cases: Cases, device: str) -> None:
    """Where the technique says that it trains, gradients reach every parameter that they reach without it."""
    if not technique.trains:
        return

    def reached(target: nn.Module, result: Callable[[], Tensor]) -> set[str]:
        target.requires_grad_(True).zero_grad()
        with torch.enable_grad():
            result().square().sum().backward()
        gradients = {name: p.grad for name, p in target.named_parameters()}
        return {name for name, grad in gradients.items() if grad is not None and bool(grad.any())}

    case = cases.build("typical", SEED, device)
    dense = reached(case.target, lambda: case.run(case.target, case.inputs))
    require(len(dense) > 0, "no gradient flows through the case even without the technique")
    for setting in active_settings(technique):
        case = cases.build("typical", SEED, device)
        with applied(technique, case, setting) as handle:
            lost = dense - reached(case.target, lambda: case.run(handle.target, case.inputs))  # noqa: B023
        require(not lost, f"{setting.name}: no gradient reaches {', '.join(sorted(lost))}")


@check
def off_warns(technique: Technique, cases: Cases, device: str) -> None:
    """Switched off, the technique warns that it has no effect; otherwise it does not where it has one."""
    case = cases.build("redundant", SEED, device)
    for setting in (off_setting(technique), active_settings(technique)[-1]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            technique.apply(case.target, **setting.knobs).undo()
        warned = any(issubclass(one.category, NoEffectWarning) for one in caught)
        require(warned == setting.off, f"{setting.name} {'does not warn' if setting.off else 'warns'} of no effect")


@check
def inputs_are_not_mutated(technique: Technique, cases: Cases, device: str) -> None:
    """Measuring and running leave the inputs as they were."""
    for setting in technique.settings():
        case = cases.build("typical", SEED, device)
        before = copy.deepcopy(list(tensors(case.inputs)))
        require(len(before) > 0, "the case's inputs hold no tensor")
        technique.measure(case.target, case.inputs)
        run_with(technique, case, setting)
        require(same(before, list(tensors(case.inputs))), f"{setting.name} changes its inputs")


@check
def seeds_are_respected(technique: Technique, cases: Cases, device: str) -> None:
    """The same seed gives the same result and trace, and the global random generators are left alone."""
    for setting in technique.settings():
        results = []
        for _ in range(2):
            case = cases.build("typical", SEED, device)
            before = global_generators()
            measured = technique.measure(case.target, case.inputs)
            with applied(technique, case, setting) as handle:
                output = run(case, handle.target)
                results.append((measured.value, output, dict(handle.trace)))
            require(same(before, global_generators()), f"{setting.name} moves a global random generator")
        require(same(results[0], results[1]), f"{setting.name}: two runs with the same seed differ")


@check
def low_precision_keeps_decisions(technique: Technique, cases: Cases, device: str) -> None:
    """In float16, bfloat16, float64 and under autocast, what float32 decides on the same values, or a refusal."""
    drawn = cases.build("typical", SEED, device)
    case = recast(drawn, lambda x: x.half().bfloat16().to(x.dtype))  # values that every precision holds
    settings = {s.name: s for s in (active_settings(technique)[0], active_settings(technique)[-1])}
    expected = {name: decided(technique, case, setting) for name, setting in settings.items()}
    plain, measured = run(case), technique.measure(case.target, case.inputs).value
    for precision, dtype in PRECISIONS.items():
        low = case if dtype is None else recast(case, lambda x: x.to(dtype))  # noqa: B023
        tolerance = TOLERANCE[torch.float32 if dtype is torch.float64 else dtype or torch.bfloat16]
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype is None):
            dense = run(low)
            allowed = SLACK * relative_error(plain, dense) + tolerance
            try:
                value = technique.measure(low.target, low.inputs).value
                found = {name: decided(technique, low, setting) for name, setting in settings.items()}
            except UnsupportedHost as error:
                require("float" in str(error), f"{precision}: the refusal does not say which precision is needed")
                continue
        require(abs(value - measured) <= allowed, f"{precision}: measures {value:g} instead of {measured:g}")
        for name, (made, result) in found.items():
            due, result32 = expected[name]
            if other := {key for key in due if key not in made or made[key] != due[key]}:
                other &= firm(technique, case, settings[name], due).keys()
            wrong = [f"{key} {made.get(key)} instead of {due[key]}" for key in sorted(other)]
            require(not wrong, f"{precision}, {name}: decides {'; '.join(wrong[:3])}")
            require(
                result.dtype == dense.dtype, f"{precision}, {name}: the result is {result.dtype}, not {dense.dtype}"
            )
            off = relative_error(result32, result) if made == due else 0.0  # other decisions, other results
            require(off <= allowed, f"{precision}, {name}: the result is off by {off:.3g}, {allowed:.3g} is allowed")


@check
def bad_values_are_refused(technique: Technique, cases: Cases, device: str) -> None:
    """Bad shapes, dtypes, knobs, values that are not finite and unsupported targets raise an error that says so."""
    target = cases.build("typical", 0, device).target
    calls = list(cases.invalid(device))
    require(len(calls) >= 2, f"only {len(calls)} invalid calls are given, at least 2 are due")
    for name, knob in technique.knobs.items():
        require(bool(knob.about), f"the knob {name} does not say what it does")
        for value in knob.bad():
            calls.append(Invalid(f"{name}={value!r}", partial(technique.apply, target, **{name: value}), name))
    calls.append(Invalid("an unknown knob", partial(technique.apply, target, no_such_knob=1), "no_such_knob"))
    for call in calls:
        try:
            call.call()
        except (ValueError, TypeError) as error:
            require(call.says in str(error), f"{call.what}: the error does not say {call.says!r}: {error}")
        else:
            raise CheckFailed(f"{call.what} is accepted")
    try:
        technique.apply(object(), **active_settings(technique)[0].knobs)
    except UnsupportedHost as error:
        require("needs" in str(error), "the error for an unsupported target does not say what is needed")
    else:
        raise CheckFailed("a bare object() is accepted as a target")
