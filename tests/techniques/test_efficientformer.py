"""EfficientFormer, and the skeleton of both versions: exact sizes, refusals, timm, deployment, fewer pixels."""

from __future__ import annotations

import copy
import io
import re
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.contract import UnsupportedHost
from reference_impls.experiments import efficientformer as experiment
from reference_impls.experiments import efficientformer_v2 as experiment_v2
from reference_impls.layers.attention import PositionBias
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.residual import DropPath, LayerScale
from reference_impls.layers.weights import randomise_parameters
from reference_impls.redundancy.over_resolution import coarsen, coarsest, kept_detail
from reference_impls.techniques import efficientformer, efficientformer_v2
from reference_impls.techniques.efficientformer.skeleton import TwoHeads, fitted, smaller_sizes
from tests.network_cases import NetworkCases, check_counts
from tests.other_models import timm_network
from tests.support import assert_close, generator, noise, parameters

CASES = NetworkCases(experiment.TECHNIQUE, lambda: efficientformer.build(experiment.NANO, 10, img_size=128))
VERSIONS = {"v1": (efficientformer, experiment), "v2": (efficientformer_v2, experiment_v2)}

# parameters with both heads, with one, for deployment; MACs at 224 pixels with both heads
COUNTS = {
    "l1": (12_289_928, 11_840_928, 11_809_008, 1_291_284_736),
    "l3": (31_406_000, 30_893_000, 30_834_568, 3_906_573_312),
    "l7": (82_229_328, 81_460_328, 81_370_952, 10_119_325_696),
}


