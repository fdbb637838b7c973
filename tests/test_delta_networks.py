"""Delta networks of other people's models: every one exact, or refused by name; and what users do with them."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from reference_impls.accounting.count import count
from reference_impls.contract import UnsupportedHost
from reference_impls.layers.weights import randomise_parameters
from reference_impls.techniques.delta_convolution import DeltaConvolution
from reference_impls.techniques.delta_convolution.network import Plan
from reference_impls.techniques.delta_convolution.stages import Knobs
from tests import other_models
from tests.stream_models import UNet, YoloV3Tiny
from tests.support import generator, noise

DELTA = DeltaConvolution()
UPDATES = ("value", "delta")
SIDE = 64
TIMM = (
    "resnet18 resnet50 resnext50_32x4d densenet121 mobilenetv2_100 mobilenetv3_small_100 efficientnet_b0 "
    "efficientnet_lite0 regnety_002 convnext_atto vgg11_bn ghostnet_100 repvgg_a0 cspdarknet53 hrnet_w18_small"
)
TORCHVISION = (
    "resnet18 resnext50_32x4d densenet121 mobilenet_v2 mobilenet_v3_small efficientnet_b0 regnet_y_400mf convnext_tiny "
    "vgg11_bn squeezenet1_1 shufflenet_v2_x1_0 mnasnet0_5 googlenet fcn_resnet50"
)


class Unfilled(TorchFunctionMode):
    """Networks are built without drawing their weights, which for some takes longer than all else here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def filled(network: nn.Module) -> nn.Module:
    """Random weights, statistics of batch norms unlike those of a new network, and evaluation mode."""
    pool = torch.randn(2**16, generator=generator())
    for name, x in network.state_dict().items():
        if x.is_floating_point():
            some = pool.repeat(x.numel() // len(pool) + 1)[: x.numel()].view(x.shape)
            if name.endswith("running_var"):
                x.copy_(0.5 + some.abs())
            elif x.dim() > 1:
                x.copy_(some * x[0].numel() ** -0.5)
            else:
                x.copy_(0.1 * some + (1.0 if name.endswith("weight") else 0.0))
    return network.eval().requires_grad_(False)


def of_timm(name: str) -> nn.Module:
    options = {"vgg11_bn": {"mlp_ratio": 1 / 64}}  # of the head, which holds nine tenths of the parameters
    return other_models.timm_network(name, **options.get(name, {}))


def of_torchvision(name: str) -> nn.Module:
    models = other_models.torchvision().models
    if name == "fcn_resnet50":
        return models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)
    return getattr(models, name)(weights=None, **({"init_weights": False} if name == "googlenet" else {}))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"timm {name}": partial(of_timm, name) for name in TIMM.split()},
    **{f"torchvision {name}": partial(of_torchvision, name) for name in TORCHVISION.split()},
    "U-Net": UNet,
    "YOLOv3-tiny": YoloV3Tiny,
}


def clip(frames: int = 3, side: int = SIDE, seed: int = 0) -> list[Tensor]:
    """A square that moves over a still background, then a frame that stays."""
    background = noise(1, 3, side, side, seed=seed, dtype=torch.float32)
    moved = [background]
    for t in range(frames - 1):
        moved.append(background.clone())
        moved[-1][..., 8 * t : 8 * t + 12, 10 * t : 10 * t + 12] += 1
    return [*moved, moved[-1].clone()]


def difference(actual: Any, expected: Any) -> float:
    """Largest difference between results of any structure, relative to the largest magnitude of each tensor."""
    (a, form), (b, other) = pytree.tree_flatten(actual), pytree.tree_flatten(expected)
    assert form == other
    largest = 0.0
    for x, y in zip(a, b, strict=True):
        if isinstance(y, Tensor):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            largest = max(largest, float((x.double() - y.double()).abs().max() / y.double().abs().max()))
        else:
            assert x == y
    return largest


