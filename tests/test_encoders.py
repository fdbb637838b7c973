"""Encoders of text in stages: exact or refused, over the families of transformers and over look-alikes.

The file runs with the installed transformers, and once more with the oldest version that the project allows
(`test_floor.py`).
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.contract import UnsupportedHost
from reference_impls.hosts.bert import MeanRamp, mean_pool, ramp_features, staged_bert
from reference_impls.hosts.staged import Staged, batch_size, count_stages, select
from reference_impls.models.minilm import Layer, MiniLM
from reference_impls.techniques.confidence_early_exit import EarlyExit, at_exits, confidence, exit_decisions
from tests.support import generator

pytestmark = pytest.mark.transformers

WORDS, DIM, HEADS, HIDDEN = 50, 24, 2, 48
SIZES = {"vocab_size": WORDS, "hidden_size": DIM, "num_attention_heads": HEADS, "intermediate_size": HIDDEN}
DEEP = SIZES | {"num_hidden_layers": 3}
ROBERTA = DEEP | {"pad_token_id": 1}
DEBERTA = DEEP | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
SPECIAL = {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
MODERN = DEEP | SPECIAL | {"pad_token_id": 0, "local_attention": 4, "global_attn_every_n_layers": 2}
DISTIL = {"vocab_size": WORDS, "dim": DIM, "n_layers": 3, "n_heads": HEADS, "hidden_dim": HIDDEN}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": DEEP,
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA,
    "Camembert": ROBERTA,
    "DistilBert": DISTIL,
    "Electra": DEEP | {"embedding_size": 16},
    "MPNet": ROBERTA,
    "ModernBert": MODERN,
    "Albert": DEEP | {"embedding_size": 16},
    "Deberta": DEBERTA,
    "DebertaV2": DEBERTA | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "NomicBert": DEEP,
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DebertaV2Model": (DEBERTA | {"conv_kernel_size": 3}, "between its layers 1 and 2"),
    "XLNetModel": ({"vocab_size": WORDS, "d_model": DIM, "n_layer": 2, "n_head": HEADS}, r"tokens \(B, N, D\)"),
    "T5EncoderModel": ({"vocab_size": WORDS, "d_model": DIM, "num_layers": 2, "num_heads": HEADS}, "unlike layer 2"),
    "LongformerModel": (ROBERTA | {"attention_window": 4}, "with their padding"),
    "BertForSequenceClassification": (DEEP, r"pass model\.bert"),
    "RobertaForMaskedLM": (ROBERTA, r"pass model\.roberta"),
}
IN_STAGES = pytest.mark.parametrize("family", FAMILIES)


def of_transformers(name: str, sizes: dict[str, Any], **more: Any) -> Any:
    """A model of transformers, whose every weight is drawn; skips the test where this version does not know it."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, name):
        pytest.skip(f"{name} is not there in transformers {transformers.__version__}")
    family = getattr(transformers, name)
    return drawn(family(family.config_class(**sizes, **more)))


def drawn(model: nn.Module) -> Any:
    """The same model with other weights, so that none is 0 or 1."""
    draws = generator(0)
    for p in model.parameters():
        p.data.add_(torch.randn(p.shape, generator=draws), alpha=0.1)
    return model.eval()


def texts(lengths: list[int], pad: int = 0, seed: int = 1) -> dict[str, Tensor]:
    """Random tokens of these lengths, padded at the end."""
    real = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return {"ids": torch.randint(3, WORDS, real.shape, generator=generator(seed)).masked_fill(~real, pad), "real": real}


def pad_of(model: Any) -> int:
    return getattr(model.config, "pad_token_id", 0) or 0


def in_stages(network: Staged, inputs: dict[str, Tensor]) -> Tensor:
    state: Any = inputs
    for stage in network.stages:
        state = stage(state)
    return state["x"]


def last_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    more = {name: x for name, x in inputs.items() if name not in ("ids", "real")}
    return model(input_ids=inputs["ids"], attention_mask=inputs["real"].long(), **more).last_hidden_state


def bold(network: Staged) -> Staged:
    """The same network with off-ramps that are sure of some texts."""
    for ramp in network.heads:
        assert isinstance(ramp, MeanRamp)
        ramp.classifier.weight.data *= 8
    return network


