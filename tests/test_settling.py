"""How layers settle: structural similarity and CKA on small tensors with known answers."""

from __future__ import annotations

import pytest
import torch

from reference_impls.contract import generator
from reference_impls.redundancy.settling import linear_cka, structural_similarity


def test_structural_similarity_looks_at_the_larger_half_alone():
    now = torch.tensor([[4.0, -3.0, 0.5], [0.0, 0.2, 0.0]])
    final = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    assert structural_similarity(now, final) == 0.5  # of 4 and -3, the places of 1 and 0
    assert structural_similarity(now, now) == 1
    with pytest.raises(ValueError, match="one shape"):
        structural_similarity(now, final.T)
    with pytest.raises(ValueError, match="zero everywhere"):
        structural_similarity(torch.zeros(2, 2), torch.ones(2, 2))


def test_cka_is_one_for_rotated_and_scaled_representations_and_low_for_others():
    draws = generator(0)
    x = torch.randn(400, 5, generator=draws)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=draws))
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1)
    assert linear_cka(x, torch.randn(400, 5, generator=draws)) < 0.1
    by_definition = (x[:, :2] - x[:, :2].mean(0)).double(), (x - x.mean(0)).double()
    a, b = by_definition
    due = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x[:, :2], x) == pytest.approx(float(due))
    for y, says in ((x[:9], "same inputs"), (torch.ones(400, 2), "same for all inputs"), (x[0], "shape")):
        with pytest.raises(ValueError, match=says):
            linear_cka(x, y)
