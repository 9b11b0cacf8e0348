"""Latency and peak memory of a callable, as the toolkit always measures them."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Latency:
    """Median, 10th and 90th percentile in milliseconds, over ``runs`` calls after warm-up."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


def latency(call: Callable[[], object], runs: int = 50, warmup: int = 5, budget_s: float = 30.0) -> Latency:
    """Return the median of ``runs`` calls after ``warmup``; fewer (at least 3) where ``budget_s`` is spent."""
    for _ in range(warmup):
        call()
    times: list[float] = []
    while len(times) < runs and (len(times) < 3 or sum(times) < budget_s):
        times.append(timed(call))
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return Latency(statistics.median(times) * 1e3, deciles[0] * 1e3, deciles[-1] * 1e3, len(times))


def timed(call: Callable[[], object]) -> float:
    """Time one call in seconds, the accelerator's work included."""
    import torch

    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time calls in seconds, taken in turn after one warm-up each, so that drift hits all alike."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return seconds


def machine() -> str:
    """Name what times are measured on: the accelerator, or the processor and the number of threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    from pathlib import Path

    listed = Path("/proc/cpuinfo")
    lines = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
