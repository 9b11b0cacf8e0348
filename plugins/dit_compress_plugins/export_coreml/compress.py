"""Fewer bits per weight, by ``coremltools.optimize``. Arithmetic stays as it was; embeddings and norms stay whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.progress import quiet

if TYPE_CHECKING:
    from dit_compress_plugins.export_coreml import Weights

BLOCK = 32
"""Inputs of a row that share one int4 scale."""
LEAST = 10_000
"""Values of a weight that gets a palette: from here on coremltools has the optimal k-means of its own."""


def compress(model: Any, weights: Weights, component: str) -> Any:
    """Store the model's matrices and kernels in fewer bits.

    - ``int8``: symmetric, one scale per output channel.
    - ``int4``: symmetric, one scale per block of 32 inputs; needs iOS 18.
    - ``palette4``, ``palette6``: 16 or 64 values per tensor, by optimal 1-D k-means. Smaller palettes per group of
      channels would need scikit-learn, and are not offered.

    A weight with fewer than 2048 values (palettes: 10,000), or whose inputs don't divide, keeps its precision.
    """
    with quiet():
        from coremltools.optimize import coreml as optimize

        if weights in ("int8", "int4"):
            small: dict[str, Any] = {"granularity": "per_block", "block_size": BLOCK} if weights == "int4" else {}
            each = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype=weights, **small)
            change: Any = optimize.linear_quantize_weights
        else:
            bits = int(weights.removeprefix("palette"))
            each = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=LEAST)
            change = optimize.palettize_weights
        try:
            return change(model, optimize.OptimizationConfig(global_config=each))
        except Exception as error:
            what = f"coremltools can't store its weights as {weights}: {root_cause(error)}"
            raise UserError(what, where=f"component {component}", mend="Choose other weights") from error
