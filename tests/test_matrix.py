"""Every technique in every mode in which people run models: right, or refused with what would be needed.

A cell is (technique, family, dtype, mode). Its outcome is `exact` (EXACT of the largest magnitude), `close` (TOLERANCE,
where the arithmetic itself has fewer digits), or `refused`, which is so only where `REFUSED` says what the message
names. The report ends with the counts (`conftest.py`).
"""

from __future__ import annotations

import copy
import importlib
import pickle
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

import reference_impls
from reference_impls.contract import Handle, NoEffectWarning, Technique, UnsupportedHost, registry
from reference_impls.hosts.bert import staged_bert
from tests.families import CNNS, ENCODERS, VISION, Case, equal_tokens, randomised
from tests.other_models import accelerate, transformers

EXACT = 1e-5
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error, relative to the largest magnitude."""

Found = Iterator[tuple[str, Tensor, Tensor, float]]
"""What is compared: its name, the actual and the expected value, the tolerance."""


@dataclass(frozen=True)
class Subject:
    """A technique on a model of a family."""

    technique: Technique
    build: Callable[[], Case]
    active: Mapping[str, Any]
    """Knobs with which the technique acts, on decisions that are clear enough for every dtype."""
    neutral: Mapping[str, Any]
    """Knobs with which the result is the model's own."""
    equal: Callable[[Case], Case] | None = None
    """The case changed so that the active setting leaves its result as it is."""

    def case(self, dtype: torch.dtype = torch.float32) -> Case:
        """A model without dropout, so that training computes the same, in the dtype."""
        case = self.build()
        for module in case.model.modules() if isinstance(case.model, nn.Module) else ():
            for name, value in vars(module).items():
                if isinstance(value, float) and ("drop" in name or isinstance(module, nn.Dropout)):
                    setattr(module, name, 0.0)
        return cast(case, dtype)

    def apply(self, case: Case, knobs: Mapping[str, Any] | None = None) -> Handle:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            return self.technique.apply(case.model, **(self.active if knobs is None else knobs))


def cast(case: Case, dtype: torch.dtype) -> Case:
    """The model and the inputs in a dtype."""
    model = case.model.to(dtype) if hasattr(case.model, "to") else case.model
    inputs = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, case.inputs)
    return Case(model, inputs, case.run)


def result(case: Case, target: Any = None) -> Tensor:
    with torch.no_grad():
        return case.run(case.model if target is None else target, case.inputs)


def applied(subject: Subject, case: Case) -> Tensor:
    """The result with the technique, in the plainest mode."""
    with subject.apply(case) as handle:
        return result(case, handle.target)


# --------------------------------------------------------------------------------------------------------------------
# Modes


def plain(subject: Subject, dtype: torch.dtype) -> Found:
    """Evaluation: with neutral knobs the model's own result; in a narrow dtype that of float32 on the same numbers."""
    case = subject.case(dtype)
    dense = result(case)
    with subject.apply(case, subject.neutral) as handle:
        yield "neutral", result(case, handle.target), dense, TOLERANCE[dtype]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    yield "active", applied(subject, case), applied(subject, cast(case_like(subject, case), wide)), TOLERANCE[dtype]
    case = subject.case(dtype)
    handle = subject.apply(case)
    result(case, handle.target)
    handle.undo()
    yield "undone", result(case), dense, 0.0


def case_like(subject: Subject, case: Case) -> Case:
    """A fresh case with the numbers of the given one."""
    other = subject.case(torch.float32)
    if isinstance(other.model, nn.Module):
        other.model.load_state_dict(case.model.state_dict())
    return Case(other.model, case.inputs, case.run)


def equal_parts(subject: Subject, dtype: torch.dtype) -> Found:
    """On a datum whose parts are equal, what the technique leaves out changes nothing."""
    assert subject.equal is not None
    case = subject.equal(subject.case(dtype))
    yield "active", applied(subject, case), result(case), TOLERANCE[dtype]


def train(subject: Subject, dtype: torch.dtype) -> Found:
    """Training mode without dropout: the result of evaluation, and gradients for every parameter that has one."""
    case = subject.case(dtype)
    expected = applied(subject, case)
    training(case.model)
    dense = reached(case, case.model)
    with subject.apply(case) as handle:
        yield "result", result(case, handle.target), expected, TOLERANCE[dtype]
        missing = dense - reached(case, handle.target)
        yield f"without a gradient: {sorted(missing)}", torch.tensor(float(len(missing))), torch.zeros(()), 0.0