# --- Families of transformers


@IN_STAGES
@torch.no_grad()
def test_the_last_stage_leaves_the_last_hidden_state(family: str) -> None:
    model = of_transformers(f"{family}Model", FAMILIES[family])
    network = staged_bert(model, classes=3)
    assert len(network.stages) == 3
    for lengths in ([11, 7, 11, 2], [9] * 5, [7], [3]):
        inputs = texts(lengths, pad_of(model))
        real = inputs["real"]
        torch.testing.assert_close(
            in_stages(network, inputs)[real], last_of(model, inputs)[real], rtol=1e-5, atol=1e-6, msg=f"{lengths}"
        )
    left_out = network.stages[0].front.left_out
    assert all("pooler" in name for name in left_out)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in network.stages.parameters()} == set(names.values()) - set(left_out)


@IN_STAGES
@torch.no_grad()
def test_texts_that_leave_take_their_masks_and_positions_along(family: str) -> None:
    model = of_transformers(f"{family}Model", FAMILIES[family])
    network = bold(staged_bert(model, classes=3))
    inputs = texts([9, 5, 7, 2, 9, 3], pad_of(model))
    offline = network.exits(inputs)
    threshold = confidence(offline[0]).median().item()
    runner = EarlyExit(network, "confidence", threshold)
    logits, left = runner(inputs), runner.left
    assert 1 < (left == 0).sum() < 5
    assert left.tolist() == exit_decisions(offline, "confidence", threshold).tolist()
    torch.testing.assert_close(logits, at_exits(offline, left), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_layer_by_layer_is_refused_by_name(name: str) -> None:
    sizes, says = REFUSED[name]
    with pytest.raises(UnsupportedHost, match=says):
        staged_bert(of_transformers(name, sizes), classes=2)


@torch.no_grad()
def test_token_types_and_positions_go_to_the_encoder_by_name() -> None:
    model = of_transformers("BertModel", DEEP)
    inputs = texts([8, 5])
    inputs |= {"token_type_ids": (inputs["ids"] > 25).long(), "position_ids": torch.arange(8).flip(0).expand(2, 8)}
    network = staged_bert(model, classes=2)
    torch.testing.assert_close(in_stages(network, inputs), last_of(model, inputs))
    assert not torch.allclose(in_stages(network, inputs), in_stages(network, texts([8, 5])))


@pytest.mark.parametrize("switched", ["output_attentions", "output_hidden_states", "use_return_dict"])
@torch.no_grad()
def test_what_the_configuration_wants_returned_changes_nothing(switched: str) -> None:
    more = {"return_dict": False} if switched == "use_return_dict" else {switched: True}
    model = of_transformers("BertModel", DEEP, attn_implementation="eager", **more)
    inputs, network = texts([8, 5]), staged_bert(model, classes=2)
    output = model(input_ids=inputs["ids"], attention_mask=inputs["real"].long())
    assert switched != "output_hidden_states" or len(output.hidden_states) == 4  # not collected twice
    torch.testing.assert_close(in_stages(network, inputs), output[0])


@pytest.mark.parametrize("family", ["Bert", "MPNet", "ModernBert"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_stages_and_new_ramps_follow_the_dtype(family: str, dtype: torch.dtype) -> None:
    model = of_transformers(f"{family}Model", FAMILIES[family])
    later = staged_bert(copy.deepcopy(model), classes=3).to(dtype)
    inputs, network = texts([8, 5, 1], pad_of(model)), staged_bert(model.to(dtype), classes=3)
    assert {p.dtype for p in network.heads.parameters()} == {dtype}
    real = inputs["real"]
    torch.testing.assert_close(in_stages(network, inputs)[real], last_of(model, inputs)[real])
    torch.testing.assert_close(in_stages(later, inputs)[real], in_stages(network, inputs)[real], rtol=0, atol=0)
    runner = EarlyExit(network, "entropy", 1.05)
    logits = runner(inputs)
    assert logits.dtype == dtype
    assert runner.left.tolist() == exit_decisions(network.exits(inputs).float(), "entropy", 1.05).tolist()


@torch.no_grad()
def test_stages_under_autocast_are_the_encoder_under_autocast() -> None:
    model, inputs = of_transformers("BertModel", DEEP), texts([8, 5, 1])
    with torch.autocast("cpu", torch.bfloat16):
        network = staged_bert(model, classes=3)
        torch.testing.assert_close(in_stages(network, inputs), last_of(model, inputs))
        logits = EarlyExit(network, "confidence", 0.99)(inputs)
        assert logits.isfinite().all()
    assert {p.dtype for p in network.heads.parameters()} == {torch.float32}


def test_gradients_reach_every_weight_that_the_last_hidden_state_has() -> None:
    model = of_transformers("ModernBertModel", MODERN)
    network = staged_bert(model, classes=3).train()
    network.exits(texts([6, 4])).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# --- Look-alikes


class Encoder(MiniLM):
    """An encoder that others change a little; `bend` stands between its layers."""

    def __init__(self) -> None:
        super().__init__(vocabulary=WORDS, positions=16, dim=DIM, depth=3, num_heads=HEADS, hidden=HIDDEN)
        self.scale = nn.Parameter(torch.zeros(DIM))
        self.norm = nn.LayerNorm(DIM)

    def front(self, ids: Tensor) -> Tensor:
        return self.embeddings(ids)

    def bend(self, x: Tensor) -> Tensor:
        return x

    def end(self, x: Tensor) -> Tensor:
        return x

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        x = self.front(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else self.bend(x), real[:, None, None, :])
        return self.end(x)


class ScaledFront(Encoder):
    def front(self, ids: Tensor) -> Tensor:
        return self.embeddings(ids) * (1 + self.scale) + ids.shape[1]


class NormBetween(Encoder):
    def bend(self, x: Tensor) -> Tensor:
        return self.norm(x)


class NormAtTheEnd(Encoder):
    def end(self, x: Tensor) -> Tensor:
        return self.norm(x)


class SharedLayers(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.layers[0]] * 3)


class NormedWeight(Encoder):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.layers[1].mlp.fc1)


class LayerHooks(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.layers[1].register_forward_hook(lambda module, args, output: 2 * output)
        self.layers[2].register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
        self.register_forward_pre_hook(lambda module, args: ((args[0] + 1) % WORDS, args[1]))


class ReplacedLayer(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.layers[1].forward = lambda x, mask: -x


class ByName(Encoder):
    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(mask=real[:, None, None, :], x=x)
        return x


class Tuples(Encoder):
    """Its layers return a weight first, as some do on demand."""

    class Pair(Layer):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
            return x.mean(), super().forward(x, mask)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Pair(DIM, HEADS, HIDDEN) for _ in range(3))

    def forward(self, ids: Tensor, real: Tensor) -> Any:
        x = self.embeddings(ids)
        for layer in self.layers:
            _, x = layer(x, real[:, None, None, :])
        return x, ids


class Attributes(Encoder):
    """Asks its layers for attributes, and gives them a table that all texts share and one in which each has a row."""

    class Biased(Layer):
        kind = "local"

        def forward(self, x: Tensor, mask: Tensor | None = None, table: Tensor | None = None) -> Tensor:
            return super().forward(x + table, mask)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Biased(DIM, HEADS, HIDDEN) for _ in range(3))
        self.table = nn.Parameter(torch.randn(6, DIM, generator=generator(0)))  # as many rows as texts, by chance

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for i, layer in enumerate(self.layers):
            table = self.table[ids % 6] if i else self.table.mean(0)
            x = layer(x, real[:, None, None, :], table=table if layer.kind == "local" else None)
        return x


EXACT = (ScaledFront, NormBetween, NormAtTheEnd, SharedLayers, NormedWeight, LayerHooks, ReplacedLayer, ByName, Tuples)


@pytest.mark.parametrize("build", [Encoder, *EXACT, Attributes])
@torch.no_grad()
def test_what_an_encoder_does_around_its_layers_is_kept(build: type[Encoder]) -> None:
    model = drawn(build())
    network, inputs = bold(staged_bert(model, classes=2)), texts([9, 5, 7, 2, 9, 3])
    output = model(*inputs.values())
    expected = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(in_stages(network, inputs), expected)
    stay = torch.tensor([4, 1])
    state = network.stages[0](inputs)
    for stage in network.stages[1:]:
        state = stage(select(state, stay) if len(state["x"]) > 2 else state)
    torch.testing.assert_close(state["x"][state["real"]], expected[stay][inputs["real"][stay]], rtol=1e-4, atol=1e-5)


class ScaleBetween(Encoder):
    def bend(self, x: Tensor) -> Tensor:
        return x + self.scale * x  # nothing as long as it is zero


class InPlaceBetween(Encoder):
    def bend(self, x: Tensor) -> Tensor:
        return x.mul_(1 + self.scale)


class ScaleAtTheEnd(Encoder):
    def end(self, x: Tensor) -> Tensor:
        return x * (1 + self.scale)


class TwoArguments(Encoder):
    def end(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), self.norm.weight)