@torch.no_grad()
def error(model: nn.Module, frames: list[Tensor], **knobs: Any) -> float:
    """Largest difference of any frame's result from the model's own, at threshold 0 and always by tiles."""
    with DELTA.apply(model, **({"threshold": 0.0, "min_profitable": 0.0} | knobs)) as handle:
        return max(difference(handle.target(frame), model(frame)) for frame in frames)


# --------------------------------------------------------------------------------------------------------------------
# Networks


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_follows_a_stream_exactly_and_for_less(name: str) -> None:
    with Unfilled(), patch.object(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor):
        model = NETWORKS[name]()
    frames = clip(2)
    with count() as tally:
        expected = [filled(model)(frames[0])]
    dense = tally.macs * len(frames)
    expected += map(model, frames[1:])
    with DELTA.apply(model, threshold=0.0, min_profitable=0.0) as handle, count() as tally:
        results = [handle.target(frame) for frame in frames]
        assert dense - tally.macs == DELTA.saving(model, frames, handle.trace) > 0
    assert difference(results[0], expected[0]) <= 1e-6
    assert max(map(difference, results, expected)) <= 1e-4
    differences = Plan(handle.target.plan.recorded, frames[0], Knobs(0.0, 8, 0.0, "delta"))
    results = [differences.begin(frames[0]), *map(differences.step, frames[1:])]
    assert differences.work()[0] == 0, "a frame that stays as it was costs nothing"
    assert max(map(difference, results, expected)) <= 1e-4


# --------------------------------------------------------------------------------------------------------------------
# Look-alikes: exact, or refused with their name