def training(model: nn.Module) -> None:
    """Training mode, but for the statistics of batch norms, which are frozen."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def reached(case: Case, target: Any) -> set[str]:
    return {name for name, gradient in gradients(case, target).items() if bool(gradient.any())}


def gradients(case: Case, target: Any, run: Callable[[Any, Any], Tensor] | None = None) -> dict[str, Tensor]:
    case.model.requires_grad_(True).zero_grad(set_to_none=True)
    inputs = case.inputs.requires_grad_(True) if isinstance(case.inputs, Tensor) else case.inputs
    with torch.enable_grad():
        (run or case.run)(target, inputs).float().square().sum().backward()
    if isinstance(case.inputs, Tensor):
        case.inputs.requires_grad_(False)
    return {name: p.grad.clone() for name, p in case.model.named_parameters() if p.grad is not None}


def checkpointed(subject: Subject, dtype: torch.dtype, *, reentrant: bool) -> Found:
    """Gradient checkpointing, as the model offers it or around the whole: the same gradients."""
    case = subject.case(dtype)
    training(case.model)
    with subject.apply(case) as handle:
        expected = gradients(case, handle.target)
        run = case.run
        if hasattr(case.model, "gradient_checkpointing_enable"):
            case.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        elif hasattr(case.model, "set_grad_checkpointing") and not reentrant:
            case.model.set_grad_checkpointing(True)
        else:
            run = partial(whole_checkpointed, case.run, reentrant)
        actual = gradients(case, handle.target, run)
    assert actual.keys() == expected.keys()
    for name in expected:
        yield name, actual[name], expected[name], TOLERANCE[dtype]


def whole_checkpointed(run: Callable[[Any, Any], Tensor], reentrant: bool, model: Any, inputs: Any) -> Tensor:
    leaves, spec = tree_flatten(inputs)
    call = lambda *leaves: run(model, tree_unflatten(leaves, spec))  # noqa: E731
    return checkpoint(call, *leaves, use_reentrant=reentrant)


def autocast(subject: Subject, dtype: torch.dtype) -> Found:
    """Under autocast to bfloat16: near the result of float32."""
    case = subject.case(dtype)
    expected = applied(subject, case)
    with subject.apply(case) as handle, torch.autocast("cpu", torch.bfloat16):
        yield "result", result(case, handle.target).float(), expected.float(), TOLERANCE[torch.bfloat16]


def inference_mode(subject: Subject, dtype: torch.dtype) -> Found:
    case = subject.case(dtype)
    expected = applied(subject, case)
    with subject.apply(case) as handle, torch.inference_mode():
        yield "result", case.run(handle.target, case.inputs).clone(), expected, TOLERANCE[dtype]


def copied(subject: Subject, dtype: torch.dtype, copies: Callable[[Any], Any]) -> Found:
    """A copy of the model computes the same, whatever becomes of the original."""
    case = subject.case(dtype)
    expected = applied(subject, case)
    handle = subject.apply(case)
    result(case, handle.target)
    twin = copies(handle.target)
    for parameter in case.model.parameters():
        parameter.data.zero_()
    yield "copy", result(case, twin), expected, TOLERANCE[dtype]
    handle.undo()
    yield "copy after the original's undo", result(case, twin), expected, TOLERANCE[dtype]


def pickled(target: Any) -> Any:
    return pickle.loads(pickle.dumps(target))


def averaged(target: Any) -> Any:
    return torch.optim.swa_utils.AveragedModel(target).module


def functional(subject: Subject, dtype: torch.dtype) -> Found:
    """The model as a function of its weights, as meta-learning and ensembles run it: those that are given count."""
    case, other = subject.case(dtype), subject.case(dtype)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.9)
    expected = applied(subject, other)
    with subject.apply(case) as handle:
        weights = dict(other.model.named_parameters())
        call = lambda model, inputs: torch.func.functional_call(model, weights, (inputs,))  # noqa: E731
        outputs = result(
            Case(case.model, case.inputs, lambda model, x: case.run(partial(call, model), x)), handle.target
        )
    yield "with other weights", outputs, expected, TOLERANCE[dtype]


def state_dict(subject: Subject, dtype: torch.dtype) -> Found:
    """The weights are saved under the model's own names."""
    case, fresh = subject.case(dtype), subject.case(dtype)
    dense, keys = result(case), list(case.model.state_dict())
    with torch.no_grad():
        for parameter in fresh.model.parameters():
            parameter.zero_()
    with subject.apply(case):
        saved = case.model.state_dict()
        assert list(saved) == keys
        fresh.model.load_state_dict(saved)
    yield "loaded", result(fresh), dense, 0.0