class Noise(Encoder):
    def front(self, ids: Tensor) -> Tensor:
        return self.embeddings(ids) + torch.rand(1)


class Narrow(Encoder):
    """Hands on fewer tokens."""

    def bend(self, x: Tensor) -> Tensor:
        return x[:, :-1]

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        return super().forward(ids, real[:, :1])


class FromLayerToLayer(Encoder):
    """Adds the attention of the layer before, as RealFormer does."""

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        x, bias = self.embeddings(ids), torch.zeros(len(ids), 1, 1, ids.shape[1])
        for layer in self.layers:
            x = layer(x, bias)
            bias = x.mean(2)[:, None, None, :]
        return x


class Cache(Encoder):
    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x, real[:, None, None, :], cache=object())
        return x

    class Cached(Layer):
        def forward(self, x: Tensor, mask: Tensor | None = None, cache: object = None) -> Tensor:
            return super().forward(x, mask)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Cached(DIM, HEADS, HIDDEN) for _ in range(3))


class HookOnAll(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, args, output: output)


class ReplacedForward(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.forward = super().forward


class Pooled(Encoder):
    def end(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Alone(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.layers = self.layers[:1]


REFUSALS = {
    ScaleBetween: "between its layers 1 and 2",
    InPlaceBetween: "between its layers 1 and 2",
    ScaleAtTheEnd: "after its last layer",
    TwoArguments: "after its last layer",
    Noise: "same in each run",
    Narrow: r"last hidden state \(B, N, D\)",
    FromLayerToLayer: "unlike layer 2",
    Cache: "layer 1 a object",
    HookOnAll: "hooks on the encoder",
    ReplacedForward: "that of the instance was replaced",
    Pooled: "last hidden state",
    Alone: "at least 2 layers",
}


@pytest.mark.parametrize("build", REFUSALS)
def test_what_stages_would_lose_is_refused_by_name(build: type[Encoder]) -> None:
    model = build()
    with pytest.raises(UnsupportedHost, match=REFUSALS[build]):
        staged_bert(model, classes=2)
    assert all(
        module.training and len(module._forward_hooks) == (module is model) * (build is HookOnAll)
        for module in model.modules()
    )


@pytest.mark.parametrize("what", [nn.Linear(2, 2), "bert", None])
def test_what_is_no_encoder_is_refused(what: object) -> None:
    with pytest.raises(UnsupportedHost, match="staged_bert cannot be applied"):
        staged_bert(what, classes=2)


# --- Inputs


BAD_INPUTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no mask": (lambda x: {"ids": x["ids"]}, "inputs must be a dict of 'ids'"),
    "no dict": (lambda x: x["ids"], "inputs must be a dict of 'ids'"),
    "an input that layers may read": (lambda x: x | {"entity_ids": x["ids"]}, r"got \['entity_ids'\]"),
    "a mask of integers": (lambda x: x | {"real": x["real"].long()}, r"use mask\.bool"),
    "ids of floats": (lambda x: x | {"ids": x["ids"].float()}, "ids must hold integers"),
    "a mask of another shape": (lambda x: x | {"real": x["real"][:, :1]}, "same shape"),
    "no tokens": (lambda x: {name: t[:, :0] for name, t in x.items()}, "at least one sample and one token"),
    "an empty batch": (lambda x: {name: t[:0] for name, t in x.items()}, "empty"),
    "a text of padding": (lambda x: x | {"real": x["real"] & torch.tensor([[True], [False]])}, r"samples \[1\]"),
}


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_bad_inputs_are_named(what: str) -> None:
    bend, says = BAD_INPUTS[what]
    network = staged_bert(Encoder(), classes=2)
    with pytest.raises((TypeError, ValueError), match=says):
        EarlyExit(network, "confidence", 0.8)(bend(texts([6, 4])))


def test_one_token_and_one_text_are_enough() -> None:
    network = staged_bert(Encoder(), classes=2)
    assert EarlyExit(network, "confidence", 0.8)(texts([1])).shape == (1, 2)


def test_means_are_those_of_real_tokens_and_do_not_overflow() -> None:
    x = torch.full((1, 4, 2), 3e4, dtype=torch.float16)
    assert mean_pool(x, torch.tensor([[True, True, True, False]])).tolist() == [[30000.0, 30000.0]]
    assert mean_pool(x).dtype == torch.float16
    x[0, 3] = torch.nan
    assert mean_pool(x, torch.tensor([[True, True, True, False]])).tolist() == [[30000.0, 30000.0]]
    with pytest.raises(ValueError, match=r"samples \[0\]"):
        mean_pool(x, torch.zeros(1, 4, dtype=torch.bool))


@pytest.mark.parametrize("classes", [0, 1, 2.0])
def test_a_number_of_classes_that_tells_nothing_apart_is_refused(classes: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="classes must be an integer"):
        staged_bert(Encoder(), classes)


# --- Copies, threads, compilation


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda runner: pickle.loads(pickle.dumps(runner))])
@torch.no_grad()
def test_copies_are_independent(copied: Callable[[EarlyExit], EarlyExit]) -> None:
    model = of_transformers("MPNetModel", ROBERTA)
    runner = EarlyExit(bold(staged_bert(model, classes=3)), "confidence", 0.6)
    inputs = texts([9, 5, 7, 2], pad=1)
    expected = runner(inputs)
    twin = copied(runner)
    for p in model.parameters():
        p.zero_()
    torch.testing.assert_close(twin(inputs), expected, rtol=0, atol=0)
    assert not torch.allclose(runner(inputs), expected)


