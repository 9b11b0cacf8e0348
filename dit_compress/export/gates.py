"""What an exported file must reach to be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dit_compress.export.compare import Comparison

Arithmetic = Literal["float32", "float16"]
"""What a runner computes in. The weights are the file's own, whatever the arithmetic."""
ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "float16")
Verdict = Literal["passed", "below", "refused"]

GATES_DB: dict[Arithmetic, float] = {"float32": 70.0, "float16": 50.0}
"""Float16 weights in float32 arithmetic measured 80 dB at 28 blocks, half precision throughout 65 dB."""
COMPRESSED_DB: tuple[tuple[int, float], ...] = ((4, 35.0), (8, 40.0))
"""Gates of weights of at most so many bits, in any arithmetic: rounding the weights decides, not the arithmetic.

Apple's own gate at 4 bits is 35 dB, and 40 dB for a compiled float16 model, which serves for 5 to 8 bits.
"""
REFUSED_BELOW_DB = 40.0
"""Below this a file with whole weights computes something else than its source."""
MARGIN_DB = 10.0
"""A file with compressed weights is refused this far below its gate."""


def gate_db(arithmetic: Arithmetic, weight_bits: int = 16) -> float:
    """The PSNR that counts as passed."""
    compressed = (gate for bits, gate in COMPRESSED_DB if weight_bits <= bits)
    return next(compressed, GATES_DB[arithmetic])


def refused_below_db(weight_bits: int = 16) -> float:
    """The PSNR under which a file is refused."""
    compressed = (gate - MARGIN_DB for bits, gate in COMPRESSED_DB if weight_bits <= bits)
    return next(compressed, REFUSED_BELOW_DB)


def judge(comparison: Comparison, arithmetic: Arithmetic, weight_bits: int = 16) -> Verdict:
    """``passed`` at the gate, ``refused`` far under it or with values that are not finite, else ``below``."""
    if comparison.nonfinite or comparison.psnr_db < refused_below_db(weight_bits):
        return "refused"
    return "passed" if comparison.psnr_db >= gate_db(arithmetic, weight_bits) else "below"
