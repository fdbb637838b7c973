"""What a machine gets for its overheads, measured in at most five seconds, and the time that a saving becomes at best.

The realisable ceiling is Amdahl's law over measured shares: of the time of each product the share of its MACs that
falls away, of everything else the share that goes with the data, minus what finding and moving them takes at the rates
of the calibration. It is a ceiling: no kernel is slower on the smaller work, and nothing is waited for. Where data fall
away, what is left may be faster than in proportion, as much as half a batch was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from reference_impls.report.result import Calibration

SECONDS = 5.0
"""Longest time of a calibration."""


def calibrate(device: torch.device | str = "cpu", seconds: float = SECONDS) -> Calibration:
    """Rates of this machine, as medians of a few runs each. It takes `seconds` at most, and usually a quarter of it."""
    began, device = time.perf_counter(), torch.device(device)
    part = seconds / 12

    def once(call: Callable[[], object]) -> float:
        call()
        taken, start = list[float](), time.perf_counter()
        while len(taken) < 3 or (len(taken) < 9 and time.perf_counter() - start < part / 3):
            _wait(device)
            t = time.perf_counter()
            call()
            _wait(device)
            taken.append(time.perf_counter() - t)
            if time.perf_counter() - start > part:
                break
        return max(float(np.median(taken)), 1e-9)

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        n, tile, wide = 512, 64, 256
        a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
        tiles = torch.randn(n * n // (tile * tile), tile, tile, device=device)
        rows, some = torch.randn(8192, wide, device=device), torch.randperm(8192, device=device)[:4096]
        part_of = rows[:4096].clone()
        map_a, map_b = torch.randn(1, 64, 112, 112, device=device), torch.randn(1, 64, 112, 112, device=device)
        planes, tiny = torch.randn(wide, 16, device=device), torch.zeros(4, device=device)
        product = once(lambda: a @ b)
        small = once(lambda: tiles @ tiles)
        gather = once(lambda: rows.index_select(0, some))
        scatter = once(lambda: rows.index_copy_(0, some, part_of))
        compare = once(lambda: (map_a - map_b).abs_().amax(1).view(1, 14, 8, 14, 8).amax((2, 4)) > 0.1)
        hashing = once(lambda: (rows @ planes) > 0)
        call = once(lambda: [tiny.add_(1) for _ in range(100)]) / 100
        bf16 = _ratio(product, lambda: once(lambda: a16 @ b16)) if (a16 := _cast(a)) is not None and (
            b16 := _cast(b)) is not None else None  # fmt: skip
        a8, b8 = (t.clamp(-3, 3).mul(40).to(torch.int8) for t in (a, b))
        int8 = _ratio(product, lambda: once(lambda: torch._int_mm(a8, b8)))
    moved = 2 * 4096 * wide * 4
    return Calibration(
        product_gmacs_s=n**3 / product / 1e9,
        small_product_gmacs_s=len(tiles) * tile**3 / small / 1e9,
        gather_gb_s=moved / gather / 1e9,
        scatter_gb_s=moved / scatter / 1e9,
        compare_gb_s=2 * map_a.numel() * 4 / compare / 1e9,
        hash_grows_s=8192 * 16 / hashing / 1e9,
        call_us=call * 1e6,
        bf16_speed_up=bf16,
        int8_speed_up=int8,
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - began,
    )


def _cast(x: torch.Tensor) -> torch.Tensor | None:
    try:
        return x.bfloat16()
    except (RuntimeError, TypeError):
        return None


def _ratio(dense: float, measure: Callable[[], float]) -> float | None:
    """How much faster than the dense product; None where the machine has no such product."""
    try:
        return dense / measure()
    except (RuntimeError, NotImplementedError, TypeError):
        return None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def overhead_seconds(calibration: Calibration, physical: Mapping[str, float]) -> float:
    """Seconds that the physical work of an `Edit` takes, at the rates of the calibration."""
    rates = {
        "compare_bytes": calibration.compare_gb_s * 1e9,
        "gather_bytes": calibration.gather_gb_s * 1e9,
        "scatter_bytes": calibration.scatter_gb_s * 1e9,
        "hash_pairs": calibration.hash_grows_s * 1e9,
        "calls": 1e6 / calibration.call_us,
    }
    return sum(amount / rates[name] for name, amount in physical.items())


def time_saved(
    sites: Mapping[str, float],
    macs: Mapping[str, float],
    shares: Mapping[str, float],
    shrinks: float,
    overhead: float,
    gain: float = 1.0,
) -> float:
    """Share of the wall-clock of an item that falls away at best; negative where the overhead is larger.

    sites: MACs of an item saved at each site; macs, shares: its dense MACs and its share of the time; shrinks: share of
    the time outside of products that goes too; overhead: seconds of finding it, as a share of the time of an item;
    gain: how many times faster an item is where half of the data are gone.
    """
    products = sum(shares.get(name, 0.0) * min(saved / macs[name], 1.0) for name, saved in sites.items() if macs[name])
    other = max(1 - sum(shares.values()), 0.0)
    left = (1 - products - other * shrinks) / math.pow(gain, min(2 * shrinks, 1.0))
    return min(1 - left - overhead, 1.0)
