"""What trains, what is held out, and what tests: splits of the labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reference_impls.contract import generator
from reference_impls.data import images

Labelled = Literal["digits", "mnist", "mnist-5k", "fashion-mnist"]
TITLES: dict[Labelled, str] = {
    "digits": "digits of scikit-learn",
    "mnist": "MNIST",
    "mnist-5k": "MNIST-5k",
    "fashion-mnist": "Fashion-MNIST",
}


class Part(NamedTuple):
    """Inputs and their classes."""

    x: Tensor
    """(N, ...)"""
    y: Tensor
    """(N,) int64"""

    def rows(self, index: Tensor) -> Part:
        """The items of these indices."""
        return Part(self.x[index], self.y[index])

    def mapped(self, prepare: Callable[[Tensor], Tensor]) -> Part:
        """The same classes with other inputs."""
        return Part(prepare(self.x), self.y)

    def to(self, device: str) -> Part:
        """On a device."""
        return Part(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Split:
    """What trains the weights, what may be looked at to choose or calibrate, and what tests in the end."""

    train: Part
    held: Part
    test: Part

    def mapped(self, prepare: Callable[[Tensor], Tensor]) -> Split:
        """All three with other inputs."""
        return Split(*(part.mapped(prepare) for part in (self.train, self.held, self.test)))


def split(
    data: Labelled, train: int | None = None, held: int = 0, test: int | None = None, *, seed: int | None = None
) -> Split:
    """So many images to train on, held out, and to test; None: all that are left.

    Without a seed the first ones of the training set are taken, with one they are drawn without overlap. The test set
    is the data's own, from its first image on. Raises: MissingAsset for MNIST and Fashion-MNIST.
    """
    load = {
        "digits": images.digits,
        "mnist": images.mnist,
        "mnist-5k": images.mnist_5k,
        "fashion-mnist": images.fashion_mnist,
    }
    x, y, x_test, y_test = load[data]()
    order = torch.arange(len(x)) if seed is None else torch.randperm(len(x), generator=generator(seed))
    train = len(x) - held if train is None else train
    if train + held > len(x):
        raise ValueError(f"{data} has {len(x)} images to train on, not {train} + {held}")
    whole = Part(x, y)
    return Split(whole.rows(order[:train]), whole.rows(order[train : train + held]), Part(x_test[:test], y_test[:test]))


def standardised(parts: Split, by: Tensor | None = None) -> Split:
    """With the mean 0 and the deviation 1 of the training inputs, or of `by`."""
    x = parts.train.x if by is None else by
    mean, std = x.mean(), x.std()
    return parts.mapped(lambda x: (x - mean) / std)