def macs_by_hand(config: efficientformer.Config, classes: int = 1000) -> int:
    """The MACs of a published network with both heads at 224 pixels, written out."""
    c, n = config.widths, [(224 // stride) ** 2 for stride in (4, 8, 16, 32)]
    total = 9 * (3 * c[0] // 2 * 4 + c[0] // 2 * c[0]) * n[0] + 2 * classes * c[3]
    total += sum(9 * c[j - 1] * c[j] * n[j] for j in (1, 2, 3))
    total += sum(depth * 2 * 4 * c[j] ** 2 * n[j] for j, depth in enumerate(config.depths))
    attention = (256 + 256 + 1024 + 1024) * c[3] * n[3] + (256 + 1024) * n[3] ** 2  # 8 heads: queries, keys, values
    return total + config.attention[3] * attention


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> ModuleType:
    return VERSIONS[request.param][0]


@pytest.fixture
def nano(version: ModuleType) -> TwoHeads:
    """A small network with two heads for colour images of 64 pixels, as after training, in double precision."""
    return make(version)


def make(version: ModuleType, **options: object) -> TwoHeads:
    config = next(e.NANO for v, e in VERSIONS.values() if v is version)
    torch.manual_seed(0)
    return randomise_parameters(version.build(config, 10, **{"img_size": 64} | options)).double().eval()


def photos(size: int = 64, batch: int = 2) -> Tensor:
    return noise(batch, 3, size, size)


# --------------------------------------------------------------------------------------------------------------------
# Counts and shapes


@pytest.mark.parametrize("variant", COUNTS)
def test_counts_of_every_variant(variant: str) -> None:
    check_counts(efficientformer, variant, *COUNTS[variant])
    assert macs_by_hand(efficientformer.VARIANTS[variant]) == COUNTS[variant][-1]


def test_where_the_macs_go() -> None:
    with torch.device("meta"):
        parts = efficientformer.build("l1").parts((224, 224))
    parts = {k: round(v.macs / 1e6, 1) for k, v in parts.items()}
    assert parts == {"stem": 40.6, "feed-forward": 1075.8, "mixers": 59.3, "downsampling": 114.7, "heads": 0.9}


def test_shapes_of_the_stages() -> None:
    with torch.device("meta"):
        network = efficientformer.build("l3", features_only=True).eval()
        maps = network(torch.empty(2, 3, 224, 224))
    assert [tuple(x.shape) for x in maps] == [(2, 64, 56, 56), (2, 128, 28, 28), (2, 320, 14, 14), (2, 512, 7, 7)]
    assert network.macs((224, 224)) == COUNTS["l3"][3] - 2 * 512 * 1000


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 64, 96])
def test_closed_form_at_every_size(nano: TwoHeads, version: ModuleType, size: int) -> None:
    for network in (nano, nano.fuse(), make(version, features_only=True)):
        with count() as tally:
            network(photos(size))
        assert tally.macs == 2 * network.macs((size, size))


def test_attention_in_two_stages_flattens_twice() -> None:
    torch.manual_seed(0)
    config = efficientformer.Config((8, 8, 16, 16), (1, 1, 2, 2), (0, 0, 1, 2), heads=2, key_dim=4, img_size=64)
    network = efficientformer.build(config, 10).eval()
    with count() as tally, torch.no_grad():
        maps = network.forward_stages(photos().float())
        network(photos().float())
    assert [x.shape[2] for x in maps] == [16, 8, 4, 2]
    assert tally.macs == 4 * network.macs((64, 64)) - 2 * 2 * 16 * 10
    assert closed_form(network, (3, 64, 64)).parameters == parameters(network)


# --------------------------------------------------------------------------------------------------------------------
# Heads, drop path, layer scale, modes


def test_two_heads(nano: TwoHeads, version: ModuleType) -> None:
    pooled = nano.pool(nano.forward_stages(photos())[-1])
    torch.testing.assert_close(nano(photos()), (nano.head(pooled) + nano.head_dist(pooled)) / 2)
    first, second = nano.train()(photos())
    assert first.shape == second.shape == (2, 10)
    assert not torch.equal(first, second)
    assert isinstance(make(version, distillation=False).train()(photos()), Tensor)


@torch.no_grad()
def test_without_classes_the_heads_pass_on_the_features(nano: TwoHeads, version: ModuleType) -> None:
    network, x = version.build(nano.config, num_classes=0).double().eval(), photos()
    network.load_state_dict({key: value for key, value in nano.state_dict().items() if not key.startswith("head")})
    features = nano.pool(nano.forward_stages(x)[-1])
    torch.testing.assert_close(network(x), features)
    torch.testing.assert_close(network.fuse()(x), features, rtol=1e-10, atol=1e-10)
    with count() as tally:
        network(x)
    assert tally.macs == 2 * network.macs((64, 64))
    first, second = network.train()(x)
    assert torch.equal(first, second)


def test_modes_return_the_module(nano: TwoHeads) -> None:
    for module in nano.modules():
        assert module.eval() is module
        assert module.train() is module


def test_drop_path_grows_with_depth(version: ModuleType) -> None:
    network = make(version, drop_path=0.5)
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert rates == [i / 5 * 0.5 for i in range(6)]
    x = photos()
    assert torch.equal(network(x), make(version)(x)), "nothing is dropped in evaluation mode"


def test_drop_path_keeps_the_expectation() -> None:
    drop = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    torch.manual_seed(0)
    kept = drop(x)[:, 0, 0]
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x
    assert torch.equal(DropPath(1.0)(x), torch.zeros_like(x))


def test_every_branch_is_scaled(version: ModuleType) -> None:
    with torch.device("meta"):
        variant, branches = ("l1", 30) if version is efficientformer else ("s0", 18)
        scales = [m for m in version.build(variant).modules() if isinstance(m, LayerScale)]
    assert len(scales) == branches
    assert LayerScale(3)(torch.ones(1, 3, 2, 2)).unique().tolist() == pytest.approx([1e-5])
    gamma = LayerScale(3)
    nn.init.normal_(gamma.gamma)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(gamma(x).flatten(2).transpose(1, 2), gamma(x.flatten(2).transpose(1, 2)))


# --------------------------------------------------------------------------------------------------------------------
# Position biases


def test_biases_stretch_to_other_sizes() -> None:
    bias = PositionBias(2, (7, 7)).double()
    nn.init.normal_(bias.table)
    small, large = bias((4, 4)), bias((13, 13))  # every second distance, and the same distances with one in between
    assert small.shape == (2, 16, 16)
    torch.testing.assert_close(small[:, 0], bias.table.view(2, 7, 7)[:, ::2, ::2].flatten(1))
    torch.testing.assert_close(large[:, 0].view(2, 13, 13)[:, ::2, ::2].flatten(1), bias.table)
    assert torch.equal(bias((7, 7))[:, 0], bias.table)


@torch.no_grad()
def test_no_bias_is_stale(nano: TwoHeads, version: ModuleType) -> None:
    nano(photos())
    other = make(version)
    for name, x in other.state_dict().items():
        if name.endswith("bias.table"):
            x.add_(torch.randn(x.shape, generator=generator(2), dtype=x.dtype))
    assert not torch.equal(nano(photos()), other(photos()))
    nano.load_state_dict(other.state_dict())
    assert torch.equal(nano(photos()), other(photos()))


# --------------------------------------------------------------------------------------------------------------------
# What is refused


def test_the_first_version_takes_squares_only() -> None:
    with pytest.raises(ValueError, match="images must be square, got 64 x 32 pixels"):
        make(efficientformer)(photos()[..., :32])


def test_bad_configurations(version: ModuleType) -> None:
    with pytest.raises(ValueError, match="no variant is called 'l9'; there are: "):
        version.build("l9")
    with pytest.raises(ValueError, match="no option is called 'depth'; there are: widths, depths"):
        version.build(next(iter(version.VARIANTS)), depth=3)
    with pytest.raises(ValueError, match="img_size must be a multiple of 32"):
        make(version, img_size=100)
    with pytest.raises(ValueError, match="a network has 4 stages"):
        make(version, widths=(8, 16))
    with pytest.raises(ValueError, match="no more attention than blocks"):
        make(version, attention=(0, 0, 0, 9))


def test_foreign_weights_say_what_is_wrong(version: ModuleType) -> None:
    with torch.device("meta"):
        first, second, *_ = version.VARIANTS
        network, other = version.build(first), version.build(second).state_dict()
        with pytest.raises(ValueError, match=rf"do not fit; .*missing.*unexpected.*another shape.*variant '{second}'"):
            version.load_timm(network, as_timm(version, other))
        own = as_timm(version, network.state_dict())
        gone = {k: v for k, v in own.items() if k != "head.bias"}
        with pytest.raises(ValueError, match=rf"do not fit; 1 missing: head\.bias\. They look like variant '{first}'"):
            version.load_timm(network, gone)
        with pytest.raises(ValueError, match="1 unexpected: extra"):
            version.load_timm(network, own | {"extra": torch.empty(1)})
        with pytest.raises(ValueError, match=r"head\.weight \(10, \d+\) instead of \(1000, \d+\)"):
            version.load_timm(network, own | {"head.weight": own["head.weight"][:10]})
        with pytest.raises(ValueError, match="They are not of this family"):
            version.load_timm(network, {"conv.weight": torch.empty(1)})


def as_timm(version: ModuleType, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> timm's."""
    named = {}
    for name, value in state.items():
        name = name.replace(".bias.table", ".attention_biases")
        if version is efficientformer:
            name = re.sub(r"(downsample\.|stem\.|mlp\.)(conv|fc)([12]?)\.conv\.", r"\1\2\3.", name)
            name = re.sub(r"(downsample\.|stem\.|mlp\.)(?:conv|fc)([12]?)\.bn\.", r"\1norm\2.", name)
        named[name] = value
    return named


@torch.no_grad()
def test_weights_go_to_timms_names_and_back(nano: TwoHeads, version: ModuleType) -> None:
    other = make(version)
    for p in other.parameters():
        p.zero_()
    version.load_timm(other, as_timm(version, nano.state_dict()))
    assert torch.equal(other(photos()), nano(photos()))


# --------------------------------------------------------------------------------------------------------------------
# Deployment


@torch.no_grad()
def test_fused_equals_unfused(nano: TwoHeads, version: ModuleType) -> None:
    before = {k: v.clone() for k, v in nano.state_dict().items()}
    fused = nano.fuse()
    assert not any(isinstance(m, nn.BatchNorm2d | ConvNorm) for m in fused.modules())
    assert fused.head_dist is None
    torch.testing.assert_close(fused(photos()), nano(photos()), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fused(photos(96)), nano(photos(96)), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(v, before[k]) for k, v in nano.state_dict().items()), "fuse() changes a copy"
    again = fused.fuse()
    torch.testing.assert_close(again(photos()), fused(photos()), rtol=0, atol=0)
    features = make(version, features_only=True)
    for a, b in zip(features(photos()), features.fuse()(photos()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("version", "variant"), [("v1", "l1"), ("v2", "s0")], indirect=["version"])
def test_export(version: ModuleType, variant: str) -> None:
    torch.manual_seed(0)
    fused, x = randomise_parameters(version.build(variant)).eval().fuse(), photos(224, batch=1).float()
    expected = fused(x)
    program = torch.export.export(fused, (x,))
    torch.testing.assert_close(program.module()(x), expected)
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    torch.onnx.export(program, dynamo=True, verbose=False).save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(got), expected, 1e-4)


# --------------------------------------------------------------------------------------------------------------------
# timm as an oracle


@torch.no_grad()
@pytest.mark.parametrize("variant", ["l1", *(pytest.param(v, marks=pytest.mark.slow) for v in ("l3", "l7"))])
def test_equals_timm(variant: str) -> None:
    theirs = timm_network(f"efficientformer_{variant}")
    torch.manual_seed(0)
    ours = efficientformer.build(variant).eval()
    efficientformer.load_timm(ours, randomise_parameters(theirs).state_dict())
    x = photos(224, batch=1)
    if variant != "l1":  # the same layers, more of them
        assert_close(ours(x.float()), theirs(x.float()), 1e-5)
        return
    ours, theirs = ours.double(), theirs.double()
    assert_close(ours(x), theirs(x), 1e-10)
    theirs.set_distilled_training(True)
    for a, b in zip(ours.train()(x), theirs.train()(x), strict=True):
        assert_close(a, b, 1e-10)


# --------------------------------------------------------------------------------------------------------------------
# Fewer pixels


def test_sizes() -> None:
    assert fitted((224, 224), 1.0) == (224, 224)
    assert fitted((224, 320), 0.5) == (128, 160)
    assert fitted((64, 64), 0.01) == (32, 32)
    assert smaller_sizes((64, 128)) == [(32, 32), (32, 64), (64, 96), (64, 128)]


@torch.no_grad()
def test_each_batch_is_seen_as_coarsely_as_it_allows(version: ModuleType, nano: TwoHeads) -> None:
    technique = next(e.TECHNIQUE for v, e in VERSIONS.values() if v is version)
    plain, detailed = photos()[:, :, :1, :1].expand(-1, -1, 64, 64), photos()
    with technique.apply(nano, tolerance=0.02) as handle:
        handle.target(plain)
        assert handle.trace["size"] == (32, 32)
        handle.target(torch.cat([plain, detailed]))
        assert handle.trace["size"] == (64, 64), "one image with detail decides for its batch"
        torch.testing.assert_close(handle.target(detailed), nano(detailed), rtol=1e-10, atol=1e-10)
    with technique.apply(nano, scale=0.5, fuse=False) as handle:
        torch.testing.assert_close(handle.target(detailed), nano(coarsen(detailed, (32, 32))))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, None], ids=str)