def does(forward: Callable[..., Any], **parts: nn.Module) -> nn.Module:
    """A module with this method `forward` and these children."""
    module = type("Does", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        module.add_module(name, part)
    return module.eval()


def conv(channels: int = 3, out: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, **options)


def overwritten(self: Any, x: Tensor) -> Tensor:
    """The shortcut reads what the activation overwrote."""
    x = self.stem(x)
    return self.conv(self.relu(x)) + x


def written_through_a_view(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    x[:, 1:3, 2:-2].mul_(2).add_(self.conv(x)[:, :2, 2:-2])
    return x


def with_weight_norm(weight_norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(weight_norm(conv()), nn.ReLU(), weight_norm(conv(4, 5)))


def hooked(register: str, hook: Callable[..., Any]) -> nn.Module:
    model = nn.Sequential(conv(), nn.ReLU(), conv(4, 5))
    getattr(model[1], register)(hook)
    return model


def scaled(value: float) -> nn.Module:
    """A parametrised weight."""
    model = nn.Sequential(conv())
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", does(lambda self, w: w * value))
    return model


Both = namedtuple("Both", "first rest")
LOOK_ALIKES: dict[str, Callable[[], nn.Module]] = {
    "in place before a shortcut": lambda: does(overwritten, stem=conv(3, 8), relu=nn.ReLU(True), conv=conv(8, 8)),
    "written through a view": lambda: does(written_through_a_view, stem=conv(), conv=conv(4, 4)),
    "frame overwritten": lambda: does(lambda self, x: self.conv(x.sub_(0.5).div_(2)) + x, conv=conv(3, 3)),
    "filled from zeros": lambda: does(lambda self, x: F.pad(torch.zeros_like(x).add_(x)[..., :-1], (1, 0))),
    "sum of a map and rows": lambda: does(lambda self, x: self.a(x) + self.b(x), a=conv(), b=nn.Conv2d(3, 4, (64, 1))),
    "sum of a map and one channel": lambda: does(lambda self, x: self.a(x) + self.b(x), a=conv(), b=conv(3, 1)),
    "weight norm": lambda: with_weight_norm(parametrizations.weight_norm),
    "old weight norm": lambda: with_weight_norm(nn.utils.weight_norm),
    "spectral norm": lambda: with_weight_norm(parametrizations.spectral_norm),
    "old spectral norm": lambda: with_weight_norm(nn.utils.spectral_norm),
    "parametrised": lambda: scaled(3.0),
    "pruned": lambda: nn.Sequential(prune.l1_unstructured(conv(), "weight", 0.5)),
    "hook after": lambda: hooked("register_forward_hook", lambda module, inputs, output: output * 2 + 1),
    "hook before": lambda: hooked("register_forward_pre_hook", lambda module, inputs: (inputs[0] - 0.3,)),
    "forward of the instance": lambda: replaced(nn.Sequential(conv(), nn.ReLU())),
    "subclass of a convolution": lambda: nn.Sequential(Doubled(3, 4, 3)),
    "convolution by weights": lambda: does(lambda self, x: F.conv2d(x, self.a.weight * 2, stride=2), a=conv()),
    "weights from the frame": lambda: does(lambda self, x: F.conv2d(x, x[..., :3].mean() * self.a.weight), a=conv()),
    "shared layer": lambda: does(lambda self, x: self.a(self.a(x).relu_()), a=conv(3, 3)),
    "dictionary": lambda: does(lambda self, x: {"a": self.a(x), "b": [x.mean((2, 3)), x]}, a=conv()),
    "named tuple": lambda: does(lambda self, x: Both(self.a(x), (x * 2, None)), a=conv()),
    "constant result": lambda: does(lambda self, x: (self.a(x), self.a.weight.sum()), a=conv()),
    "arg max": lambda: does(lambda self, x: self.a(x).argmax(1), a=conv()),
    "dropout at rest": lambda: nn.Sequential(conv(), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), conv(4, 2)),
    "scripted": lambda: torch.jit.script(nn.Sequential(conv(), nn.ReLU(), conv(4, 2))),
    "transformer": lambda: does(
        lambda self, x: self.b(self.a(x).flatten(2).transpose(1, 2)), a=nn.Conv2d(3, 8, 8, 8),
        b=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    ),
    "one dimension": lambda: does(lambda self, x: self.a(x.flatten(2)), a=nn.Conv1d(3, 4, 3)),
    "three dimensions": lambda: does(lambda self, x: self.a(x[:, None]), a=nn.Conv3d(1, 4, 3)),
}  # fmt: skip


class Doubled(nn.Conv2d):
    """It looks like a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def replaced(model: nn.Module) -> nn.Module:
    model[1].forward = lambda x: x.abs()
    return model


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_looks_like_something_else_is_exact(name: str, update: str) -> None:
    torch.manual_seed(0)
    model = LOOK_ALIKES[name]().eval()
    assert error(model, clip(5), update=update) <= 1e-5
    frames = [torch.cat(pair) for pair in zip(clip(4), clip(4, seed=1), strict=True)]
    assert error(model, frames, update=update) <= 1e-5


class Remembers(nn.Module):
    """It adds what it saw before."""

    def __init__(self, attribute: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 3, 1, 1))
        self.attribute, self.before = attribute, 0

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.seen + self.before
        if self.attribute:
            self.before = x
        else:
            self.seen += 1
        return x


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "random numbers": (lambda: does(lambda self, x: F.dropout(x)), "without random numbers: aten::bernoulli"),
    "noise": (lambda: does(lambda self, x: x + torch.randn(3, 1, 1)), "without random numbers: aten::randn"),
    "decides by values": (
        lambda: does(lambda self, x: x if x.sum() > 0 else -x),
        "by the values of a frame: aten::_local",
    ),
    "selects by values": (lambda: does(lambda self, x: x[x > 0]), "by the values of a frame: aten::"),
    "reads in numpy": (lambda: does(lambda self, x: x * float(x.numpy().max())), "by the values of a frame: numpy"),
    "state in a buffer": (lambda: Remembers(False), "writes to nothing but new tensors.*aten::add_"),
    "state in an attribute": (lambda: Remembers(True), "the same with every frame|it differs"),
    "counts its calls": (lambda: does(counted), "it differs"),
    "hook that looks": (lambda: hooked("register_forward_hook", lambda *_: None), "one of '1' only looks"),
    "circular padding": (lambda: conv(padding_mode="circular"), "aten::copy_"),
    "two inputs": (lambda: does(lambda self, x, y: x + y), "one input"),
    "no frames": (lambda: nn.Embedding(5, 3), "runs on frames of shape"),
    "boxes": (lambda: does(lambda self, x: Boxes(x)), "it returns a Boxes"),
    "training": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(4).train()), r"model\.eval\(\)"),
}


class Boxes:
    def __init__(self, x: Tensor) -> None:
        self.x = x


def counted(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return x * self.calls


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(name: str) -> None:
    build, says = REFUSED[name]
    model = build()
    model = model if name == "training" else model.eval()
    with pytest.raises(UnsupportedHost, match=says):
        DELTA.apply(model)


def test_a_model_for_one_size_of_frames_is_told_it() -> None:
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(4 * 20 * 20, 2)).eval()
    with pytest.raises(UnsupportedHost, match="frame_shape="):
        DELTA.apply(model)
    assert error(model, clip(3, 20), frame_shape=(1, 3, 20, 20)) <= 1e-5
    with pytest.raises(ValueError, match=r"does not run on frames of shape \(1, 3, 24, 24\)"):
        DELTA.apply(model, frame_shape=(1, 3, 20, 20)).target(clip(1, 24)[0])


def test_a_rebuilt_network_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from reference_impls.techniques.delta_convolution.layers import Convolution

    linear = Convolution.linear
    monkeypatch.setattr(Convolution, "linear", lambda self, windows, bias: linear(self, windows, bias) * 1.01)
    with pytest.raises(UnsupportedHost, match="rebuilt, it differs"):
        DELTA.apply(conv().eval())


# --------------------------------------------------------------------------------------------------------------------
# Precision, and what users do with a delta network


def small() -> nn.Module:
    torch.manual_seed(0)
    return filled(
        nn.Sequential(
            conv(3, 8),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            conv(8, 8, groups=2),
            nn.Upsample(scale_factor=2),
        )
    )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_model_in_another_precision_follows_its_stream(dtype: torch.dtype, scale: float) -> None:
    model, frames = small().to(dtype), [(frame * scale).to(dtype) for frame in clip(5)]
    rounding = 4 * torch.finfo(dtype).eps
    assert error(model, frames) <= rounding
    handle, wide = (DELTA.apply(m, threshold=0.05, min_profitable=0.0) for m in (model, small()))
    for frame in frames:
        assert difference(handle.target(frame).float(), wide.target(frame.float())) <= 0.05
    if dtype is torch.float64:
        assert error(model, frames, update="delta") <= 1e-12
    else:
        with pytest.raises(UnsupportedHost, match="float32 or float64"):
            DELTA.apply(model, update="delta")


@torch.no_grad()
def test_autocast_is_followed_as_the_model_does() -> None:
    model, frames = small(), clip(5)
    with DELTA.apply(model, threshold=0.0, min_profitable=0.0) as handle:
        with torch.autocast("cpu", torch.bfloat16):
            for frame in frames:
                expected = model(frame)
                assert expected.dtype == torch.bfloat16
                assert difference(handle.target(frame), expected) <= 2**-6
        with pytest.raises(ValueError, match=r"call reset\(\)"):
            handle.target(frames[0])
        handle.reset()
        assert difference(handle.target(frames[0]), model(frames[0])) <= 1e-6
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UnsupportedHost, match="without autocast"):
        DELTA.apply(model, threshold=0.0, update="delta").target(frames[0])


@pytest.mark.parametrize("when", range(5))
def test_a_frame_with_nan_is_named_at_any_time(when: int) -> None:
    frames = list(noise(5, 1, 3, 32, 32, dtype=torch.float32))  # each unlike the one before, so the network rests too
    frames[when][0, 1, 4, 5] = torch.nan
    handle = DELTA.apply(small(), threshold=0.0)
    for frame in frames[:when]:
        handle.target(frame)
    with pytest.raises(ValueError, match="not finite"):
        handle.target(frames[when])
    frames[when][0, 1, 4, 5] = 0.0
    assert difference(handle.target(frames[when]), small()(frames[when])) <= 1e-5


def pickled(network: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(network))


def saved(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("update", UPDATES)
def test_a_copy_follows_a_stream_of_its_own(copied: Callable[[nn.Module], nn.Module], update: str) -> None:
    model, frames, others = small(), clip(4), clip(4, 48, seed=1)
    network = DELTA.apply(model, threshold=0.0, update=update, min_profitable=0.0).target
    network(frames[0])
    second = copied(network)
    expected = [(model(a), model(b)) for a, b in zip(frames, others, strict=True)]
    for parameter in model.parameters():
        parameter.data.zero_()  # neither of them reads the original
    for a, b, (of_a, of_b) in zip(frames, others, expected, strict=True):
        assert difference(network(a), of_a) <= 1e-5
        assert difference(second(b), of_b) <= 1e-5


@torch.no_grad()
def test_moved_and_loaded_weights_start_a_new_stream() -> None:
    model, frames = small(), clip(3)
    network = DELTA.apply(model, threshold=0.0).target
    network(frames[0])
    network.double()
    assert difference(network(frames[1].double()), copy.deepcopy(model).double()(frames[1].double())) <= 1e-12
    other = randomise_parameters(small())
    network.load_state_dict({f"model.{name}": value for name, value in other.state_dict().items()})
    assert difference(network(frames[1].double()), other.double()(frames[1].double())) <= 1e-12
    with pytest.raises(ValueError, match="eval mode"):
        network.train()(frames[1].double())


def test_two_threads_cannot_share_a_stream() -> None:
    inside, leave = threading.Event(), threading.Event()
    network = DELTA.apply(small(), threshold=0.0).target
    frame = clip(1)[0]
    step, refused = network._next, []

    def slow(x: Tensor) -> Tensor:
        inside.set()
        leave.wait(10)
        return step(x)

    network._next = slow
    thread = threading.Thread(target=network, args=(frame,))
    thread.start()
    inside.wait(10)
    with pytest.raises(RuntimeError, match="once for each stream"):
        network(frame)
    leave.set()
    thread.join()
    assert not refused
    assert difference(network(frame), small()(frame)) <= 1e-5


@torch.no_grad()
def test_streams_in_threads_of_their_own_are_right() -> None:
    model, wrong = small(), []

    def follow(seed: int) -> None:
        frames = clip(6, 32 + 8 * seed, seed)
        if error(model, frames) > 1e-5:
            wrong.append(seed)

    threads = [threading.Thread(target=follow, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_stream_begun_in_inference_mode_goes_on_outside_of_it() -> None:
    model, frames = small(), clip(4)
    network = DELTA.apply(model, threshold=0.0).target
    with torch.inference_mode():
        network(frames[0].clone())
    for frame in frames[1:]:
        result = network(frame.requires_grad_())
        assert not result.requires_grad
        assert difference(result, model(frame).detach()) <= 1e-5


def test_applying_neither_changes_the_model_nor_counts() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with count() as tally:
        DELTA.apply(model)
    assert tally.macs == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_are_named_by_their_modules() -> None:
    with DELTA.apply(UNet().eval(), threshold=0.0) as handle:
        handle.target(clip(1)[0])
        names = handle.trace["layers"]
    assert {"down.0.0", "up.0", "join.2.2", "classifier"} <= set(names)


def test_a_frame_that_holds_nothing_is_named() -> None:
    with pytest.raises(ValueError, match="frame holds nothing"):
        DELTA.apply(small()).target(torch.zeros(0, 3, 32, 32))
