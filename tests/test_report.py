"""The redundancy report on models and data whose redundancy is known exactly."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract.registry import load
from reference_impls.report import Budget, Progress, Result, controls, report
from reference_impls.report.achieve import Target, _applied, _short, achieve
from reference_impls.report.axes import ALL
from reference_impls.report.axes.temporal import Stream
from reference_impls.report.axes.tokens import Merging
from reference_impls.report.batches import Batch
from reference_impls.report.calibration import calibrate, overhead_seconds, time_saved
from reference_impls.report.controls import without_learning
from reference_impls.report.engine import Together, View, simulate
from reference_impls.report.measuring import dense
from reference_impls.report.outputs import ENTRIES, Reading, errors, flips
from reference_impls.report.progress import Clock
from reference_impls.report.result import schema
from reference_impls.report.sample import Sample, draw
from reference_impls.report.verify import KEEPS_MEMORY, predictions, verify
from tests import report_models as models
from tests.families import VISION, images


def view_of(model: nn.Module, data: list[Any], kind: Any = "image", items: int = 16) -> View:
    return dense(model, draw(model, data, kind, items), None, 0, Clock()).view


def share(view: View, saved: Tensor) -> float:
    return float(saved.sum() / view.macs[: len(saved)].sum())


@pytest.fixture(scope="module")
def of_images() -> Result:
    x = models.images(16)
    x[12:] = x[:4]
    return report(models.small(idle=(False, True, False)), [(x, torch.arange(16) % 5)], kind="image", items=16)


@pytest.fixture(scope="module")
def of_clips() -> Result:
    axes = ["temporal-positions", "temporal-tiles", "temporal-shift", "temporal-frames", "repeated-items", "bits"]
    return report(models.small(), models.clips(patch=0), kind="video", items=24, axes=axes)


# --------------------------------------------------------------------------------------------------------------------
# What a report is


def test_every_relation_of_the_taxonomy_has_an_axis() -> None:
    assert {axis.relation for axis in ALL} == {
        *("exact_repetition", "temporal_similarity", "spatial_similarity", "cross_sample_similarity"),
        *("cross_step_similarity", "irrelevance", "sufficiency", "over_resolution", "over_precision"),
    }
    assert len({axis.id for axis in ALL}) == len(ALL)


@pytest.mark.parametrize("axis", ALL, ids=lambda axis: axis.id)
def test_the_source_of_a_measure_is_a_function_of_the_measures(axis: Any) -> None:
    import importlib

    module, _, name = axis.source.partition(":")
    assert module == f"reference_impls.redundancy.{module.rpartition('.')[2]}"
    assert callable(getattr(importlib.import_module(module), name))


def test_a_report_comes_back_from_json(of_images: Result, tmp_path: Any) -> None:
    assert Result.load(of_images.save(tmp_path / "report")) == of_images
    assert (tmp_path / "report" / "report.txt").read_text() == of_images.table + "\n"
    assert set(schema()["properties"]) == set(json.loads(of_images.to_json()))
    with pytest.raises(ValueError, match=r"seed: Input should be a valid integer"):
        Result.from_json(of_images.to_json().replace('"seed": 0', '"seed": "x"'))
    with pytest.raises(LookupError, match="no finding is called 'nothing'"):
        of_images.finding("nothing")


def test_the_facts_are_those_of_the_model(of_images: Result) -> None:
    with torch.no_grad(), count() as tally:
        models.small()(models.images(1))
    assert of_images.model.macs == tally.macs == sum(layer.macs for layer in of_images.layers)
    assert {layer.type for layer in of_images.layers} == {"conv", "linear"}
    assert of_images.layers[-1].name == "(model)"  # the functional head
    assert sum(layer.time_share for layer in of_images.layers) <= 1 + 1e-9
    assert of_images.data.labelled
    assert of_images.complete


def test_one_seed_gives_one_report(of_clips: Result) -> None:
    axes = [found.axis for found in of_clips.findings]
    again = report(models.small(), models.clips(patch=0), kind="video", items=24, axes=axes)
    assert again.stable() == of_clips.stable()


def test_nothing_of_the_model_changes() -> None:
    model = models.small().train()
    model.blocks[1].eval()
    before = copy.deepcopy(model.state_dict())
    found = report(model, [models.images(8)], kind="image", items=8, axes=["zero-channels", "blocks"])
    assert found.model.was_training
    assert model.training
    assert not model.blocks[1].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with without_learning(model, 0):
        assert not torch.equal(before["stem.weight"], model.stem.weight)
        assert torch.equal(before["stem.weight"].flatten().sort().values, model.stem.weight.flatten().sort().values)


def test_null_controls_take_away_what_they_say_and_keep_the_rest() -> None:
    clips = models.clips(2)
    sample = draw(models.small(), clips, "video", 16)
    found = controls.of(sample, 0)
    assert set(found) == {"shuffled frames", "shuffled pixels", "white noise"}

    def numbers(one: Sample) -> Tensor:
        return torch.cat([batch.main for batch in one.batches])

    whole = numbers(sample)
    mixed = numbers(found["shuffled frames"])
    assert sorted(frame.sum().item() for frame in mixed) == sorted(frame.sum().item() for frame in whole)
    assert not torch.equal(mixed, whole)
    pixels = numbers(found["shuffled pixels"])
    assert torch.equal(pixels.flatten(2).sort().values, whole.flatten(2).sort().values)
    assert not torch.equal(pixels[1], pixels[2])  # each frame in an order of its own
    noise = numbers(found["white noise"])
    torch.testing.assert_close(noise.mean((2, 3)), whole.mean((2, 3)), atol=0.2, rtol=0)
    texts = draw(Dict(), [{"input_ids": ids(4, 8), "attention_mask": torch.ones(4, 8)}], "text", 4)
    shuffled = controls.of(texts, 0)["shuffled tokens"].batches[0]
    assert torch.equal(shuffled.main.sort().values, texts.batches[0].main.sort().values)


# --------------------------------------------------------------------------------------------------------------------
# Planted redundancy


def test_planted_duplicates_are_found(of_images: Result) -> None:
    repeated, near = of_images.finding("repeated-items"), of_images.finding("near-items")
    assert repeated.value.value == 4 / 16
    assert repeated.ceiling_macs == 4 / 16
    assert near.curve[0].macs_saved.value == 4 / 16
    assert near.curve[0].error is not None
    assert near.curve[0].error.value == 0
    assert repeated.saves == near.saves == "training"
    assert repeated.ceiling_time is None


def test_a_planted_identity_block_goes_first_and_costs_nothing(of_images: Result) -> None:
    found = of_images.finding("blocks")
    first = found.curve[0]
    assert {layer.layer: round(layer.value, 6) for layer in found.layers}["blocks.1"] == 1
    assert first.setting == {"blocks": 1}
    assert first.error is not None
    assert first.error.value < 1e-6
    block = sum(layer.macs for layer in of_images.layers if layer.name.startswith("blocks.1."))
    assert first.macs_saved.value == pytest.approx(block / of_images.model.macs)
    assert first.macs_saved.low == pytest.approx(first.macs_saved.high)


def test_a_still_clip_is_computed_once(of_clips: Result) -> None:
    for axis in ("temporal-positions", "temporal-tiles", "temporal-shift", "temporal-frames"):
        found = of_clips.finding(axis)
        assert found.value.value == 1, axis
        assert found.ceiling_macs == pytest.approx(7 / 8), axis  # of 8 frames the first one is left
        assert found.at_budget is not None
        assert found.at_budget.error is not None
        assert found.at_budget.error.value < 1e-5, axis


def test_noise_has_no_temporal_redundancy() -> None:
    noise = [models.images(8, seed=s) for s in range(2)]
    axes = ["temporal-positions", "temporal-tiles", "temporal-shift"]
    for found in report(models.small(), noise, kind="video", items=16, axes=axes).findings:
        assert found.value.value < 0.05
        assert found.ceiling_macs == 0 or found.axis == "temporal-positions"
        assert found.ceiling_macs < 0.05
        assert found.excess is not None
        assert found.excess < 0.05


def test_a_moving_camera_is_followed_by_its_shift_only() -> None:
    scene = models.images(1, 64)
    clip = torch.cat([scene[..., 8:40, 8 + 2 * t : 40 + 2 * t] for t in range(8)])
    axes = ["temporal-tiles", "temporal-shift"]
    found = report(models.small(), [clip], kind="video", items=8, axes=axes)
    assert found.finding("temporal-tiles").value.value < 0.05
    assert found.finding("temporal-shift").value.value > 0.7


def test_dead_channels_are_counted() -> None:
    model = models.small()
    with torch.no_grad():
        model.stem.weight[:2] = 0
        model.stem.bias[:2] = -1
    found = report(model, [models.images(8)], kind="image", items=8, axes=["zero-channels", "zero-values"])
    at = {layer.layer: layer.value for layer in found.finding("zero-channels").layers}
    assert at["blocks.0.first"] == 2 / 8
    assert "of up to 2 items" in found.finding("zero-channels").notes[0]
    gentlest = min(found.finding("zero-values").curve, key=lambda p: p.setting["epsilon"])
    assert gentlest.error is not None
    assert gentlest.macs_saved.value > 0
    assert found.finding("zero-values").ceiling_time is not None
    assert found.finding("zero-values").ceiling_time <= 0  # type: ignore[operator]


def test_channels_of_low_rank_are_projected_without_error() -> None:
    lin = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 256, 5))
    lin[0].weight.data = (torch.randn(8, 2) @ torch.randn(2, 27)).view(8, 3, 3, 3)  # 8 channels that follow from 2
    found = report(lin, [models.images(8)], kind="image", items=8, axes=["channels"]).finding("channels")
    at = {layer.layer: layer.value for layer in found.layers}
    assert at["1"] == pytest.approx(6 / 7)
    assert found.curve[0].error is not None
    assert found.curve[0].error.value < 1e-3
    assert found.ceiling_macs > 0.3


# --------------------------------------------------------------------------------------------------------------------
# Simulated reuse against our own implementations, and off switches


@pytest.mark.filterwarnings("ignore:token-merging has no effect here")
@pytest.mark.parametrize("r", [0, 4, 12, 40])
def test_simulated_merging_is_token_merging(r: int) -> None:
    model, x = models.vit(), models.images(4)
    view = view_of(model, [x], items=4)
    run = simulate(view, Merging(view, r))
    with torch.no_grad(), load("token-merging").apply(model, r=r) as handle, count() as tally:
        expected = handle.target(x)
    saved = 1 - tally.macs / float(view.macs.sum())
    assert share(view, run.saved) == pytest.approx(saved, abs=0.005)
    # Merged after the attention there, and after the block here: the outputs are near, and equal where nothing merges.
    far = (torch.cat(run.outputs.values) - expected).norm() / expected.norm()
    assert far < (1e-5 if r == 0 else 0.25)


def test_tokens_in_equal_pairs_merge_without_error() -> None:
    x = models.images(4).unflatten(3, (8, 4))[:, :, :, ::2].repeat_interleave(2, 3).flatten(3)
    model = models.vit(depth=2, positions=False)
    view = view_of(model, [x], items=4)
    run = simulate(view, Merging(view, 30))
    assert errors(view.dense, run.outputs).max() < 1e-4
    assert share(view, run.saved) > 0.3


@pytest.mark.parametrize(("threshold", "tile"), [(0.0, 1), (0.005, 4), (0.2, 1), (0.2, 4)])
def test_a_simulated_stream_is_delta_convolution(threshold: float, tile: int) -> None:
    clip = models.clips(1)[0] + 0.01 * models.images(8, seed=9)
    if threshold < 0.1:
        clip = models.clips(1)[0]
    model = models.small()
    view = view_of(model, [clip], "video", items=8)
    knobs: dict[str, Any] = {"threshold": threshold, "tile": tile, "min_profitable": 0.1}
    run = simulate(view, Stream(threshold, tile, 0.1, view.total))
    handle = load("delta-convolution").apply(model, **knobs)
    with torch.no_grad(), count() as tally:
        expected = torch.cat([handle.target(frame[None]) for frame in clip])
    achieved = 1 - tally.macs / float(view.macs.sum())
    assert share(view, run.saved) == pytest.approx(achieved, abs=0.03)
    assert share(view, run.saved) > 0.2
    torch.testing.assert_close(torch.cat(run.outputs.values), expected, atol=2e-2 if threshold else 1e-4, rtol=1e-2)


GENTLEST: dict[str, dict[str, Any]] = {
    "rows": {"bits": 60}, "rows-across": {"bits": 60}, "channels": {"variance": 1.0}, "zero-values": {"epsilon": 0},
    "zero-channels": {"epsilon": 0}, "zero-tiles": {"epsilon": 0}, "octave": {"energy": 1.0}, "bits": {"bits": 24},
    "bits-by-channel": {"bits": 24}, "tokens": {"r": 0}, "attended-tokens": {"keep": 1.0},
    "attended-keys": {"keep": 1.0}, "blocks": {"blocks": 0},
}  # fmt: skip


@pytest.mark.parametrize("build", [models.small, models.vit])
def test_reuse_that_is_switched_off_changes_nothing(build: Any) -> None:
    view = view_of(build(), [models.images(4)], items=4)
    for kind in ALL:
        axis = kind()
        if axis.id not in GENTLEST or axis.unfit(view) is not None:
            continue
        if (probe := axis.probe(view)) is not None:
            simulate(view, Together([probe], view.per_item))
            axis.values(view, probe)
        run = simulate(view, axis.edit(view, GENTLEST[axis.id]))
        assert errors(view.dense, run.outputs).max() < 1e-4, axis.id
        if axis.saves == "inference":
            assert share(view, run.saved) <= 0.35, axis.id  # exact zeros after a ReLU are all that there may be


def test_joint_savings_are_never_a_sum(of_images: Result) -> None:
    both = of_images.joint
    assert both is not None
    assert max(both.alone) - 0.02 <= both.macs_saved.value <= sum(both.alone) + 1e-6


# --------------------------------------------------------------------------------------------------------------------
# Ceilings, suggestions


def test_time_follows_amdahl() -> None:
    macs, shares = {"a": 100.0, "b": 100.0}, {"a": 0.5, "b": 0.3}
    assert time_saved({"a": 100.0}, macs, shares, 0.0, 0.0) == 0.5
    assert time_saved({"a": 50.0, "b": 100.0}, macs, shares, 0.5, 0.05) == pytest.approx(0.25 + 0.3 + 0.1 - 0.05)
    assert time_saved({}, macs, shares, 0.0, 0.2) == -0.2
    # Where half of the data are gone an item is 1.25 times faster than in proportion; a quarter is half-way there.
    assert time_saved({"a": 50.0, "b": 50.0}, macs, shares, 0.5, 0.0, gain=1.25) == pytest.approx(1 - 0.5 / 1.25)
    assert time_saved({"a": 25.0, "b": 25.0}, macs, shares, 0.25, 0.1, gain=1.25) == pytest.approx(
        1 - 0.75 / 1.25**0.5 - 0.1
    )
    rates = calibrate(seconds=0.3)
    assert rates.product_gmacs_s > 0
    seconds = overhead_seconds(rates, {"gather_bytes": 2e9, "calls": 10})
    assert seconds == pytest.approx(2 / rates.gather_gb_s + 1e-5 * rates.call_us)


def test_techniques_say_themselves_which_axis_finds_what_they_exploit(of_clips: Result) -> None:
    found = {s.technique: s for s in of_clips.finding("temporal-tiles").suggestions}["delta-convolution"]
    point = of_clips.finding("temporal-tiles").at_budget
    assert point is not None
    assert found.applies
    assert found.knobs == point.setting
    refused = {s.technique: s for s in of_clips.finding("temporal-frames").suggestions}["key-frame-feature-propagation"]
    assert refused.applies is False
    assert "heads(features(x))" in refused.needs


def test_knobs_of_axes_are_those_of_techniques() -> None:
    from reference_impls.report.suggestions import exploiting, knobs_for

    known = {axis.id: axis for axis in ALL}
    for axis, techniques in exploiting().items():
        assert axis in known
        for technique in techniques:
            assert set(technique.exploits[axis]) <= set(technique.knobs)
    merging = next(t for t in exploiting()["tokens"] if t.id == "token-merging")
    assert knobs_for(merging, "tokens", {"r": 3}) == {"r": 3}
    assert knobs_for(merging, "tokens", {"r": -3}) == {}


# --------------------------------------------------------------------------------------------------------------------
# Loaders and models of every kind


class Dict(nn.Module):
    """Takes tokens with a mask, gives several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = None if attention_mask is None else ~attention_mask.bool()
        x = self.encoder(self.embedding(input_ids), src_key_padding_mask=hidden)
        return {"last_hidden_state": x, "logits": self.head(x[:, 0])}


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(0))


