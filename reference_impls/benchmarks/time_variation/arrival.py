"""Input and output: how a frame comes to the network, from memory, from a file, or from another process."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_impls.accounting.record import Record
from reference_impls.benchmarks.time_variation.conditions import Condition, Step, VariationPlan, observe, recorded
from reference_impls.benchmarks.time_variation.pipelines import classified, described, scenes
from reference_impls.models.efficientnet_lite import efficientnet_lite0
from reference_impls.study import Study
from reference_impls.variation import Profiler


def arrival(study: Study[VariationPlan]) -> Record:
    """I/O: the same frames raw in memory, decoded from PNG and JPEG, through a pipe, and through shared memory."""
    from PIL import Image

    plan, network = study.plan, efficientnet_lite0().eval()
    pixels = [(frame[0] * 255).byte().permute(1, 2, 0).numpy() for frame in scenes(plan)]

    def stored(image: np.ndarray[Any, Any], kind: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
        return file.getvalue()

    def raw(image: np.ndarray[Any, Any], profiler: Profiler) -> np.ndarray[Any, Any]:
        with profiler.stage("read"):
            return image.copy()

    def decoded(file: bytes, profiler: Profiler) -> np.ndarray[Any, Any]:
        with profiler.stage("read"):
            return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    with Echo(pixels[0].shape) as echo:

        def step(get: Callable[[Profiler], np.ndarray[Any, Any]]) -> Step:
            def tensor(profiler: Profiler) -> Tensor:
                return torch.from_numpy(get(profiler)).permute(2, 0, 1)[None].float() / 255

            return classified(network, torch.empty(0), tensor)

        ways: dict[str, Callable[[np.ndarray[Any, Any]], Callable[[Profiler], np.ndarray[Any, Any]]]] = {
            "raw in memory": lambda image: partial(raw, image),
            "PNG": lambda image: partial(decoded, stored(image, "PNG")),
            "JPEG": lambda image: partial(decoded, stored(image, "JPEG")),
            "pipe": lambda image: partial(echo.through_pipe, image),
            "shared memory": lambda image: partial(echo.through_memory, image),
        }
        conditions = [Condition(name, [step(way(image)) for image in pixels]) for name, way in ways.items()]
        seen = observe(conditions, plan)
    return recorded(
        study, conditions, seen, data=described(plan), model="EfficientNet-Lite0, after the reading of a frame",
        notes=("JPEG at quality 95 loses a little, so that some frames get another class.",),
    )  # fmt: skip


class Echo:
    """Another process that sends frames back: through a pipe, or by a word about memory that both see."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __enter__(self) -> Echo:
        context = multiprocessing.get_context("fork")  # it runs nothing of torch
        self._memory = shared_memory.SharedMemory(create=True, size=int(np.prod(self.shape)))
        self._here, there = context.Pipe()
        self._process = context.Process(target=_echo, args=(there,), daemon=True)
        self._process.start()
        self._here.send(b"ready")
        self._here.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._here.send(None)
        self._process.join(5)
        self._process.kill()
        self._memory.close()
        self._memory.unlink()

    def through_pipe(self, image: np.ndarray[Any, Any], profiler: Profiler) -> np.ndarray[Any, Any]:
        with profiler.stage("read"):
            self._here.send(image)
            got: np.ndarray[Any, Any] = self._here.recv()
            return got

    def through_memory(self, image: np.ndarray[Any, Any], profiler: Profiler) -> np.ndarray[Any, Any]:
        with profiler.stage("read"):
            shared: np.ndarray[Any, Any] = np.ndarray(self.shape, np.uint8, self._memory.buf)
            shared[:] = image
            self._here.send(b"look")
            self._here.recv()
            return shared.copy()


def _echo(pipe: Any) -> None:
    while (message := pipe.recv()) is not None:
        pipe.send(message)
