"""What an exported file must reach to be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dit_compress.verify.compare import Comparison

Arithmetic = Literal["float32", "float16"]
"""What a runner computes in. The weights are the file's own, whatever the arithmetic."""
ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "float16")
Verdict = Literal["passed", "below", "refused"]

GATES_DB: dict[Arithmetic, float] = {"float32": 70.0, "float16": 50.0}
"""Float16 weights in float32 arithmetic measured 80 dB at 28 blocks, half precision throughout 65 dB."""
REFUSED_BELOW_DB = 40.0
"""Below this the file computes something else than its source."""


def gate_db(arithmetic: Arithmetic) -> float:
    """The PSNR that counts as passed."""
    return GATES_DB[arithmetic]


def judge(comparison: Comparison, arithmetic: Arithmetic) -> Verdict:
    """``passed`` at the gate, ``refused`` under 40 dB or with values that are not finite, else ``below``."""
    if comparison.nonfinite or comparison.psnr_db < REFUSED_BELOW_DB:
        return "refused"
    return "passed" if comparison.psnr_db >= gate_db(arithmetic) else "below"