AXES = ["repeated-items", "zero-channels"]


@pytest.mark.parametrize(
    ("loader", "items"),
    [
        ([{"input_ids": ids(4, 10), "attention_mask": torch.ones(4, 10), "labels": ids(4) % 3}] * 2, 8),
        ([ids(7), ids(5), ids(7)], 3),
        ([[ids(7), ids(5), ids(7)]], 3),
        ([(ids(4, 6), ids(4) % 3)], 4),
        ([{"input_ids": [1, 2, 3], "label": 1}, {"input_ids": [4, 5], "label": 0}], 2),
        (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids(10, 6), ids(10) % 3), batch_size=4), 10),
        ([ids(1, 5)], 1),
    ],
    ids=["dicts", "ragged", "list of ragged", "tuples", "single dicts", "DataLoader", "one item"],
)
def test_loaders_of_texts(loader: Any, items: int) -> None:
    found = report(Dict().eval(), loader, kind="text", axes=AXES)
    assert found.data.items == items
    assert found.data.seen == items
    assert found.model.answer == "the class of each item"
    assert found.layers


@pytest.mark.parametrize("family", ["DINOv2", "timm ViT", "torchvision ViT"])
def test_models_of_other_libraries(family: str) -> None:
    """They are seen whole without an adapter, and merging is predicted as our implementation then does it."""
    model = VISION[family]().model
    view = view_of(model, [images(4)], items=4)
    with torch.no_grad(), count() as dense_macs:
        model(images(4))
    assert sum(site.macs for site in view.sites.values()) == dense_macs.macs
    assert len(view.blocks) == 3
    run = simulate(view, Merging(view, 4))
    with torch.no_grad(), load("token-merging").apply(model, r=4) as handle, count() as tally:
        handle.target(images(4))
    assert share(view, run.saved) == pytest.approx(1 - tally.macs / dense_macs.macs, abs=0.01)
    found = report(model, [images(4)], kind="image", items=4, axes=["tokens", "attended-keys", "blocks"])
    assert {one.axis for one in found.findings} == {"tokens", "attended-keys", "blocks"}
    assert found.model.answer == (
        "the nearest other item of the sample" if family == "DINOv2" else "the class of each item"
    )
    assert found.finding("tokens").suggestions[0].applies


