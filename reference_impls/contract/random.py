"""Randomness that follows from a seed."""

from __future__ import annotations

import torch


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU, so that the draws are the same on every device."""
    return torch.Generator().manual_seed(seed)