def nested(subject: Subject, dtype: torch.dtype) -> Found:
    """Applied twice and undone in the order of applying: nothing is left."""
    case = subject.case(dtype)
    dense = result(case)
    first, second = subject.apply(case, subject.neutral), subject.apply(case)
    result(case, second.target)
    first.undo()
    result(case, second.target)
    second.undo()
    yield "undone", result(case), dense, 0.0


def threads(subject: Subject, dtype: torch.dtype) -> Found:
    """Two threads on one model, with batches of two sizes."""
    case = subject.case(dtype)
    fewer = tree_map(lambda x: x[: max(1, len(x) // 2)] if isinstance(x, Tensor) else x, case.inputs)
    half = Case(case.model, fewer, case.run)
    with subject.apply(case) as handle:
        expected = [result(one, handle.target) for one in (case, half)]
        actual: list[list[Tensor]] = [[], []]
        errors: list[BaseException] = []

        def work(i: int) -> None:
            try:
                for _ in range(6):
                    actual[i].append(result((case, half)[i], handle.target))
            except BaseException as error:
                errors.append(error)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if errors:
        raise errors[0]
    for i in range(2):
        for one in actual[i]:
            yield f"thread {i}", one, expected[i], TOLERANCE[dtype]


def trainer(subject: Subject, dtype: torch.dtype) -> Found:
    """Two steps of the trainer of transformers: with neutral knobs those of the dense model, and others with active."""
    accelerate(), transformers()
    trained = {}
    for name, knobs in (("dense", None), ("neutral", subject.neutral), ("active", subject.active)):
        case = subject.case(dtype)
        with Handle(case.model) if knobs is None else subject.apply(case, knobs):
            trained[name] = two_steps(case)
    assert trained["active"].keys() == trained["dense"].keys()
    for name, weight in trained["dense"].items():
        yield name, trained["neutral"][name], weight, TOLERANCE[dtype]
    moved = [name for name, weight in trained["dense"].items() if not torch.equal(trained["active"][name], weight)]
    yield "weights that the merging moves", torch.tensor(float(len(moved) > 0)), torch.ones(()), 0.0


def two_steps(case: Case) -> dict[str, Tensor]:
    """The weights after two steps; the trainer passes labels and `num_items_in_batch` to the model."""
    from transformers import Trainer, TrainingArguments

    data = [{"pixel_values": x, "labels": torch.tensor(i % 5)} for i, x in enumerate(case.inputs.repeat(2, 1, 1, 1))]
    with tempfile.TemporaryDirectory() as folder:
        options = {"output_dir": folder, "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
        quiet = {
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "logging_strategy": "no",
        }
        Trainer(model=case.model, args=TrainingArguments(**options, **quiet), train_dataset=data).train()
    return {name: value.detach().clone() for name, value in case.model.state_dict().items()}


# --- readers of what lies between


def hidden_states(subject: Subject, dtype: torch.dtype) -> Found:
    """Every hidden state that the model gives away has all tokens, and equals the dense model's on equal parts."""
    assert subject.equal is not None
    case = subject.equal(subject.case(dtype))

    def states() -> list[Tensor]:
        with torch.no_grad():
            if hasattr(case.model, "forward_intermediates"):
                return list(case.model.forward_intermediates(case.inputs, intermediates_only=True))
            return list(case.model(case.inputs, output_hidden_states=True).hidden_states)

    dense = states()
    with subject.apply(case):
        merged = states()
    assert len(dense) == len(merged)
    for i, (actual, expected) in enumerate(zip(merged, dense, strict=True)):
        yield f"state {i}", actual, expected, TOLERANCE[dtype]


def hooks(subject: Subject, dtype: torch.dtype) -> Found:
    """A forward hook on a block sees all tokens."""
    assert subject.equal is not None
    case = subject.equal(subject.case(dtype))
    block = [m for m in case.model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) == 3][-1][1]
    seen: list[Tensor] = []
    hook = block.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    result(case)
    with subject.apply(case) as handle:
        result(case, handle.target)
    hook.remove()
    assert len(seen) == 2
    yield "seen", seen[1], seen[0], TOLERANCE[dtype]


def attentions(subject: Subject, dtype: torch.dtype) -> Found:
    """Attention probabilities are those between all tokens."""
    case = subject.case(dtype)
    case.model.set_attn_implementation("eager")
    with torch.no_grad():
        dense = case.model(case.inputs, output_attentions=True).attentions
        with subject.apply(case):
            merged = case.model(case.inputs, output_attentions=True).attentions
    assert merged is not None
    assert [a.shape for a in merged] == [a.shape for a in dense]
    for i, one in enumerate(merged):
        yield f"sums {i}", one.sum(-1), torch.ones_like(one[..., 0]), TOLERANCE[dtype]


# --- other ways to run


class Call(nn.Module):
    """A model with its way of being run, on the tensors of its inputs one by one."""

    def __init__(self, case: Case, target: Any) -> None:
        super().__init__()
        self.target, self.run = target, case.run
        self.leaves, self.spec = tree_flatten(case.inputs)

    def forward(self, *leaves: Tensor) -> Tensor:
        return self.run(self.target, tree_unflatten(leaves, self.spec))


def captured(subject: Subject, dtype: torch.dtype, capture: Callable[[nn.Module, tuple[Any, ...]], Any]) -> Found:
    """The captured model computes the same, on the inputs that it was captured with and on others."""
    case = subject.case(dtype)
    with subject.apply(case) as handle, torch.no_grad():
        call = Call(case, handle.target)
        others = tuple(x.flip(0) for x in call.leaves)
        expected = [call(*call.leaves), call(*others)]
        graph = capture(call, tuple(call.leaves))
        for name, leaves, one in zip(("the same", "others"), (call.leaves, others), expected, strict=True):
            yield name, graph(*leaves), one, TOLERANCE[dtype]


def compiled(call: nn.Module, leaves: tuple[Any, ...]) -> Any:
    torch._dynamo.reset()
    return torch.compile(call, backend="aot_eager")


def exported(call: nn.Module, leaves: tuple[Any, ...]) -> Any:
    return torch.export.export(call, leaves).module()


def traced(call: nn.Module, leaves: tuple[Any, ...]) -> Any:
    return torch.jit.trace(call, leaves, check_trace=False)


MODES: dict[str, Callable[[Subject, torch.dtype], Found]] = {
    "eval": plain,
    "equal parts": equal_parts,
    "train": train,
    "checkpointed": partial(checkpointed, reentrant=False),
    "checkpointed, reentrant": partial(checkpointed, reentrant=True),
    "autocast": autocast,
    "inference mode": inference_mode,
    "deepcopy": partial(copied, copies=copy.deepcopy),
    "averaged": partial(copied, copies=averaged),
    "pickle": partial(copied, copies=pickled),
    "functional": functional,
    "state dict": state_dict,
    "nested": nested,
    "threads": threads,
    "trainer": trainer,
    "hidden states": hidden_states,
    "hooks": hooks,
    "attentions": attentions,
    "compile": partial(captured, capture=compiled),
    "export": partial(captured, capture=exported),
    "trace": partial(captured, capture=traced),
}

# --------------------------------------------------------------------------------------------------------------------
# Subjects


def staged(family: str) -> Case:
    """An encoder with random off-ramps that are sure of some texts."""
    case = ENCODERS[family]()
    network = randomised(staged_bert(case.model, classes=3))
    for head in network.heads:
        head.classifier.weight.data *= 2
    return Case(network, case.inputs, lambda network, inputs: network(inputs))


def clear_threshold(case: Case) -> float:
    """A confidence from which every sample at every exit is far, and which some exceed."""
    with torch.no_grad():
        sure = case.model.exits(case.inputs).softmax(-1).amax(-1).flatten().sort().values
    gap = int(sure.diff().argmax())
    return float(sure[gap : gap + 2].mean())


def own(id_: str) -> Callable[[], Case]:
    """The case of the conformance checks."""

    def build() -> Case:
        cases = importlib.import_module(f"test_{registry.module_name(id_)}").CASES
        case = cases.build("typical", 20, "cpu")
        return Case(case.target, case.inputs, case.run)

    return build


def subject(id_: str, family: str) -> Subject:
    technique = registry.load(id_)
    if family.startswith("its own"):
        off, *others = technique.settings()
        last = [one for one in others if not (family == "its own, fixed" and one.adaptive)][-1]
        return Subject(technique, own(id_), last.knobs, off.knobs)
    if id_ == "token-merging":
        return Subject(
            technique, VISION[family], {"r": [8, 0, 0]}, {"r": None, "threshold": 1.0}, equal_tokens
        )  # every pair merges
    if id_ == "confidence-early-exit":
        knobs = {"rule": "confidence"}
        clear = knobs | {"threshold": clear_threshold(staged(family))}
        return Subject(technique, partial(staged, family), clear, knobs | {"threshold": 0.9999})
    return Subject(technique, CNNS[family], {"threshold": 0.0}, {"threshold": 0.0})


@dataclass(frozen=True)
class Cell:
    technique: str
    family: str
    dtype: str
    mode: str

    def __str__(self) -> str:
        return f"{self.technique} | {self.family} | {self.dtype} | {self.mode}"

    @property
    def refusal(self) -> str | None:
        """What the message names, where the cell is refused."""
        return next((says for pattern, says in REFUSED.items() if fnmatchcase(str(self), pattern)), None)


REFUSED: dict[str, str] = {
    "token-merging | * | attentions": "output_attentions",
    "token-merging | its own | float32 | export": "with a fixed r",
    "token-merging | its own | float32 | trace": "with a fixed r",
    "confidence-early-exit | * | export": "depends on the data",
    "confidence-early-exit | * | trace": "depends on the data",
    "confidence-early-exit | its own | float32 | train": r"eval mode|eval\(\)",
    "efficientformer* | its own | float32 | export": "without a tolerance",
    "efficientformer* | its own | float32 | trace": "without a tolerance",
    "delta-convolution | its own | float32 | train": "eval mode",
    "delta-convolution | its own | float32 | export": "captured as a graph",
    "delta-convolution | its own | float32 | trace": "captured as a graph",
    "delta-convolution | * | threads": "a stream belongs to one network",
    "latency-driven-slimming | its own | float32 | train": "eval mode",
}
"""Pattern of cells -> what the message of their refusal names, a regular expression."""
MODULES = (
    "token-merging", "confidence-early-exit", "delta-convolution", "stride-attention", "attention-downsampling",
    "efficientformer", "efficientformer-v2", "dimension-consistent-design", "latency-driven-slimming",
    "fine-grained-joint-search",
)  # fmt: skip
"""Techniques whose target is a network. Semantic deduplication's is a data set."""
ALWAYS = ("eval", "autocast", "inference mode", "deepcopy", "averaged", "pickle", "state dict", "nested", "threads")
CAPTURED = ("compile", "export", "trace")
TRAINING = ("train", "checkpointed", "checkpointed, reentrant")
DTYPES = ("float16", "bfloat16", "float64")
TRANSFORMERS = ("ViT", "DeiT", "DINOv2 with registers", "BEiT", "CLIP vision tower", "SigLIP vision tower")
TIMM = ("timm ViT", "timm BEiT", "timm EVA", "timm ViT with registers")
OTHERS = ("torchvision ViT", "nn.TransformerEncoder", "our ViT")
TEXT = ("BERT", "RoBERTa", "DistilBERT", "ELECTRA", "MPNet", "ModernBERT")
SEARCHES = ("latency-driven-slimming", "fine-grained-joint-search")
"""What they give is a network of its own, and they take a second to search for it."""


def cells() -> Iterator[Cell]:
    for family in (*TRANSFORMERS, *TIMM, *OTHERS):
        readers = ("hidden states", "hooks", "functional") if family not in OTHERS else ("hooks", "functional")
        modes = (*ALWAYS, "equal parts", *TRAINING, *readers, *(("attentions",) if family in TRANSFORMERS else ()))
        yield from (Cell("token-merging", family, "float32", mode) for mode in modes)
        yield from (Cell("token-merging", family, dtype, "eval") for dtype in DTYPES)
    yield Cell("token-merging", "ViT classifier", "float32", "trainer")
    for family in ("ViT", "our ViT"):
        yield from (Cell("token-merging", family, "float32", mode) for mode in CAPTURED)
    yield from (Cell("token-merging", "timm ViT", "float32", mode) for mode in ("export", "trace"))
    for family in TEXT:
        yield from (Cell("confidence-early-exit", family, "float32", mode) for mode in ALWAYS)
        yield from (Cell("confidence-early-exit", family, dtype, "eval") for dtype in DTYPES)
    yield from (Cell("confidence-early-exit", "BERT", "float32", mode) for mode in CAPTURED)
    yield from (Cell("delta-convolution", "torchvision squeezenet1_1", "float32", mode) for mode in ALWAYS)
    yield from (Cell("delta-convolution", "torchvision squeezenet1_1", dtype, "eval") for dtype in DTYPES)
    for mode in ("eval", "deepcopy", "pickle", "threads"):
        yield Cell("delta-convolution", "torchvision mobilenet_v3_small", "float32", mode)
    for technique in MODULES:
        modes = ("eval", "autocast", "deepcopy", "pickle") if technique in SEARCHES else (*ALWAYS, "trace")
        yield from (Cell(technique, "its own", "float32", mode) for mode in (*modes, "export"))
        yield from (Cell(technique, "its own", dtype, "eval") for dtype in DTYPES)
    for technique in ("stride-attention", "attention-downsampling"):
        yield from (Cell(technique, "its own", "float32", mode) for mode in (*TRAINING, "compile"))
    for technique in ("efficientformer", "efficientformer-v2"):
        yield from (Cell(technique, "its own, fixed", "float32", mode) for mode in ("export", "trace"))
    for technique in ("confidence-early-exit", "delta-convolution", "latency-driven-slimming"):
        yield Cell(technique, "its own", "float32", "train")


CELLS = list(cells())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*is deprecated")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell, record_property: Callable[[str, object], None]) -> None:
    outcome = examined(cell)
    record_property("matrix", outcome)
    if cell.refusal is None:
        assert outcome in ("exact", "close"), f"refused: {outcome}"


def examined(cell: Cell) -> str:
    """exact, close or refused. AssertionError where the result is wrong, or a refusal names something else."""
    one = subject(cell.technique, cell.family)
    exact = True
    try:
        for name, actual, expected, tolerance in MODES[cell.mode](one, getattr(torch, cell.dtype)):
            assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
            assert actual.isfinite().all(), f"{name}: not finite"
            scale = max(float(expected.detach().double().abs().max()), 1e-12)
            error = float((actual.detach().double() - expected.detach().double()).abs().max()) / scale
            assert error <= tolerance, f"{name}: off by {error:.1e} of the largest magnitude, allowed {tolerance:.0e}"
            exact &= error <= EXACT
    except AssertionError:
        raise
    except Exception as error:
        return refusal(cell, error)
    return "exact" if exact else "close"


def refusal(cell: Cell, error: Exception) -> str:
    """`refused`, where the error is one of ours; else it is raised again."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    ours = place is not None and Path(place.tb_frame.f_code.co_filename).is_relative_to(OURS)
    if not (ours or isinstance(error, UnsupportedHost)) or cell.refusal is None:
        raise error
    with pytest.raises(type(error), match=cell.refusal):
        raise error
    return "refused"


OURS = Path(next(iter(reference_impls.__path__)))


def test_the_matrix_is_large_and_refuses_little() -> None:
    refused = [cell for cell in CELLS if cell.refusal is not None]
    assert len(set(CELLS)) == len(CELLS) >= 120
    assert 4 * len(refused) <= len(CELLS), f"{len(refused)} of {len(CELLS)} cells are refused"
    assert all(any(fnmatchcase(str(cell), pattern) for cell in CELLS) for pattern in REFUSED)