def test_padding_is_found() -> None:
    mask = torch.ones(8, 10)
    mask[:, 5:] = 0
    data = [{"input_ids": ids(8, 10), "attention_mask": mask}]
    found = report(Dict().eval(), data, kind="text", items=8, axes=["padding", "tokens", "attended-keys"])
    assert found.finding("padding").value.value == 0.5
    assert 0.5 <= found.finding("padding").ceiling_macs < 0.75
    assert len(found.findings) == 3


def test_a_causal_model_keeps_its_tokens() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            hidden = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            y = self.embedding(x)
            for layer in self.layers:
                y = layer(y, src_mask=hidden, is_causal=True)
            return self.head(y)

    found = report(
        Causal().eval(), [ids(8, 12)], kind="text", items=8, axes=["tokens", "attended-tokens", "attended-keys"]
    )
    assert found.model.answer == "the class of each token"
    assert not found.finding("tokens").curve
    assert "causal" in found.finding("tokens").notes[0]
    assert not found.finding("attended-tokens").curve
    assert found.finding("attended-keys").curve


def test_clips_of_changing_size_and_several_outputs() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = models.small()
            self.coarse = nn.Conv2d(3, 4, 8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.coarse(x), self.body(x)

    clips = [models.images(4, 32), models.images(3, 48), list(models.images(3, 32)) + list(models.images(2, 40))]
    found = report(Heads().eval(), clips, kind="video", items=64, axes=["temporal-tiles", "repeated-items"])
    assert found.data.clips == 4
    assert found.data.items == 4 + 3 + 3 + 2
    assert found.model.answer == "the class at each position"


def test_a_batch_that_fails_is_left_out_and_said() -> None:
    class Picky(models.Small):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x == 7).any()):
                raise RuntimeError("seven")
            return super().forward(x)

    x = models.images(32)
    x[9] = 7
    found = report(Picky().eval(), [x], kind="image", items=32, axes=AXES)
    assert found.data.items == 24
    assert any("batch 2 was left out: RuntimeError: seven" in note for note in found.notes)


