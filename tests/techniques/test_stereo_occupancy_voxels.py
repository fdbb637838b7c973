"""Cases of StereoVoxelNet, its counts, grids and metrics, made scenes, and loaders of pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from reference_impls.accounting.count import count
from reference_impls.benchmarks import stereo_occupancy as benchmark
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.data import stereo
from reference_impls.data.stereo import Camera
from reference_impls.data.stereo_scenes import CAMERA, SKY, draw_scene, render
from reference_impls.layers.weights import randomise_parameters
from reference_impls.models.semi_global_matching import semi_global_matching
from reference_impls.study import Recipe, seeded, train
from reference_impls.techniques.stereo_occupancy_voxels import StereoOccupancyVoxels, build, next_level
from reference_impls.techniques.stereo_occupancy_voxels.grid import (
    LOSS_WEIGHTS,
    Grid,
    chamfer,
    iou,
    levels,
    occupancy_loss,
    recall,
    smoothed_iou,
    soft_iou,
    voxelise,
)
from reference_impls.techniques.stereo_occupancy_voxels.lifted import LiftedStereoNet
from reference_impls.techniques.stereo_occupancy_voxels.network import for_inference
from tests.support import noise, parameters

VOXELS, LEVELS = StereoOccupancyVoxels(), (0, 2, 5)
WHERE = Camera(30.0, 16.0, 8.0, 0.5).project(Grid.in_front(8.0, 32).centres()).float()


def finest(network: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The finest grid that is computed, as fine as the finest of all."""
    grid = network(*inputs)[-1]
    return grid.repeat_interleave(64 // grid.shape[1], 1)


def small(seed: int = 0, **options: bool) -> LiftedStereoNet:
    made = seeded(seed, lambda: randomise_parameters(LiftedStereoNet(LEVELS, widths=(6, 5, 4, 3), **options)))
    return made.eval().requires_grad_(False)


class StereoCases(Cases):
    """Heads that call everything free, everything occupied, or neither, over random features of random pairs."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        network = small(seed)
        if kind != "typical":
            for head in network.decoder.heads:
                head.weight.zero_()
                head.bias.fill_(3.0 if kind == "null" else -3.0)  # type: ignore[operator]
        pair = torch.rand(2, 1, 3, 16, 32, generator=generator(seed))
        return Case(network.to(device), tuple(x.to(device) for x in (*pair, WHERE)), finest)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        with VOXELS.apply(case.target, threshold=0.5) as handle:
            finest(handle.target, case.inputs)
            trace = handle.trace["decoder"]
        dense = case.target(*case.inputs)
        yield Expectation("kept at 8", (dense[0] >= 0.5).sum(), torch.tensor(trace["kept"][0]))
        yield Expectation("first level", torch.tensor(512), torch.tensor(trace["computed"][0]))
        yield from voxels_by_numpy(seed)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("null", seed, device)
        dense = case.target(*case.inputs)
        with VOXELS.apply(case.target, threshold=0.5):
            for a, b in zip(dense, case.target(*case.inputs), strict=True):
                yield Expectation(f"{a.shape[1]} cells, all of them kept", a, b)

    def invalid(self, device: str) -> Iterable[Invalid]:
        network, (left, right) = small().to(device), torch.rand(2, 1, 3, 16, 32, device=device)
        with torch.device("meta"):
            paper = build("voxel").eval()
        yield Invalid("one channel", lambda: network(left[:, :1], right, WHERE), "must have shape (B, 3, H, W)")
        yield Invalid("two sizes", lambda: network(left, right[..., 4:], WHERE), "same size")
        yield Invalid("30 columns", lambda: network(left[..., 2:], right[..., 2:], WHERE), "multiples of 4")
        yield Invalid("bytes", lambda: network(left.byte(), right, WHERE), "floating point")
        yield Invalid("kernels of 6", lambda: VOXELS.apply(paper, threshold=0.5), "kernel and stride are 2")
        yield Invalid("no such volume", lambda: build("even"), "no cost volume is called 'even'")


def voxels_by_numpy(seed: int) -> Iterable[Expectation]:
    """Cells by integer division and `np.unique`, and by hand."""
    grid = Grid((-1.0, -1.5, 0.0), 0.25, 8)
    points = 3 * torch.rand(400, 3, generator=generator(seed), dtype=torch.float64) - 1.25
    index = np.floor_divide(points.numpy() - np.array(grid.low), grid.cell).astype(int)
    index = np.unique(index[((index >= 0) & (index < 8)).all(1)], axis=0)
    yield Expectation("cells of random points", torch.from_numpy(index), voxelise(points, grid).nonzero())
    corner = torch.tensor([grid.low, (1.0, -1.5, 0.0), (0.99, 0.49, 1.99)], dtype=torch.float64)
    yield Expectation("bounds", torch.tensor([[0, 0, 0], [7, 7, 7]]), voxelise(corner, grid).nonzero())


CASES = StereoCases()

# --------------------------------------------------------------------------------------------------------------------
# The published network

COUNTS = {  # parameters, billion MACs of the official graph
    "voxel": (5_403_731, 14.24),
    "uniform12": (5_403_731, 14.03),
    "uniform24": (5_431_379, 17.99),
    "full48": (5_486_675, 25.90),
}


@pytest.mark.parametrize("variant", COUNTS)
def test_counts_of_the_published_network(variant: str) -> None:
    with torch.device("meta"), torch.no_grad():
        network, image = build(variant).eval(), torch.empty(1, 3, 400, 880)
        with count() as tally:  # at this size each level is in a map of its own
            grids = network(image, image)
    assert [tuple(grid.shape) for grid in grids] == [(1, n, n, n) for n in (8, 16, 32, 64)]
    expected, giga = COUNTS[variant]
    assert parameters(network) == expected
    assert tally.macs / 1e9 == pytest.approx(giga, abs=0.006)


def test_levels_of_the_published_network() -> None:
    macs = []
    with torch.device("meta"), torch.no_grad():
        network, image, code = build("voxel").eval(), torch.empty(1, 3, 400, 880), torch.empty(1, 128)
        for level in range(4):
            with count() as tally:
                assert len(network.decoder(code, level)) == level + 1
            macs.append(tally.macs)
        decoder = [part.numel() for name, part in network.named_parameters() if name.startswith("decoder")]
        with pytest.raises(ValueError, match="takes images of 400 x 880"):
            network(image[..., :400, :400], image[..., :400, :400])
        with pytest.raises(ValueError, match="takes 12 levels, got 3"):
            network(image, image, levels=(0, 1, 2))
        with pytest.raises(ValueError, match="level must be 0, 1, 2 or 3"):
            network(image, image, level=4)
        assert [g.shape[1] for g in VOXELS.apply(network, threshold=0.0, level=1).target(image, image)] == [8, 16]
    assert macs == sorted(set(macs))
    assert macs[3] / 1e9 / COUNTS["voxel"][1] == pytest.approx(0.024, abs=5e-4)  # of the network
    assert sum(decoder) == 1_470_105


def test_the_form_for_inference_gives_the_same() -> None:
    network = seeded(0, lambda: randomise_parameters(build("voxel"))).double().eval()
    left, right = (2 * noise(1, 3, 8, 160, seed=seed) for seed in (1, 2))
    volumes = []
    for prepared in (network, for_inference(copy.deepcopy(network))):
        with torch.no_grad():
            a, b = prepared.features(left), prepared.features(right)
            volumes += [prepared.volume(a, b), prepared.volume.loop(a, b)]
    assert float(volumes[0].abs().max()) > 0
    for one in volumes[1:]:
        torch.testing.assert_close(one, volumes[0], rtol=1e-9, atol=1e-12)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in prepared.modules())


def test_policy_of_the_robot() -> None:
    empty, near, far = (torch.zeros(1, 8, 8, 8) for _ in range(3))
    near[0, 3, 3, 1], far[0, 3, 3, 6] = 0.9, 0.9
    assert [next_level(x, 2) for x in (empty, near, far)] == [1, 3, 1]
    assert (next_level(empty, 0), next_level(near, 3)) == (0, 3)


def test_labels_are_not_asked_for() -> None:
    network, (left, right) = small(), torch.rand(2, 1, 3, 16, 32)
    with VOXELS.apply(network, threshold=0.5), pytest.raises(TypeError, match="truth"):
        network(left, right, WHERE, truth=[])


# --------------------------------------------------------------------------------------------------------------------
# Grids, metrics and loss


def test_the_published_grid() -> None:
    grid = Grid.in_front(32.0)
    assert (grid.low, grid.cell) == ((-16.0, -31.0, 0.0), 0.5)
    assert grid.depths().tolist() == [0.5 + 2 * n for n in range(16)]
    centres = grid.centres().view(-1, 3)
    assert bool(voxelise(centres, grid).all())
    points = Camera(100.0, 50.0, 40.0, 0.5).back_project(torch.full((80, 100), 50 / 7.75))
    assert set(voxelise(points, grid).nonzero()[:, 2].tolist()) == {15}  # a wall at 7.75 m


def test_coarse_grids_are_the_grids_of_coarse_cells() -> None:
    grid = Grid.in_front(8.0)
    points = 8 * torch.rand(300, 3, generator=generator(0)) - torch.tensor([4.0, 7.0, 0.0])
    for n, cells in enumerate(levels(voxelise(points, grid))):
        assert torch.equal(cells, voxelise(points, grid.coarser(8 >> n)))
    batch = torch.rand(2, 8, 8, 8, generator=generator(1)) < 0.1
    for one, other in zip(levels(batch, 3), zip(*(levels(cells, 3) for cells in batch), strict=True), strict=True):
        assert torch.equal(one, torch.stack(list(other)))
    with pytest.raises(ValueError, match="cannot be put together"):
        grid.coarser(3)


def test_metrics() -> None:
    a, b, empty = (torch.zeros(8, 8, 8, dtype=torch.bool) for _ in range(3))
    a[1, 1, 1] = a[6, 6, 6] = b[2, 1, 1] = b[6, 6, 7] = True
    assert (iou(a, a), chamfer(a, a, 0.5), recall(a, a)) == (1, 0, 1)
    assert (iou(a, b), recall(a, b)) == (0, 0)
    assert chamfer(a, b, 0.5) == pytest.approx(2 * 0.5**2)  # one cell off, both ways
    assert (iou(empty, empty), chamfer(empty, empty, 1.0)) == (1, 0)
    assert chamfer(empty, a, 1.0) == chamfer(a, empty, 1.0) == 3 * 8**2  # counted, not left out
    assert smoothed_iou(empty, a) == pytest.approx(1 / 3)
    p, g = torch.tensor([0.5, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    assert float(soft_iou(p, g)) == pytest.approx((1.5 + 1) / (2.0 + 1))
    truths = [torch.rand(2, n, n, n, generator=generator(n)) < 0.2 for n in (2, 4)]
    assert float(occupancy_loss([t.float() for t in truths], truths, LOSS_WEIGHTS[:2])) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="must be finite"):
        voxelise(torch.tensor([[0.0, 0.0, torch.inf]]), Grid.in_front(8.0))


# --------------------------------------------------------------------------------------------------------------------
# Made scenes


def test_made_pairs_are_stereo_and_their_occupancy_exact() -> None:
    for seed in (0, 3):
        scene = draw_scene(seed)
        view = render(scene)
        warped, inside = stereo.warp(view.right, CAMERA.disparity(view.depth))
        error = (warped - view.left).abs().mean(0)[inside]
        assert float(error.median()) < 1e-3
        assert float((error < 0.02).float().mean()) > 0.75  # the others are hidden from the right camera, or sky
        boxes = torch.where(view.ids > 0, CAMERA.disparity(view.depth), torch.inf)
        seen = voxelise(CAMERA.back_project(boxes), benchmark.GRID)
        occupied = scene.occupied(benchmark.GRID.edges(), view.ids.unique())
        assert seen.sum() > 20
        assert not bool((seen & ~occupied).any())
        assert torch.equal(view.depth.isinf(), view.ids == SKY)
    one = draw_scene(0)
    inner = (one.low[0] + one.high[0]) / 2
    centres = Grid.in_front(8.0).centres().float()
    inside = ((centres > one.low[:, None, None, None]) & (centres < one.high[:, None, None, None])).all(-1).any(0)
    assert not bool((inside & ~one.occupied(Grid.in_front(8.0).edges())).any())
    assert bool(one.occupied(torch.stack([inner - 0.01, inner + 0.01], 1)).all())


def test_noise_gain_and_one_colour() -> None:
    scene = draw_scene(1)
    plain, loud, flat = render(scene), render(scene, noise=0.05, gain=0.5), render(scene.untextured())
    assert float(loud.right.mean() / plain.right.mean()) == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(loud.left, plain.left)
    box = plain.ids == int(plain.ids.max())
    assert float(flat.left[:, box].std(1).max()) < float(plain.left[:, box].std(1).max()) or box.sum() == 0
    assert torch.equal(flat.depth, plain.depth)


def test_semi_global_matching_agrees_with_the_depth() -> None:
    view = render(draw_scene(0))
    crop = (..., slice(60, 110), slice(60, 260))
    true, found = CAMERA.disparity(view.depth)[crop], semi_global_matching(view.left[crop], view.right[crop], 72)
    both = found.isfinite() & (view.ids[crop] != SKY)
    assert float(both.float().mean()) > 0.4
    assert float((found - true)[both].abs().median()) < 1


def test_an_independent_matcher_finds_the_disparity() -> None:
    cv2 = pytest.importorskip("cv2")
    view = render(draw_scene(2))
    left, right = ((x.permute(1, 2, 0) * 255).round().byte().numpy() for x in (view.left, view.right))
    matcher = cv2.StereoSGBM_create(0, 144, 5, P1=600, P2=2400, disp12MaxDiff=1, uniquenessRatio=5)
    found = torch.from_numpy(matcher.compute(left, right).astype(np.float32) / 16)
    boxes = (found > 0) & (view.ids > 0)
    assert float((found - CAMERA.disparity(view.depth))[boxes].abs().median()) < 0.3


def test_training_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    x, y = noise(24, 3).float(), torch.arange(24) % 2

    class Stop(Exception):
        pass

    def fitted(resume: Path | None, stop: int | None = None) -> torch.nn.Module:
        def told(done: int, total: int) -> None:
            if done == stop:
                raise Stop

        model = seeded(
            0, lambda: torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
        )
        return train(model, x, y, Recipe(4, batch_size=8), seed=0, progress=told, resume=resume)

    file = tmp_path / "training.pt"
    with pytest.raises(Stop):
        fitted(file, stop=3)
    assert file.exists()
    again, whole = fitted(file), fitted(None)
    assert not file.exists()
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_test_scenes_one_after_the_other() -> None:
    model = seeded(0, lambda: benchmark.OnPairs(LEVELS)).eval()
    at_half = partial(VOXELS.apply, threshold=0.5)
    assert benchmark.item_stream(model, at_half, benchmark.SMALL) is None
    stream = benchmark.item_stream(model, at_half, replace(benchmark.SMALL, items=2))
    assert stream is not None
    assert [[grid.shape[1] for grid in call()] for call in stream()] == [[8, 16, 32, 64]] * 2


# --------------------------------------------------------------------------------------------------------------------
# Real pairs, and a user's own


def test_motorcycle() -> None:
    pair = stereo.motorcycle()
    points = pair.points()
    assert (round(float(points[:, 2].min()), 2), round(float(points[:, 2].max()), 2)) == (2.11, 5.02)
    shares = [float(cells.float().mean()) for cells in levels(voxelise(points, benchmark.CLOSE))]
    assert shares == pytest.approx([0.273, 0.146, 0.0711, 0.0263], abs=5e-4)
    back = pair.camera.project(points)
    rows, columns = pair.disparity.isfinite().nonzero().unbind(1)  # type: ignore[union-attr]
    assert float((back[:, 0] - columns).abs().max()) < 1e-9
    assert float((back[:, 1] - rows).abs().max()) < 1e-9
    fitted = pair.fitted(160, 334).centred()
    assert fitted.left.shape == (3, 160, 320)
    assert abs(fitted.camera.offset) < 0.5
    warped, inside = stereo.warp(fitted.right, fitted.disparity)  # type: ignore[arg-type]
    assert float((warped - fitted.left).abs().mean(0)[inside].median()) < 0.03


def test_aloe(asset: Callable[[str], Path]) -> None:
    asset("opencv-stereo")
    pair = stereo.aloe()
    assert pair.left.shape == (3, 1110, 1282)
    assert float(pair.disparity.isfinite().float().mean()) == pytest.approx(0.965, abs=1e-3)  # type: ignore[union-attr]
    assert pair.points()[:, 2].min() == pytest.approx(2.836, abs=1e-3)


def test_swapped_single_and_unrectified_pairs() -> None:
    view = render(draw_scene(2))
    stereo.check_rectified(view.left, view.right)
    for left, right, says in (
        (view.right, view.left, "swapped"),
        (view.left, view.left, "the same image"),
        (view.left, view.right.roll(3, 1), "not rectified: most patches match 3 rows"),
    ):
        with pytest.raises(ValueError, match=says):
            stereo.check_rectified(left, right)


def written(folder: Path, seed: int = 2) -> dict[str, Path]:
    """A made pair as files."""
    import skimage.io

    view = render(draw_scene(seed))
    disparity = torch.where(view.ids == SKY, 0, CAMERA.disparity(view.depth) * 256)
    files = {name: folder / f"{name}.png" for name in ("left", "right", "disparity")}
    for name, image in (("left", view.left), ("right", view.right)):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        skimage.io.imsave(files[name], pixels, check_contrast=False)
    skimage.io.imsave(files["disparity"], disparity.round().numpy().astype(np.uint16), check_contrast=False)
    return files


def test_a_pair_of_ones_own(tmp_path: Path) -> None:
    files = written(tmp_path)
    calibration = tmp_path / "calib.txt"
    calibration.write_text("cam0=[240 0 160; 0 240 80; 0 0 1]\ndoffs=0\nbaseline=540\n")
    pair = stereo.load_pair(files["left"], files["right"], calibration, files["disparity"])
    assert pair.camera == CAMERA
    assert voxelise(pair.points(), benchmark.GRID).any()
    cloud = tmp_path / "cloud.npy"
    np.save(cloud, np.array([[0.0, 0.0, 2.0]]))
    numbers = NUMBERS
    lidar = stereo.load_pair(files["left"], files["right"], numbers, lidar=cloud)
    assert lidar.points().tolist() == [[0, 0, 2]]
    with pytest.raises(ValueError, match="is it in millimetres"):
        stereo.load_pair(files["left"], files["right"], numbers | {"baseline": 540.0})
    with pytest.raises(ValueError, match="the calibration lacks cy"):
        stereo.load_pair(files["left"], files["right"], {n: v for n, v in numbers.items() if n != "cy"})
    with pytest.raises(ValueError, match=r"left\.png: left and right are swapped"):
        stereo.load_pair(files["right"], files["left"], numbers)
    with pytest.raises(FileNotFoundError, match=r"none\.png is missing"):
        stereo.load_pair(files["left"], tmp_path / "none.png", numbers)


NUMBERS = {"focal": 240.0, "cx": 160.0, "cy": 80.0, "baseline": 0.54}


def test_what_is_wrong_with_a_pair_of_ones_own(tmp_path: Path) -> None:
    import skimage.io

    files = written(tmp_path)

    def array(name: str, values: Any) -> Path:
        np.save(tmp_path / f"{name}.npy", np.asarray(values, np.float32))
        return tmp_path / f"{name}.npy"

    def text(name: str, words: str) -> Path:
        (tmp_path / name).write_text(words)
        return tmp_path / name

    def pixels(name: str, values: Any) -> Path:
        skimage.io.imsave(tmp_path / name, values, check_contrast=False)
        return tmp_path / name

    grey = pixels("grey.png", np.zeros((160, 320), np.uint8))
    narrow = pixels("narrow.png", np.zeros((160, 300), np.uint8))
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"disparity": array("negative", np.full((160, 320), -1.0))}, r"negative\.npy: the disparity is negative"),
        ({"disparity": array("minus", np.full((160, 320), -np.inf))}, r"minus\.npy: the disparity is negative"),
        ({"disparity": array("row", np.ones(320))}, r"row\.npy: the disparity must have shape"),
        ({"disparity": array("small", np.ones((80, 160)))}, "of another size than the images"),
        ({"disparity": grey}, r"grey\.png must be a grey PNG of 16 bits"),
        ({"lidar": array("cloud", [[0.0, np.nan, 2.0]])}, r"cloud\.npy must hold finite points"),
        ({"lidar": array("flat", [[0.0, 2.0]])}, r"must hold finite points \(N, 3\)"),
        ({"calibration": NUMBERS | {"fx": 1.0}}, "a calibration has no fx"),
        ({"calibration": NUMBERS | {"focal": 0.0}}, "focal"),
        ({"calibration": text("calib.txt", "cam0=[240 0 160]\n")}, r"calib\.txt is no calibration"),
        ({"calibration": text("calib.json", "{}")}, r"calib\.json is no calibration: the calibration lacks"),
        ({"right": narrow}, "both images must have the same size"),
        ({"right": text("words.png", "no image")}, r"words\.png cannot be read as an image"),
        ({"right": files["left"]}, "the same image: a single camera tells no distance"),
    )
    for change, says in wrong:
        with pytest.raises(ValueError, match=says):
            stereo.load_pair(**{"left": files["left"], "right": files["right"], "calibration": NUMBERS} | change)
    gaps = np.full((160, 320), np.nan)
    gaps[80, 160] = 64.8
    pair = stereo.load_pair(files["left"], files["right"], NUMBERS, array("gaps", gaps))
    assert pair.points().tolist() == pytest.approx(np.array([[0.0, 0.0, 2.0]]))
    with pytest.raises(ValueError, match="neither points of a range sensor nor a disparity"):
        stereo.load_pair(files["left"], files["right"], NUMBERS).points()


def test_disparities_that_are_none_and_scenes_without_any() -> None:
    for value, says in ((torch.nan, "holds NaN"), (-1.0, r"is negative \(-1\)")):
        with pytest.raises(ValueError, match=says):
            CAMERA.back_project(torch.full((4, 4), value))
    for unknown in (torch.inf, 0.0):  # infinitely far, too
        points = CAMERA.back_project(torch.full((4, 4), unknown))
        assert points.shape == (0, 3)
        assert not voxelise(points, Grid.in_front(8.0)).any()


def test_the_layout_of_driving_stereo(tmp_path: Path) -> None:
    import skimage.io

    with pytest.raises(FileNotFoundError, match="unpack that part of DrivingStereo"):
        next(stereo.driving_stereo(tmp_path))
    places = {
        "left": "test-left-image/left-image-half-size/drive-1.jpg",
        "right": "test-right-image/right-image-half-size/drive-1.jpg",
        "disparity": "test-disparity-map/disparity-map-half-size/drive-1.png",
    }
    files = written(tmp_path)
    for kind, place in places.items():
        (tmp_path / place).parent.mkdir(parents=True)
        skimage.io.imsave(tmp_path / place, skimage.io.imread(files[kind]), check_contrast=False)
    for place in places.values():
        (tmp_path / place.replace("test", "train")).parent.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"left-image-half-size holds no \.jpg"):
        next(stereo.driving_stereo(tmp_path, "train"))
    (pair,) = stereo.driving_stereo(tmp_path)
    assert (pair.name, pair.left.shape, pair.camera.focal) == ("drive-1", (3, 160, 320), 1003.556)
    assert pair.disparity is not None
    assert bool(pair.disparity.isinf().any())
    (tmp_path / places["right"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"right-image-half-size.drive-1\.jpg is missing"):
        next(stereo.driving_stereo(tmp_path))
