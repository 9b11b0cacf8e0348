"""Stateless randomness: every draw is a function of (seed, stream, step, sample).

NumPy's Philox generator is keyed by a hash, so that a resumed run, another batch size or the
exported player draws the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """Return the generator of one stream at one place."""
    words = repr((int(seed), stream, *map(int, counters))).encode()
    key = np.frombuffer(hashlib.sha256(words).digest()[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Return the order in which an epoch visits the samples."""
    return generator(seed, "order", epoch).permutation(num_samples)


class Streams:
    """The random streams of one batch: one generator per sample, name and step."""

    def __init__(self, seed: int, step: int, sample: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seed, self.step, self.sample, self.device = seed, step, list(sample), device

    def to(self, device: torch.device) -> Streams:
        """Move the streams to a device; the numbers stay the same."""
        return Streams(self.seed, self.step, self.sample, device)

    def normal(self, stream: str, shape: Sequence[int]) -> Tensor:
        """Draw standard normal numbers ``[B, *shape]``, float32."""
        return self._draw(stream, lambda rng: rng.standard_normal(tuple(shape), dtype=np.float32))

    def uniform(self, stream: str, shape: Sequence[int] = ()) -> Tensor:
        """Draw uniform numbers in [0, 1), ``[B, *shape]``, float32."""
        return self._draw(stream, lambda rng: np.asarray(rng.random(tuple(shape), dtype=np.float32)))

    def positions(self, kind: str, mean: float = 0.0, std: float = 1.0) -> Tensor:
        """Draw places on the schedule, ``[B]`` in (0, 1): ``uniform``, or ``logit_normal`` with a logit's moments."""
        import torch

        return self.uniform("sigma") if kind == "uniform" else torch.sigmoid(mean + std * self.normal("sigma", ()))

    def integers(self, stream: str, high: int) -> Tensor:
        """Draw integers in 0 … high-1, ``[B]``."""
        return self._draw(stream, lambda rng: np.asarray(rng.integers(high)))

    def _draw(self, stream: str, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
        import torch

        drawn = [draw(generator(self.seed, stream, self.step, index)) for index in self.sample]
        return torch.from_numpy(np.stack(drawn)).to(self.device)
