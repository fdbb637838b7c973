"""EfficientFormerV2 beyond what it shares with the first version (`test_efficientformer.py`)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference_impls.accounting.closed_form import Footprint, closed_form
from reference_impls.accounting.count import count
from reference_impls.benchmarks.compact_networks.networks_fashion import SIDE, mobilenet, multiplier_for
from reference_impls.experiments.efficientformer_v2 import NANO, TECHNIQUE
from reference_impls.layers.residual import FeedForward
from reference_impls.layers.weights import randomise_parameters
from reference_impls.models.mobilenet_v2 import MobileNetV2, scaled
from reference_impls.techniques import efficientformer_v2
from reference_impls.techniques.efficientformer_v2 import Config, build, load_timm
from reference_impls.techniques.stride_attention import MapAttention
from tests.network_cases import NetworkCases, check_counts
from tests.other_models import timm_network
from tests.support import assert_close, noise, parameters

CASES = NetworkCases(TECHNIQUE, lambda: build(NANO, 10, img_size=128))

# parameters with both heads, with one, for deployment; MACs at 224 pixels with both heads
COUNTS = {
    "s0": (3_600_256, 3_423_256, 3_373_944, 395_892_544),
    "s1": (6_185_560, 5_960_560, 5_889_648, 651_969_640),
    "s2": (12_710_112, 12_421_112, 12_299_320, 1_246_863_952),
    "l": (26_322_288, 25_937_288, 25_740_864, 2_552_546_880),
}


def macs_by_hand(config: Config, classes: int = 1000) -> int:
    """The MACs of a published network with both heads at 224 pixels, written out."""
    c, n = config.widths, [(224 // stride) ** 2 for stride in (4, 8, 16, 32)]
    total = 9 * (3 * c[0] // 2 * 4 + c[0] // 2 * c[0]) * n[0] + 2 * classes * c[3]
    total += sum(9 * c[j - 1] * c[j] * n[j] for j in (1, 2, 3))
    for j, ratios in enumerate(config.ratios):
        total += sum((2 * c[j] + 9) * int(ratio * c[j]) * n[j] for ratio in ratios)
    keys, values, heads = 256, 1024, 8
    products = (2 * heads**2 + keys + values) * n[3] ** 2  # both attentions see 49 positions
    shared = (2 * keys + values) * n[3]
    strided = 9 * c[2] * n[3] + c[2] * shared + 9 * values * n[3] + products + values * c[2] * n[2]
    last = c[3] * shared + 9 * values * n[3] + products + values * c[3] * n[3]
    total += config.attention[2] * strided + config.attention[3] * last
    keys, values = 128, 512  # the attention from the last stage but one to the last
    total += (9 + keys) * c[2] * n[3] + (keys + values) * c[2] * n[2] + 9 * values * n[3]
    return total + (keys + values) * n[3] * n[2] + values * c[3] * n[3]


# --------------------------------------------------------------------------------------------------------------------
# Counts and shapes


@pytest.mark.parametrize("variant", COUNTS)
def test_counts_of_every_variant(variant: str) -> None:
    check_counts(efficientformer_v2, variant, *COUNTS[variant])
    assert macs_by_hand(efficientformer_v2.VARIANTS[variant]) == COUNTS[variant][-1]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("s0", (19.9, 213.2, 112.6, 26.4, 23.5, 0.35)),
        ("s1", (19.9, 433.1, 137.9, 32.9, 27.9, 0.45)),
        ("s2", (19.9, 810.4, 334.4, 49.0, 32.6, 0.58)),
        ("l", (29.4, 1745.4, 653.4, 82.2, 41.4, 0.77)),
    ],
)
def test_where_the_macs_go(variant: str, expected: tuple[float, ...]) -> None:
    with torch.device("meta"):
        parts = build(variant).parts((224, 224))
    assert tuple(part.macs / 1e6 for part in parts.values()) == pytest.approx(expected, abs=0.05)


def test_closed_forms_of_the_blocks() -> None:
    def macs(channels: int, side: int, **options: object) -> int:
        return closed_form(MapAttention(channels, (side, side), **options), (channels, side, side)).macs

    with torch.device("meta"):
        assert macs(96, 14, stride=2) == 30_367_456
        assert macs(176, 7) == 25_909_632
        assert macs(96, 14) == 104_065_024
        assert macs(96, 14, stride=2) - macs(96, 14, stride=2, project_first=True) == 1024 * 96 * (196 - 49)
        d, h, positions = 96, 384, 196
        parts = closed_form(FeedForward(d, h, local=True), (d, 14, 14))
    assert parts == Footprint(2 * d * h + 9 * h + 6 * h + 3 * d, (2 * d * h + 9 * h) * positions)


def test_shapes_of_the_stages() -> None:
    with torch.device("meta"):
        network = build("l", features_only=True).eval()
        maps = network(torch.empty(2, 3, 224, 320))
    assert [tuple(x.shape[1:]) for x in maps] == [(40, 56, 80), (80, 28, 40), (192, 14, 20), (384, 7, 10)]
    assert network.macs((224, 224)) == COUNTS["l"][3] - 2 * 384 * 1000


# --------------------------------------------------------------------------------------------------------------------
# Options


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"mixer": "depthwise"},
        {"mixer": "mean"},
        {"mixer": "none"},
        {"strides": (1, 1, 1, 1)},
        {"strides": (1, 1, 4, 2)},
        {"project_first": True},
        {"dual_path": False},
        {"img_size": (64, 96)},
    ],
    ids=str,
)
def test_every_option_has_its_closed_form(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = randomise_parameters(build(NANO, 10, **{"img_size": 64} | options)).eval()
    with count() as tally:
        logits = network(noise(2, 3, 64, 96).float())
    assert logits.shape == (2, 10)
    assert tally.macs == 2 * network.macs((64, 96))
    assert closed_form(network, (3, 64, 96)).parameters == parameters(network)
    torch.testing.assert_close(network.fuse()(noise(2, 3, 64, 96).float()), logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_projecting_first_is_another_function_but_for_the_activation() -> None:
    torch.manual_seed(0)
    late = randomise_parameters(build(NANO, 10, img_size=64)).double().eval()
    early = build(NANO, 10, img_size=64, project_first=True).double().eval()
    early.load_state_dict(late.state_dict())
    x = noise(2, 3, 64, 64)
    assert not torch.allclose(early(x), late(x))
    for network in (early, late):
        for module in network.modules():
            if hasattr(module, "project_first"):
                module.act = nn.Identity()
    torch.testing.assert_close(early(x), late(x), rtol=1e-10, atol=1e-10)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"every block needs an expansion ratio"):
        build("s0", ratios=((4,), (4,), (4,), (4,)))
    with pytest.raises(ValueError, match="no mixer is called 'max'; there are: attention, depthwise, mean, none"):
        build("s0", mixer="max")


# --------------------------------------------------------------------------------------------------------------------
# Other resolutions


def test_weights_of_another_resolution_are_refused() -> None:
    with torch.device("meta"):
        weights = {
            k.replace(".bias.table", ".attention_biases"): v for k, v in build("s0", img_size=256).state_dict().items()
        }
        with pytest.raises(ValueError, match=r"5 of another shape: .*bias\.table \(8, 64\) instead of \(8, 49\)"):
            load_timm(build("s0"), weights)
        load_timm(build("s0", img_size=256), weights)


# --------------------------------------------------------------------------------------------------------------------
# timm as an oracle


@torch.no_grad()
@pytest.mark.parametrize(("variant", "size"), [("s0", 224), ("s0", 64), ("s1", 96), ("s2", 64), ("l", 64)])
def test_equals_timm(variant: str, size: int) -> None:
    theirs = timm_network(f"efficientformerv2_{variant}", img_size=size)
    torch.manual_seed(0)
    ours = build(variant, img_size=size)
    load_timm(ours, randomise_parameters(theirs).state_dict())
    x = noise(2, 3, size, size)
    assert_close(ours.eval()(x.float()), theirs(x.float()), 1e-5)
    ours, theirs = ours.double(), theirs.double()
    assert_close(ours(x), theirs(x), 1e-10)
    theirs.set_distilled_training(True)
    rates = [[m.drop_prob for m in block.modules() if hasattr(m, "drop_prob")] for block in blocks(theirs)]
    for block, found in zip(blocks(ours), rates, strict=True):
        if found:  # timm rounds its rates to single precision
            assert block.drop_path.rate == pytest.approx(found[0], rel=1e-6)
            block.drop_path.rate = found[0]
    pairs = []
    for network in (theirs.train(), ours.train()):
        torch.manual_seed(0)  # for drop path
        pairs.append(network(x))
    for a, b in zip(*pairs, strict=True):
        assert_close(b, a, 1e-10)


def blocks(network: nn.Module) -> list[nn.Module]:
    return [block for stage in network.stages for block in stage.blocks]


# --------------------------------------------------------------------------------------------------------------------
# What it is compared with


@pytest.mark.parametrize(
    ("multiplier", "expected", "fused", "macs"),
    [(1.0, 3_504_872, 3_487_816, 300_774_272), (1.4, 6_108_776, 6_084_808, 582_195_824)],
)
def test_counts_of_mobilenet_v2(multiplier: float, expected: int, fused: int, macs: int) -> None:
    with torch.device("meta"):
        network = MobileNetV2(multiplier).eval()
        with count() as tally, torch.no_grad():
            assert network(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
        assert parameters(network.fuse()) == fused
    assert parameters(network) == closed_form(network, (3, 224, 224)).parameters == expected
    assert tally.macs == macs == closed_form(network, (3, 224, 224)).macs


@torch.no_grad()
def test_mobilenet_v2_for_small_images() -> None:
    for macs in (600_000, 1_700_000, 4_000_000):
        network = mobilenet(multiplier_for(macs)).eval()
        with count() as tally:
            assert network(torch.zeros(1, 1, SIDE, SIDE)).shape == (1, 10)
        assert tally.macs == closed_form(network, (1, SIDE, SIDE)).macs == pytest.approx(macs, rel=0.15)


def test_widths_of_mobilenet_v2() -> None:
    assert scaled(32, 0.1, step=4) == 4
    assert [scaled(width, 0.35) for width in (32, 16, 24)] == [16, 8, 8]
    assert [scaled(width, 1.4) for width in (32, 16, 96, 1280)] == [48, 24, 136, 1792]


@torch.no_grad()
@pytest.mark.parametrize("multiplier", [1.0, 1.4])
def test_mobilenet_v2_equals_timms(multiplier: float) -> None:
    theirs = timm_network(f"mobilenetv2_{round(100 * multiplier)}")
    torch.manual_seed(0)
    state, ours = randomise_parameters(theirs).state_dict(), MobileNetV2(multiplier).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)))
    x = noise(2, 3, 64, 64).float()
    assert_close(ours(x), theirs(x), 1e-5)
    assert_close(ours.fuse()(x), theirs(x), 1e-4)
