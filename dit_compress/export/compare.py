"""Distances of a candidate array from its reference.

With reference ``r``, candidate ``c``, n values, and the output's range ``p`` on typical inputs, in float64:

    peak        = max(max |r|, p), or 1 where both are zero
    PSNR        = 20·log10(peak / sqrt(Σ (c - r)² / n))       dB, at most ``MAX_DB``
    relative L2 = sqrt(Σ (c - r)²) / sqrt(Σ r²)               with peak·sqrt(n) below where r is all zero

A peak is a property of the output, as 255 is of a picture, not of one array: on zero inputs a velocity
may be small, and an error counts as much as it would elsewhere. relative L2 is against the array itself.
A reference without any scale gets 1: latents have a standard deviation of 1, video lies in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DB = 300.0
"""PSNR of equal arrays: JSON has no infinity, and float64 round-off ends near 313 dB."""


@dataclass(frozen=True)
class Comparison:
    """Differences of one array (or of several: the worst figure of each).

    psnr_db: −inf where the candidate has values that the reference has not: NaN, or an infinity.
    peak: what the PSNR is relative to.
    nonfinite: values of the candidate that are NaN or infinite.
    """

    psnr_db: float
    relative_l2: float
    max_abs: float
    peak: float
    nonfinite: int

    def as_data(self) -> dict[str, Any]:
        """Return JSON data; figures that are not finite become None."""
        data = asdict(self)
        return {key: value if math.isfinite(value) else None for key, value in data.items()}

    @classmethod
    def worst(cls, several: Iterable[Comparison]) -> Comparison:
        """Return the worst figure of each kind."""
        rows = list(several)
        return cls(
            psnr_db=min(row.psnr_db for row in rows),
            relative_l2=max(row.relative_l2 for row in rows),
            max_abs=max(row.max_abs for row in rows),
            peak=max(row.peak for row in rows),
            nonfinite=sum(row.nonfinite for row in rows),
        )


def compare(reference: np.ndarray, candidate: np.ndarray, typical_peak: float = 0.0) -> Comparison:
    """Compare two arrays of one shape; ``typical_peak`` is the output's range on typical inputs.

    Raises:
        UserError: the shapes differ, or the reference itself is not finite.
    """
    if reference.shape != candidate.shape:
        raise UserError(f"the output has shape {list(candidate.shape)}, the source gives {list(reference.shape)}")
    wanted, found = reference.astype(np.float64), candidate.astype(np.float64)
    if not np.isfinite(wanted).all():
        raise UserError("the source model itself gives values that are not finite", mend="Mend the model first")
    nonfinite = int(wanted.size - np.isfinite(found).sum())
    peak = max(float(np.abs(wanted).max(initial=0.0)), typical_peak) or 1.0
    if nonfinite:
        return Comparison(-math.inf, math.inf, math.inf, peak, nonfinite)
    error = found - wanted
    energy = float(np.square(error).sum())
    scale = float(np.square(wanted).sum()) or peak**2 * max(error.size, 1)
    return Comparison(
        psnr_db=_decibel(peak, math.sqrt(energy / max(error.size, 1))),
        relative_l2=math.sqrt(energy / scale),
        max_abs=float(np.abs(error).max(initial=0.0)),
        peak=peak,
        nonfinite=0,
    )


def _decibel(peak: float, rms: float) -> float:
    return MAX_DB if rms == 0 else min(MAX_DB, 20 * math.log10(peak / rms))


Arithmetic = Literal["float32", "float16"]
"""The arithmetic of a runner. The weights are the file's own, whatever the arithmetic."""

ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "float16")

Verdict = Literal["passed", "below", "refused"]

GATES_DB: dict[Arithmetic, float] = {"float32": 70.0, "float16": 50.0}
"""Of whole weights: float32 computed in float32, or anything in half precision (65 dB at 28 blocks)."""

ROUNDED_DB = 60.0
"""The gate of float16 weights and constants in float32 arithmetic: 80 dB at 28 random blocks, 70 at 6 trained ones."""

COMPRESSED_DB: tuple[tuple[int, float], ...] = ((4, 35.0), (8, 40.0))
"""Gates of weights of at most so many bits, in any arithmetic: rounding the weights decides, not the arithmetic.

Apple's own gate at 4 bits is 35 dB, and 40 dB for a compiled float16 model, which serves for 5 to 8 bits.
"""

REFUSED_BELOW_DB = 40.0
"""Below this a file with whole weights computes something else than its source."""

MARGIN_DB = 10.0
"""A file with compressed weights is refused this far below its gate."""


def gate_db(arithmetic: Arithmetic, weight_bits: int = 32) -> float:
    """Return the PSNR that counts as passed."""
    compressed = (gate for bits, gate in COMPRESSED_DB if weight_bits <= bits)
    rounded = weight_bits <= 16 and arithmetic == "float32"
    return next(compressed, ROUNDED_DB if rounded else GATES_DB[arithmetic])


def refused_below_db(weight_bits: int = 32) -> float:
    """Return the PSNR under which a file is refused."""
    compressed = (gate - MARGIN_DB for bits, gate in COMPRESSED_DB if weight_bits <= bits)
    return next(compressed, REFUSED_BELOW_DB)


def judge(comparison: Comparison, arithmetic: Arithmetic, weight_bits: int = 32) -> Verdict:
    """Return ``passed`` at the gate, ``refused`` far under it or with values that are not finite, else ``below``."""
    if comparison.nonfinite or comparison.psnr_db < refused_below_db(weight_bits):
        return "refused"
    return "passed" if comparison.psnr_db >= gate_db(arithmetic, weight_bits) else "below"
