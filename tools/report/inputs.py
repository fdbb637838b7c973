"""What the command is given: a model and data, by the name of a function, or as files."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"})
CLIPS = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm"})
TEXTS = frozenset({".txt", ".md", ".eml"})
FRAMES = 8
"""Frames of a clip."""
GIVEN = "ATLAS_REPORT"
"""Environment variable that tells the process of a verification which files a report was made of."""


class InputError(ValueError):
    """What was given cannot be used; the message says what would be."""


def named(spec: str, what: str) -> Any:
    """What the function `module:function` returns; modules of the current folder can be named.

    Raises: InputError.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise InputError(f"{what} must be MODULE:FUNCTION, such as my_models:build; got {spec!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{what}: {module!r} cannot be imported from {here}: {error}") from error
    if not callable(function := getattr(found, name, None)):
        there = ", ".join(sorted(n for n, v in vars(found).items() if callable(v) and not n.startswith("_"))[:8])
        raise InputError(f"{what}: {module!r} has no function {name!r}; it has: {there or 'none'}")
    try:
        return function()
    except Exception as error:
        raise InputError(f"{what}: {spec}() failed: {type(error).__name__}: {error}") from error


def files(folder: Path) -> tuple[str, list[Path]]:
    """(kind, files) of a folder, or of one file: image, video or text, whichever has the most files.

    Raises: InputError.
    """
    if not folder.exists():
        raise InputError(f"there is no folder or file {str(folder)!r}")
    all_files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    kinds = {"image": PICTURES, "video": CLIPS, "text": TEXTS}
    found = {kind: [p for p in all_files if p.suffix.lower() in endings] for kind, endings in kinds.items()}
    kind, most = max(found.items(), key=lambda one: len(one[1]))
    if not most:
        known = ", ".join(sorted(PICTURES | CLIPS | TEXTS))
        raise InputError(f"{str(folder)!r} holds no picture, clip or text ({known})")
    return kind, most


def hugging_face(path: str) -> Any:
    """A model of Hugging Face from a folder, with the head of its first architecture. Raises: InputError."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("--hf needs transformers: pip install transformers") from error
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        names = config.architectures or []
        kind = getattr(transformers, names[0], transformers.AutoModel) if names else transformers.AutoModel
        return kind.from_pretrained(path, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"{path!r} holds no model that transformers reads: {str(error).splitlines()[0]}") from error


def given_model() -> Any:
    """The model of Hugging Face that the environment names."""
    return hugging_face(json.loads(os.environ[GIVEN])["hf"])


def given_data() -> Iterator[Any]:
    """The files that the environment names, as the model there takes them."""
    given = json.loads(os.environ[GIVEN])
    kind, paths = files(Path(given["data"]))
    model = given_model() if given["hf"] else named(given["model"], "--model")
    return loader(kind, paths, model, given["hf"])


def loader(kind: str, paths: list[Path], model: Any, hf: str | None) -> Iterator[Any]:
    """Batches of one item from files, as the model takes them: pixels in [0, 1] at its size, or tokens."""
    if kind == "text":
        return _texts(paths, hf)
    processor = _processor(hf) if hf else None
    side = _side(model)
    return _pictures(paths, processor, side) if kind == "image" else _clips(paths, processor, side)


def _processor(path: str) -> Any:
    import transformers

    try:
        kind: Any = transformers.AutoImageProcessor
        return kind.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError):
        return None


def _side(model: Any) -> int:
    size = getattr(getattr(model, "config", None), "image_size", 224)
    return int(size if isinstance(size, int) else max(size))


def _pictures(paths: list[Path], processor: Any, side: int) -> Iterator[Any]:
    from PIL import Image

    for path in paths:
        with Image.open(path) as picture:
            yield _prepared(picture.convert("RGB"), processor, side)


def _prepared(picture: Any, processor: Any, side: int) -> Any:
    import numpy as np
    import torch

    if processor is not None:
        return processor(picture, return_tensors="pt")["pixel_values"]
    pixels = np.asarray(picture.resize((side, side)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def _clips(paths: list[Path], processor: Any, side: int) -> Iterator[Any]:
    import av
    import torch

    for path in paths:
        with av.open(str(path)) as container:
            frames: list[Any] = []
            decoded: Any = container.decode(video=0)
            for frame in decoded:
                frames.append(_prepared(frame.to_image(), processor, side))
                if len(frames) == FRAMES:
                    yield torch.cat(frames)
                    frames = []


def _texts(paths: list[Path], hf: str | None) -> Iterator[Any]:
    if hf is None:
        raise InputError("texts need the tokenizer of a model: give --hf, or --data MODULE:FUNCTION")
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(hf, local_files_only=True)
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if text:
            yield dict(tokenizer(text, return_tensors="pt", truncation=True, max_length=128))
