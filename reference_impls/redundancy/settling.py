"""How far parts of a network in training are what they will be at its end: their structure, and what they compute.

References
    yuan-2022-layer (arXiv 2209.11204), section 3.1: structural similarity of a sparse layer with the final one.
    Kornblith et al., 2019 (arXiv 1905.00414): centred kernel alignment (CKA), its linear form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_impls.contract.errors import check_tensor
from reference_impls.contract.precision import widened


def structural_similarity(weight: Tensor, final: Tensor) -> float:
    """Share of the larger half of a layer's weights whose places are not zero in the final layer, in [0, 1].

    weight, final: the sparse weight now and at the end, of one shape. The half counts weights that are not zero.
    Raises: ValueError for weights of two shapes, and for one without any weight that is not zero.
    """
    if weight.shape != final.shape:
        raise ValueError(f"weights of one shape are compared, got {tuple(weight.shape)} and {tuple(final.shape)}")
    size = widened(weight.detach()).abs().flatten()
    there = int((size > 0).sum())
    if not there:
        raise ValueError("the weight is zero everywhere: there is no structure to compare")
    largest = size.argsort(descending=True, stable=True)[: max(1, there // 2)]
    return float((final.flatten()[largest] != 0).double().mean())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Similarity of two representations of the same inputs, x (N, P) and y (N, Q), in [0, 1].

    |Y^T X|^2 / (|X^T X| |Y^T Y|) of centred columns, Frobenius norms: the same for rotated or scaled representations.
    Raises: ValueError for other shapes, for different inputs, and for one that is the same for all inputs.
    """
    check_tensor("x", x, "N P")
    check_tensor("y", y, "N Q")
    if len(x) != len(y):
        raise ValueError(f"both hold the same inputs, got {len(x)} and {len(y)}")
    x, y = (widened(one).double() - widened(one).double().mean(0) for one in (x, y))
    a, b = x @ x.T, y @ y.T  # |Y^T X|^2 is the sum of the products of both Gram matrices
    norm = a.norm() * b.norm()
    if not bool(norm > 0):
        raise ValueError("a representation that is the same for all inputs is similar to none")
    return float(torch.clamp((a * b).sum() / norm, 0, 1))
