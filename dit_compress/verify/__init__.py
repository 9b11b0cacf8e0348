"""Compare what an exported file computes with what its source computes. Needs NumPy only, not torch."""

from dit_compress.verify.compare import MAX_DB, Comparison, compare
from dit_compress.verify.gates import (
    ARITHMETICS,
    REFUSED_BELOW_DB,
    Arithmetic,
    Verdict,
    gate_db,
    judge,
    refused_below_db,
)

__all__ = [
    "ARITHMETICS",
    "MAX_DB",
    "REFUSED_BELOW_DB",
    "Arithmetic",
    "Comparison",
    "Verdict",
    "compare",
    "gate_db",
    "judge",
    "refused_below_db",
]
