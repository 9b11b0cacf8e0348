"""Exact rewrites that exporters share.

Each changes how a model computes, not what: the equality is proven in ``tests/export/test_rewrite.py`` and
``test_rewrite_asked.py`` with the bound stated there. ``rewrite_modules`` works on modules before tracing, the
others on the traced program.

Every component gets these:

| rewrite | why | bound in float32 |
|---|---|---|
| RMSNorm divided by max|x| first | half precision overflows above 256; coremltools 9.0 loses the epsilon | 1e-6 |
| masks of −inf, −1e4 or finfo.min → −4e4 | half precision turns them into −inf or NaN | 1e-6 |
| boolean attention masks → additive | the same; not every target takes a boolean | 1e-6 |
| ``zeros_like(x, dtype=…)`` → ``full(shape, …)`` | coremltools takes the dtype of x: a mask says the opposite | exact |
| ``alias`` → the tensor itself, or a copy at the output | it is one; coremltools has no such operator | exact |
| ``concatenate`` and ``concat`` → ``cat`` | the VAE of LTX writes it so; coremltools does not know the name | exact |
| ``empty`` → zeros | it is written before it is read; Core AI has no such operator | exact |
| ``1/x`` → a division | Core ML's ``inverse`` adds 1e-4 to x | exact |
| stretches by nearest neighbours, of 3 axes or "exact" → copies | coremltools has neither; VAEs do it | exact |
| einsums that order the axes of one tensor → permutations | coremltools takes no six axes | exact |
| ``addcmul`` → a product and a sum | coremltools does not know it | a rounding |
| group norms of videos → layer norms of rows | coremltools makes 6 axes, and squares that overflow | 5e-6 |
| ``scale=1/sqrt(K)`` of an attention dropped | with an explicit scale coremltools loses the fused operator | 1e-6 |

These where the device's profile asks for them (``rewrite_for`` takes its ``Rewrites``):

| rewrite | asked by | why | bound in float32 |
|---|---|---|---|
| views, permutations, joins and slices in steps of few axes | ``max_rank`` | too many can't be loaded | exact |
| linear of I inputs → 1×1 convolution | ``convolutions`` | the form of neural engines | 2·I·2⁻²⁴·(Σ|w x| + |b|) |
| 3D convolution of patches → linear | ``flat_convolutions`` | ExecuTorch can't run it | 2·I·2⁻²⁴·(Σ|w x| + |b|) |
| 3D convolution → 2D over frames side by side | ``flat_convolutions`` | the same | the same |
| attention head by head | ``split_heads`` | memory of the scores | 1e-6 · max|v| |
| attention, so many queries at a time | ``query_slice`` | memory of the scores | 1e-6 · max|v| |
"""

from dit_compress.export.rewrite.asked import rewrite_for, would_change
from dit_compress.export.rewrite.attention import slice_attention
from dit_compress.export.rewrite.convolutions import flatten_convolutions, linears_as_convolutions, patches_as_linears
from dit_compress.export.rewrite.graph import MASKED, GraphRewrite, rewrite_graph
from dit_compress.export.rewrite.norms import ScaledRMSNorm, odd_norms, rewrite_modules
from dit_compress.export.rewrite.ranks import lower_ranks
from dit_compress.export.rewrite.stretching import why_not

__all__ = [
    "MASKED",
    "GraphRewrite",
    "ScaledRMSNorm",
    "flatten_convolutions",
    "linears_as_convolutions",
    "lower_ranks",
    "odd_norms",
    "patches_as_linears",
    "rewrite_for",
    "rewrite_graph",
    "rewrite_modules",
    "slice_attention",
    "why_not",
    "would_change",
]