@torch.no_grad()
def test_threads_that_share_a_runner_get_their_own_answers() -> None:
    runner = EarlyExit(bold(staged_bert(Encoder(), classes=3)), "confidence", 0.5)
    batches = [texts([9, 5, 7, 2][: n + 1], seed=n) for n in range(4)]
    expected = [runner(batch) for batch in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            wrong.extend(i for _ in range(15) if not torch.equal(runner(batches[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@torch.no_grad()
def test_compiled_stages_decide_alike() -> None:
    runner, inputs = EarlyExit(bold(staged_bert(Encoder(), classes=3)), "confidence", 0.5), texts([9, 5, 7, 2])
    expected, left = runner(inputs), runner.left
    torch.testing.assert_close(torch.compile(runner, backend="eager")(inputs), expected)
    assert runner.left.tolist() == left.tolist()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_capturing_a_graph_is_refused() -> None:
    network, inputs = staged_bert(Encoder(), classes=3), texts([4, 2])
    for module in (network, EarlyExit(network, "confidence", 0.5)):
        with pytest.raises(NotImplementedError, match="cannot be captured as a graph"):
            torch.export.export(module, (inputs,))
        with pytest.raises(NotImplementedError, match="cannot be captured as a graph"):
            torch.jit.trace(module, (inputs,))


@torch.no_grad()
def test_an_encoder_in_stages_costs_what_it_costs() -> None:
    network, tokens = staged_bert(Encoder(), classes=3), 8
    macs = count_stages(network, texts([tokens] * 2))
    weights = 4 * DIM * DIM + 2 * DIM * HIDDEN
    assert macs.stages == (tokens * weights + 2 * tokens * tokens * DIM,) * 3
    assert batch_size(network.stages[0](texts([tokens] * 2))) == 2
    assert ramp_features(network, texts([tokens] * 2)).shape == (2, 3, DIM)
