"""Training with every choice written down: seeds, recipes, trained networks from the cache, and how right they are."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from reference_impls.accounting.count import count
from reference_impls.accounting.preparation import prepares
from reference_impls.data import assets

M = TypeVar("M", bound=nn.Module)


@contextmanager
def fork_seed(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and `random` inside the block; the global generators continue afterwards as if untouched."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def seeded(seed: int, build: Callable[[], M]) -> M:
    """What `build` makes, its random choices following from the seed."""
    with fork_seed(seed):
        return build()


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int
    lr: float = 1e-3
    batch_size: int = 128
    weight_decay: float = 0.05
    largest_gradient: ClassVar[float] = 1.0
    """Norm to which the gradient of a step is clipped."""

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW, which divides each gradient by its own running size."""
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class MomentumRecipe(Recipe):
    """Gradient descent with Nesterov's momentum, whose steps follow the size of the gradient."""

    momentum: float = 0.9
    largest_gradient: ClassVar[float] = math.inf

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=True)


@prepares("training")
def train(
    model: M,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    resume: Path | None = None,
) -> M:
    """Train in place with the recipe's optimiser, a linear warm-up and a cosine schedule; returns it in eval mode.

    x: (N, ...) inputs; y: (N,) targets. `loss(outputs, targets)` may take the outputs of several exits. Every random
    choice follows from `seed`, so a second call with an equal model gives equal weights. `resume`: a file that holds
    the state after each epoch, from which an interrupted call goes on, to the same weights; deleted at the end.
    """
    order = torch.Generator().manual_seed(seed)
    optimiser = recipe.optimiser(model.parameters())
    steps = recipe.epochs * -(-len(x) // recipe.batch_size)
    # Fewer than three steps leave no room for a schedule, and OneCycleLR divides by the length of the warm-up.
    schedule = OneCycleLR(optimiser, recipe.lr, steps, pct_start=max(0.1, 2 / steps)) if steps > 2 else None
    model.train()
    with fork_seed(seed):
        first = 0
        if resume is not None and resume.exists():
            first = _restore(resume, model, optimiser, schedule, order)
        for epoch in range(first, recipe.epochs):
            for batch in torch.randperm(len(x), generator=order).split(recipe.batch_size):
                inputs = x[batch] if augment is None else augment(x[batch], order)
                optimiser.zero_grad(set_to_none=True)
                loss(model(inputs), y[batch]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.largest_gradient)
                optimiser.step()
                if schedule is not None:
                    schedule.step()
            progress(epoch + 1, recipe.epochs)
            if resume is not None:
                _save(resume, epoch + 1, model, optimiser, schedule, order)
    if resume is not None:
        resume.unlink(missing_ok=True)
    return model.eval()


def _save(file: Path, epochs: int, model: nn.Module, optimiser: Any, schedule: Any, order: torch.Generator) -> None:
    state = {"epochs": epochs, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
    state |= {"order": order.get_state(), "global": torch.get_rng_state()}
    state |= {"schedule": schedule.last_epoch if schedule is not None else 0}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    torch.save(state, part)
    part.replace(file)


def _restore(file: Path, model: nn.Module, optimiser: Any, schedule: Any, order: torch.Generator) -> int:
    """Take up the state of `_save`; returns how many epochs are done."""
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    if schedule is not None:
        schedule.last_epoch = schedule._step_count = state["schedule"]
        schedule._step_count += 1
    order.set_state(state["order"])
    torch.set_rng_state(state["global"])
    return int(state["epochs"])


def training_macs(
    build: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    steps: int = 1,
) -> int:
    """MACs of `train` on what `build` makes, forward and backward: a step of each size of batch is counted.

    `steps`: of the full batches, their mean, where what a step costs is drawn at random.
    """
    total = 0.0
    for size, times in Counter(len(part) for part in torch.arange(len(x)).split(recipe.batch_size)).items():
        counted = min(steps, times)
        with count() as tally:
            part = slice(size * counted)
            train(build(), x[part], y[part], replace(recipe, epochs=1, batch_size=size), seed=0, loss=loss)
        total += recipe.epochs * times * tally.macs / counted
    return round(total)


@prepares("training")
def trained(name: str, spec: Mapping[str, Any], build: Callable[[], M], fit: Callable[[M], nn.Module]) -> M:
    """A trained model, from the cache if the same `spec` (architecture, data, recipe, seed) was trained before."""
    model = build()
    model.load_state_dict(cached(name, spec, lambda: fit(build()).state_dict(), folder="checkpoints"))
    return model.eval()


def cached(name: str, spec: Mapping[str, Any], compute: Callable[[], Any], folder: str = "computed") -> Any:
    """What `compute` returns, a tensor or a mapping of tensors; from the cache if the same `spec` was computed before.

    `spec` holds every choice that the result follows from; together with the torch version it names the file.
    """
    text = json.dumps([name, spec, torch.__version__], sort_keys=True, default=_plain)
    key = hashlib.sha256(text.encode()).hexdigest()
    file = assets.cache_folder() / folder / f"{name}-{key[:16]}.pt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        torch.save(compute(), part)
        part.replace(file)
    return torch.load(file, weights_only=True)


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 256) -> Tensor:
    """Outputs of `model` on x: (N, ...), batch by batch, without gradients."""
    return torch.cat([model(part) for part in x.split(batch_size)])


def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Share of x: (N, ...) whose class y: (N,) a classifier in eval mode gets right."""
    return (predict(model, x).argmax(1) == y).double().mean().item()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of all values of two tensors, such as what a network gave before and after."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def forward(model: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    """A call of the model on the inputs, without gradients: what is counted and timed."""
    return torch.no_grad()(lambda: model(*inputs))


def each(
    model: Callable[..., Any], inputs: Sequence[Any], begin: Callable[[], object] = lambda: None
) -> Callable[[], list[Callable[[], Any]]]:
    """What begins a stream, as `Study.add` takes it: a call for each of the inputs, without gradients.

    begin: what happens before the first, such as forgetting what an earlier stream left.
    """

    def stream() -> list[Callable[[], Any]]:
        begin()
        return [forward(model, x) for x in inputs]

    return stream
