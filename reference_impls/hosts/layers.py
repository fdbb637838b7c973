"""The convolutions and linear layers of somebody's model that a technique may compute in another way."""

from __future__ import annotations

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase

import torch
from torch import nn

from reference_impls.contract.errors import UnsupportedHost, nearest
from reference_impls.contract.replacement import own_forward

Layer = nn.Conv2d | nn.Linear
_PRODUCTS = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
)  # fmt: skip
WORDS = ("first", "last", "small")


def plain_layers(
    technique: str, target: object, left: Collection[str], small: Callable[[Layer], bool] = lambda layer: False
) -> dict[str, Layer]:
    """Every `nn.Conv2d` and `nn.Linear` of a model by its name, but for those that `left` names.

    left: names of modules, patterns of them such as `blocks.*`, and the words `first` and `last` (of the layers of the
    model, in the order in which it holds them) and `small` (those for which `small(layer)`).

    Raises: UnsupportedHost for what is no module in float32 or float64, for a part that multiplies in another way and
        is not left, and where nothing remains; ValueError for a name in `left` that the model does not have.
    """
    if not isinstance(target, nn.Module):
        raise UnsupportedHost(technique, target, "an nn.Module with convolutions or linear layers")
    if isinstance(left, str) or not isinstance(left, Collection) or not all(isinstance(name, str) for name in left):
        raise TypeError(f"layers that stay digital are named in a list, such as `digital` = ['first'], got {left!r}")
    refuse_narrow(technique, target)
    modules = dict(target.named_modules())
    for pattern in left:
        if pattern not in WORDS and not any(fnmatchcase(name, pattern) for name in modules):
            raise ValueError(f"the model has no module {pattern!r} to leave{nearest(pattern, [*modules, *WORDS])}")
    found = dict[str, Layer]()
    kept = list[str]()
    for name, module in modules.items():
        if any(name == one or name.startswith(f"{one}.") for one in kept):
            continue
        if any(fnmatchcase(name, pattern) for pattern in left):
            kept.append(name)
        elif isinstance(module, nn.Conv2d | nn.Linear) and own_forward(module) in _FORWARDS:
            found[name] = module
        elif isinstance(module, _PRODUCTS):
            needs = f"plain nn.Conv2d and nn.Linear layers, but {name or 'the model'} is a {type(module).__name__}"
            raise UnsupportedHost(technique, target, f"{needs}: put {name!r} into `digital` to leave it as it is")
    names = list(found)
    gone = set(names[:1] if "first" in left else ()) | set(names[-1:] if "last" in left else ())
    gone |= {name for name, layer in found.items() if "small" in left and small(layer)}
    if not (found := {name: layer for name, layer in found.items() if name not in gone}):
        raise UnsupportedHost(technique, target, f"a layer that is not left: of {len(names)} all are, by {tuple(left)}")
    return found


_FORWARDS = (nn.Conv2d.forward, nn.Linear.forward)


def refuse_narrow(technique: str, target: nn.Module) -> None:
    """Raise UnsupportedHost for parameters narrower than float32, and under autocast: codes would not be exact."""
    for x in target.parameters():
        if x.dtype not in (torch.float32, torch.float64):
            raise UnsupportedHost(technique, target, f"parameters in float32 or float64, got {x.dtype}")
        if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
            raise UnsupportedHost(technique, target, "float32: integers are not exact under autocast")