def never() -> Iterator[Any]:
    yield from ()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"loader": []}, "the loader gave nothing"),
        ({"loader": never()}, "give a fresh one"),
        ({"loader": ["a text"]}, "inputs="),
        ({"loader": [{"a": "text"}]}, "nothing with a tensor"),
        ({"loader": 3}, "must be iterable"),
        ({"loader": [torch.zeros(4, 5, 32, 32)]}, "fails on the first batch"),
        ({"kind": "sound"}, "kind must be one of"),
        ({"kind": "video"}, "clips"),
        ({"budget": {"flip": 0.1}}, "budget must be one of"),
        ({"budget": {"metric": 0.1}}, "needs labels"),
        ({"axes": ["token"]}, "did you mean 'tokens'"),
        ({"items": 0}, "items must be"),
        ({"answer": lambda y: y}, "must give integers"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(arguments: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"loader": [models.images(4)], "kind": "image"} | arguments
    if given["kind"] == "video":
        given["loader"] = [models.images(4)[0]]
    with pytest.raises((ValueError, TypeError), match=says):
        report(models.small(), **given)


def test_models_that_cannot_be_measured_are_told() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return "done"

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    for model, says in ((Nothing(), "without a tensor"), (Sum(), "first axis"), (Plain(), "nothing to save")):
        with pytest.raises((ValueError, TypeError), match=says):
            report(model, [models.images(4)], kind="image")
    with pytest.raises(ValueError, match="meta device"):
        report(models.small().to("meta"), [models.images(4)], kind="image")


def test_a_model_of_one_batch_size_is_measured() -> None:
    class Eight(models.Small):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 8:
                raise ValueError(f"exported for 8 images, got {len(x)}")
            return super().forward(x)

    batches = list(models.images(32).split(8))
    arguments: dict[str, Any] = {"kind": "image", "items": 32, "axes": ["zero-values"]}
    found, same = (report(model.eval(), batches, **arguments) for model in (Eight(), models.Small()))
    assert found.model.macs == same.model.macs
    assert found.finding("zero-values").curve


def test_budgets() -> None:
    assert Budget(error=0.1).name == "error"
    with pytest.raises(ValueError, match="give one of"):
        Budget(flips=0.1, error=0.1)
    found = report(models.small(), [models.images(16)], kind="image", items=16, budget={"error": 0.02}, axes=["bits"])
    point = found.finding("bits").at_budget
    assert point is not None
    assert point.error is not None
    assert point.error.value <= 0.02


# --------------------------------------------------------------------------------------------------------------------
# Interrupted and resumed


def test_an_interrupted_report_keeps_what_is_done_and_goes_on(tmp_path: Any, monkeypatch: Any) -> None:
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.doing == "zero-channels: curve":
            raise KeyboardInterrupt

    axes = ["repeated-items", "zero-values", "zero-channels"]
    arguments: dict[str, Any] = {"kind": "image", "items": 16, "axes": axes, "resume": tmp_path}
    half = report(models.small(), [models.images(16)], progress=stop, **arguments)
    assert not half.complete
    assert [found.axis for found in half.findings] == ["repeated-items", "zero-values"]
    assert "interrupted" in half.table
    assert seen[-1].left_s is not None
    assert 0 < seen[-1].done < 1

    told: list[str] = []
    whole = report(models.small(), [models.images(16)], progress=lambda p: told.append(p.doing), **arguments)
    assert whole.complete
    assert "zero-values: curve" not in told
    assert "zero-channels: curve" in told
    assert whole.finding("zero-values") == half.finding("zero-values")
    other = report(models.small(), [models.images(16, seed=5)], progress=lambda p: told.append(p.doing), **arguments)
    assert "zero-values: curve" in told  # another sample is another report
    assert other.complete


# --------------------------------------------------------------------------------------------------------------------
# Predicted against achieved


def test_predictions_are_written_and_hashed_before_a_technique_is_applied(tmp_path: Any) -> None:
    result = report(models.small(), models.stream(), kind="video", items=16, axes=["temporal-tiles"])
    target = Target(model="tests.report_models:small", data="tests.report_models:stream")
    found = verify(result, target, tmp_path, repetitions=3)
    written = (tmp_path / "predictions.json").read_bytes()
    assert hashlib.sha256(written).hexdigest() == found.sha256
    assert (tmp_path / "predictions.sha256").read_text().startswith(found.sha256)
    (one,) = found.checked
    assert not one.failed
    assert one.achieved is not None
    assert one.prediction.technique == "delta-convolution"
    assert one.prediction.knobs == one.achieved.knobs
    assert one.agrees
    assert one.achieved.macs_dense == result.model.macs * 16
    assert one.achieved.time_saved is not None
    assert "delta-convolution" in found.table
    gone = verify(result, Target(model="tests.report_models:nobody", data="tests.report_models:stream"), tmp_path)
    assert "no function 'nobody'" in gone.checked[0].failed
    with pytest.raises(ValueError, match="nothing to verify"):
        verify(result, target, tmp_path, techniques=["token-merging"])


def test_a_technique_is_timed_in_a_process_that_keeps_its_memory(tmp_path: Any, monkeypatch: Any) -> None:
    seen: dict[str, str] = {}

    def run(command: list[str], *, env: dict[str, str], timeout: float, **_: Any) -> None:
        seen.update(env)
        raise subprocess.TimeoutExpired(command, timeout)

    result = report(models.small(), models.stream(), kind="video", items=16, axes=["temporal-tiles"])
    monkeypatch.setattr(subprocess, "run", run)
    target = Target(model="tests.report_models:small", data="tests.report_models:stream")
    (one,) = verify(result, target, tmp_path, timeout=7).checked
    assert one.failed == "took longer than 7 s"
    assert KEEPS_MEMORY.items() <= seen.items()


def test_a_selection_is_checked_in_this_process_too() -> None:
    result = report(models.small(), models.pictures(), kind="image", items=16, axes=["near-items", "repeated-items"])
    (one,) = predictions(result).predictions
    assert one.technique == "semantic-deduplication"
    order = {
        "target": {"model": "tests.report_models:small", "data": "tests.report_models:pictures"},
        "technique": one.technique, "knobs": one.knobs, "kind": "image", "asked": 16, "items": one.items, "seed": 0,
        "repetitions": 1, "threads": torch.get_num_threads(),
    }  # fmt: skip
    assert abs(achieve(order).macs_saved - one.macs_saved.value) <= 0.05


def test_merging_is_checked_on_a_vision_transformer() -> None:
    view = view_of(models.vit(), [models.images(4)], items=4)
    applied = _applied(view, view.sample, load("token-merging"), {"r": 8}, 2)
    run = simulate(view, Merging(view, 8))
    assert applied.macs_saved == pytest.approx(share(view, run.saved), abs=0.005)
    assert applied.time_saved is not None
    assert not any(module.__dict__.get("forward") for module in view.model.modules())


def test_padding_counts_neither_as_error_nor_as_an_answer() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.head(self.embedding(input_ids) + attention_mask[..., None] * 0)

    mask = torch.ones(4, 10)
    mask[:, 4:] = 0
    model = Tagger().eval()
    texts = ids(4, 10)
    view = view_of(model, [{"input_ids": texts, "attention_mask": mask}], "text", items=4)
    padded = texts.where(mask > 0, 7)
    other = view_of(model, [{"input_ids": padded, "attention_mask": mask}], "text", items=4).dense
    assert errors(view.dense, other).max() == 0
    assert flips(view.dense, other, "token").max() == 0  # type: ignore[union-attr]
    other.answers[0][0, 0] = (other.answers[0][0, 0] + 1) % 3
    assert flips(view.dense, other, "token")[0] == 0.25  # type: ignore[index]


def test_booleans_of_the_shape_of_the_tokens_say_what_is_padding() -> None:
    tokens, real = ids(2, 6), torch.ones(2, 6, dtype=torch.bool)
    real[1, 3:] = False
    batch = Batch((), {"real": real, "ids": tokens}, 2)
    assert batch.main is tokens
    assert torch.equal(batch.mask, real)  # type: ignore[arg-type]
    assert Batch((), {"ids": tokens, "first": real[:, 0]}, 2).mask is None
    large = torch.randn(2, 6, 4000)
    values, answers = Reading(large, 2, None)(large, batch)
    assert values.shape == (2, ENTRIES)
    assert int((values[1] == 0).sum()) > ENTRIES // 3  # half of its tokens are padding
    assert answers[1].tolist()[3:] == [-1, -1, -1]
    both = torch.randn(2, 6, 3), torch.randn(2, 4)
    values, _ = Reading(both, 2, None)(both, batch)
    assert torch.equal(values, torch.cat([(both[0] * real[..., None]).flatten(1), both[1]], 1))


def test_of_a_slow_technique_fewer_steps_are_timed() -> None:
    clips = [[Batch((torch.zeros(1),), {}, 1)] * 8] * 2
    assert [len(steps) for steps in _short(clips, 100)] == [8, 8]
    assert [len(steps) for steps in _short(clips, 11)] == [8, 3]
    assert [len(steps) for steps in _short(clips, 9)] == [8]
    assert [len(steps) for steps in _short(clips, 0)] == [2]
