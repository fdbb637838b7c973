"""Parts of a training inside the `Trainer` of transformers: masks, frozen blocks.

    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
    sparse = SparseTraining(model, optimiser, sparsity=0.9, epochs=3)
    freezing = Freezing(blocks, optimiser, single_shot(3, start=1, interval=1, most=4))
    Trainer(model, arguments, optimizers=(optimiser, None), callbacks=[callback(sparse, freezing)], ...).train()

To go on from a checkpoint of the end of an epoch (`save_strategy="epoch"`), the parts come first:

    restore(folder, sparse, freezing)
    trainer.train(resume_from_checkpoint=folder)

transformers is imported when the callback is made, and not before.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch

from reference_impls.hosts.training import Part

FILE = "parts.pt"
"""Beside the Trainer's own files in each checkpoint."""


def callback(*parts: Part) -> Any:
    """A `TrainerCallback` that ends epochs of the parts, in their order, and saves their state in every checkpoint.

    Parts that choose examples, such as sieving, are no callback's: give the Trainer a sampler for them. The optimiser
    must be given to the Trainer, as the parts hold on to it. Raises: ImportError without transformers; ValueError where
    nothing is given, or for a part that chooses examples.
    """
    if not parts:
        raise ValueError("give one part or more, such as SparseTraining or Freezing")
    if any(part.examples() is not None for part in parts):
        raise ValueError("a part that chooses examples needs a sampler: a callback cannot leave examples out")
    try:
        base: Any = importlib.import_module("transformers").TrainerCallback
    except ImportError as error:
        raise ImportError("the Trainer's callback needs transformers: pip install transformers accelerate") from error

    class PartsCallback(base):  # type: ignore[misc]
        """Ends epochs of the parts."""

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for part in parts:
                part.epoch_ended(round(state.epoch) - 1)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            written = folder / f"{FILE}.{os.getpid()}.part"
            torch.save([part.state_dict() for part in parts], written)
            written.replace(folder / FILE)

    return PartsCallback()


def restore(folder: str | os.PathLike[str], *parts: Part) -> None:
    """Let the parts, in the order in which `callback` was given them, go on from a checkpoint of the Trainer.

    Before `train(resume_from_checkpoint=folder)`: which parameters an optimiser has follows from what is frozen.
    Raises: FileNotFoundError for a checkpoint without parts; ValueError for one of other parts or another model.
    """
    states = torch.load(Path(folder) / FILE, weights_only=True)
    if len(states) != len(parts):
        raise ValueError(f"the checkpoint has {len(states)} parts, {len(parts)} were given")
    for part, one in zip(parts, states, strict=True):
        part.load_state_dict(one)
