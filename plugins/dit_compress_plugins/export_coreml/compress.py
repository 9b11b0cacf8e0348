"""Fewer bits per weight, by ``coremltools.optimize``. Arithmetic stays as it was; embeddings and norms stay whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.errors import UserError, root_cause
from dit_compress_plugins.export_coreml.convert import quiet

if TYPE_CHECKING:
    from dit_compress_plugins.export_coreml import Weights

BLOCK = 32
"""Inputs of a row that share one int4 scale."""
GROUP = 16
"""Output channels that share one palette."""


def compress(model: Any, weights: Weights, component: str) -> Any:
    """The model with its matrices and kernels stored in fewer bits.

    - ``int8``: symmetric, one scale per output channel.
    - ``int4``: symmetric, one scale per block of 32 inputs; needs iOS 18.
    - ``palette4``, ``palette6``: 16 or 64 values per group of 16 output channels, by optimal 1-D k-means;
      before iOS 18 one palette per tensor.

    A weight with fewer than 2048 values, or whose channels don't divide, keeps its precision.
    """
    with quiet():
        from coremltools.optimize import coreml as optimize

        grouped = model.get_spec().specificationVersion >= IOS18
        if weights in ("int8", "int4"):
            small: dict[str, Any] = {"granularity": "per_block", "block_size": BLOCK} if weights == "int4" else {}
            each = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype=weights, **small)
            change: Any = optimize.linear_quantize_weights
        else:
            groups: dict[str, Any] = {"granularity": "per_grouped_channel", "group_size": GROUP} if grouped else {}
            each = optimize.OpPalettizerConfig(mode="kmeans", nbits=int(weights.removeprefix("palette")), **groups)
            change = optimize.palettize_weights
        try:
            return change(model, optimize.OptimizationConfig(global_config=each))
        except Exception as error:
            what = f"coremltools can't store its weights as {weights}: {root_cause(error)}"
            raise UserError(what, where=f"component {component}", mend="Choose other weights") from error


IOS18 = 9
"""Specification version of Core ML files for iOS 18."""
