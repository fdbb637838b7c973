"""Preparations heard of while an experiment runs, so that none can be forgotten in its record.

What trains, embeds, clusters, calibrates or searches says so by a decorator, cached results included:

    @prepares("clustering")
    def k_means(z, seed): ...

    with listening() as heard:
        k_means(z, 0)
    heard                           # {"clustering"}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from reference_impls.accounting.record import Preparing

P = ParamSpec("P")
R = TypeVar("R")
_HEARD: ContextVar[set[Preparing] | None] = ContextVar("heard", default=None)


def prepares(kind: Preparing) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks a function whose work is a preparation: each call is heard, whatever a cache spares it."""

    def marked(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def told(*args: P.args, **kwargs: P.kwargs) -> R:
            heard = _HEARD.get()
            if heard is not None:
                heard.add(kind)
            return function(*args, **kwargs)

        return told

    return marked


@contextmanager
def listening() -> Iterator[set[Preparing]]:
    """Gathers the kinds of preparation that are heard of inside the block."""
    heard: set[Preparing] = set()
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


def heard() -> frozenset[Preparing]:
    """The kinds heard so far in the innermost block; none outside of any."""
    return frozenset(_HEARD.get() or ())
