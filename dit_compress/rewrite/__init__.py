"""Exact rewrites that exporters share.

Each changes how a model computes, not what: the equality is proven in ``tests/export/test_rewrite.py``
with the bound stated there. ``rewrite_modules`` works on modules before tracing, ``rewrite_graph`` on
the traced program.

| rewrite | why | bound in float32 |
|---|---|---|
| RMSNorm divided by max|x| first | half precision overflows above 256; coremltools 9.0 loses the epsilon | 1e-6 |
| masks of −inf, −1e4 or finfo.min → −4e4 | half precision turns them into −inf or NaN | 1e-6 |
| boolean attention masks → additive | the same; not every target takes a boolean | 1e-6 |
| ``zeros_like(x, dtype=…)`` → ``full(shape, …)`` | coremltools takes the dtype of x: a mask says the opposite | exact |
| ``empty`` → zeros | it is written before it is read; Core AI has no such operator | exact |
| ``1/x`` → a division | Core ML's ``inverse`` adds 1e-4 to x | exact |
| ``scale=1/sqrt(K)`` of an attention dropped | with an explicit scale coremltools loses the fused operator | exact |
"""

from dit_compress.rewrite.graph import MASKED, GraphRewrite, rewrite_graph
from dit_compress.rewrite.norms import ScaledRMSNorm, rewrite_modules

__all__ = ["MASKED", "GraphRewrite", "ScaledRMSNorm", "rewrite_graph", "rewrite_modules"]
