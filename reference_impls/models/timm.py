"""Networks of timm, where it is installed: an option that nothing here depends on."""

from __future__ import annotations

import importlib

from torch import nn


def timm_network(name: str) -> nn.Module | None:
    """A network of timm with random weights, in evaluation mode; None where timm, or what it imports, is missing."""
    try:
        return importlib.import_module("timm").create_model(name).eval()
    except ImportError:
        return None
