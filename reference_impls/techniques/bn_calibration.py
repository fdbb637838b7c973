"""Batch-norm calibration: estimate the statistics of batch norms again, where the hardware gives other sums.

References:
  jin-2022-pim (arXiv 2209.08617): Jin, Chen, Ren, Li, Wang, Yang. PIM-QAT: Neural Network Quantization for
    Processing-In-Memory (PIM) Systems. 2022: named in the abstract as the answer to chips that are not linear. What it
    takes exactly was not available to us.

A converter with a gain of 0.9 and an offset of two codes shifts and scales the sums of every layer. That is what a
batch norm takes away, if its mean and variance are those of the sums that really come. So a few batches are run on the
real hardware, and each batch norm takes the mean of their statistics; no weight is changed and no label needed.

    with PIMQuantization().apply(model, adc_bits=7, chip=Chip(gain=0.9, offset=2)) as on_chip:
        with BNCalibration().apply(model, images=batch) as handle:
            logits = model(images)

`layers.norm.recalibrate` does the same in place and for good.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.closed_form import closed_form
from reference_impls.contract import Given, Handle, Integer, Redundancy, Setting, Technique
from reference_impls.contract.errors import UnsupportedHost, check_tensor, warn_no_effect
from reference_impls.contract.replacement import replace
from reference_impls.hosts.layers import refuse_narrow
from reference_impls.layers.norm import recalibrate

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class Statistics(NamedTuple):
    """What a batch norm normalises by: (C,) each."""

    mean: Tensor
    variance: Tensor


def statistics(model: nn.Module, x: Tensor, batch_size: int = 256) -> dict[str, Statistics]:
    """What batch norms find on x (N, ...), the mean over batches, in a copy: the model stays as it is."""
    found = copy.deepcopy(model)
    recalibrate(found, x, batch_size)
    norms = {name: m for name, m in found.named_modules() if isinstance(m, Norm)}
    return {name: Statistics(norm.running_mean, norm.running_var) for name, norm in norms.items()}  # type: ignore[arg-type]


def distance(old: Statistics, new: Statistics) -> float:
    """How far two statistics are apart, in [0, 1]: the mean over channels of the Hellinger distance squared.

    H^2 = 1 - sqrt(2 s t / (s^2 + t^2)) exp(-(m - n)^2 / 4 (s^2 + t^2)) of normal distributions with means m, n and
    deviations s, t: 0 for equal ones, near 1 where nothing of one would be taken for the other.
    """
    total = old.variance.double() + new.variance.double() + 1e-12
    ratio = (2 * (old.variance.double() * new.variance.double()).sqrt() + 1e-12) / total
    overlap = ratio.sqrt() * torch.exp(-((old.mean.double() - new.mean.double()) ** 2) / (4 * total))
    return min(max(1 - overlap.mean().item(), 0.0), 1.0)


class BNCalibration(Technique):
    """Batch norms with statistics of the model as it now runs, other techniques on it included."""

    id = "bn-calibration"
    execution = "simulated"
    trains = True
    knobs: ClassVar = {
        "images": Given(None, form="tensor", about="(N, ...) inputs to estimate from; None changes nothing"),
        "batch_size": Integer(256, low=1, about="of the estimates, whose mean is taken"),
    }

    def settings(self) -> list[Setting]:
        draws = torch.rand(16, 2, 6, 6, generator=torch.Generator().manual_seed(0))
        return [
            Setting("off", {"images": None}, off=True),
            Setting("16 images", {"images": draws, "batch_size": 8}, adaptive=True),
            Setting("4 images", {"images": draws[:4]}, adaptive=True),
        ]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """How far the statistics are from those of the inputs, mean over batch norms: see `distance`.

        0: nothing to gain by calibration; near 1: what the network normalises by has nothing to do with what comes.
        """
        norms = check_norms(target)
        check_tensor("inputs", inputs, " ".join("BCHWD"[: inputs.ndim] if isinstance(inputs, Tensor) else "B"))
        found = statistics(target, inputs)
        where = {name: distance(now(norm), found[name]) for name, norm in norms.items()}
        return Redundancy(sum(where.values()) / len(where), "distance of batch-norm statistics", where)

    def attach(self, target: nn.Module, images: Tensor | None, batch_size: int) -> Handle:
        """Normalise by the statistics of `images`; parameters and buffers stay as they are, bit for bit.

        In training mode a batch norm does as it did before. The trace holds `statistics` by module and `shape`, that of
        the images.

        Raises: UnsupportedHost for a model without batch norms that keep statistics, or in a narrow dtype; TypeError or
            ValueError for images that are none, or not finite.
        """
        norms = check_norms(target)
        if images is None:
            warn_no_effect(self.id, "without images there is nothing to estimate from")
            return Handle(target)
        check_tensor("images", images, " ".join("BCHWD"[: images.ndim] if isinstance(images, Tensor) else "B"))
        like = next(target.parameters())
        try:
            found = statistics(target, images.to(like), batch_size)
        except RuntimeError as error:
            raise ValueError(f"images must be what the model takes: {error}") from None
        undos = [replace(norm, partial(_calibrated, found[name]), self.id) for name, norm in norms.items()]

        def undo() -> None:
            for one in undos:
                one()

        return Handle(target, undo, lambda: {"statistics": found, "shape": tuple(images.shape)})

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Minus the MACs of one run on the images. TypeError for a model without a closed form."""
        shape = trace.get("shape")
        return 0 if shape is None else -shape[0] * closed_form(target, shape[1:]).macs


def check_norms(target: object) -> dict[str, Norm]:
    """The batch norms of a model that keep statistics, by name. UnsupportedHost if there are none."""
    modules = target.named_modules() if isinstance(target, nn.Module) else ()
    norms = {name: m for name, m in modules if isinstance(m, Norm) and m.running_mean is not None}
    if not norms or not isinstance(target, nn.Module):
        raise UnsupportedHost(BNCalibration.id, target, "a network with batch norms that keep running statistics")
    refuse_narrow(BNCalibration.id, target)
    return norms


def now(norm: Norm) -> Statistics:
    """What a batch norm's buffers hold."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return Statistics(norm.running_mean, norm.running_var)


def _calibrated(found: Statistics, norm: Any, dense: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """In the place of a batch norm's forward `dense`."""
    if norm.training:
        return dense(x)
    return F.batch_norm(x, found.mean.to(x), found.variance.to(x), norm.weight, norm.bias, eps=norm.eps)
