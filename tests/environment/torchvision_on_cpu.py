"""Lets torchvision be imported where its compiled operators cannot be loaded: beside a CPU build of torch.

While it is imported, torchvision describes the operators `nms` and `qnms`, and fails where they do not exist; then
timm and transformers fail with it, though neither needs them for its models. Importing this module has both declared
(without an implementation) as soon as torchvision has looked for its own. `make setup` puts it into the environment
with a `.pth` file, so that every interpreter there starts with it; that costs nothing until torchvision is imported.
"""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

DESCRIBED_BY = "torchvision._meta_registrations"
OPERATORS = ("nms", "qnms")


class Declare(importlib.abc.MetaPathFinder):
    """Finds no module, but declares the operators when the module that describes them is looked for."""

    library: Any = None  # torch forgets what was declared when this goes

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != DESCRIBED_BY:
            return
        import torch

        missing = [operator for operator in OPERATORS if not hasattr(torch.ops.torchvision, operator)]
        if missing:
            self.library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in missing:
            self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if not any(type(finder).__name__ == Declare.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, Declare())