def test_half_precision_sees_images_at_the_size_of_float32_and_folds_near_it(
    version: ModuleType, dtype: torch.dtype | None
) -> None:
    technique = next(e.TECHNIQUE for v, e in VERSIONS.values() if v is version)
    nano = make(version).to(dtype or torch.float32)
    sizes = set()
    for cells, tolerance in ((3, 0.02), (12, 0.2), (24, 0.1), (48, 0.02)):
        x = nn.functional.interpolate(photos(cells, 1), size=(96, 96), mode="bilinear").to(dtype or torch.float32)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=dtype is None),
            technique.apply(nano, tolerance=tolerance, fuse=False) as handle,
        ):
            logits = handle.target(x)
        assert handle.trace["size"] == coarsest(x.float(), smaller_sizes((96, 96)), tolerance)
        assert logits.dtype == (dtype or torch.bfloat16)
        sizes.add(handle.trace["size"])
    assert len(sizes) == 3
    assert_close(nano.fuse()(x).double(), copy.deepcopy(nano).double()(x.double()), 0.05)


@torch.no_grad()
def test_an_empty_batch_has_no_logits_and_nothing_to_measure(version: ModuleType, nano: TwoHeads) -> None:
    technique = next(e.TECHNIQUE for v, e in VERSIONS.values() if v is version)
    none = photos(batch=1)[:0]
    for knobs in ({}, {"scale": 0.5}, {"tolerance": 0.1}):
        assert technique.apply(nano, **knobs).target(none).shape == (0, 10)
    with pytest.raises(ValueError, match="the batch is empty"):
        technique.measure(nano, none)


def test_unsupported_hosts() -> None:
    v1, v2 = make(efficientformer), make(efficientformer_v2)
    for technique, target in ((experiment.TECHNIQUE, v2), (experiment_v2.TECHNIQUE, v1)):
        with pytest.raises(UnsupportedHost, match="in evaluation mode"):
            technique.apply(target)


def test_detail_that_a_coarser_grid_keeps() -> None:
    x = photos(64)
    smooth = torch.nn.functional.interpolate(x[..., :8, :8], size=(64, 64), mode="bilinear")
    assert kept_detail(x, (64, 64)).tolist() == [1, 1]
    assert kept_detail(torch.full((1, 3, 64, 64), 0.3), (32, 32)).item() == 1
    assert bool((kept_detail(smooth, (32, 32)) > 0.98).all())
    assert bool((kept_detail(x, (32, 32)) < 0.5).all())
    with pytest.raises(ValueError, match="tolerance must be"):
        coarsest(x, smaller_sizes((64, 64)), -1)
