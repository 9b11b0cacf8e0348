"""Exact stand-ins for modules that can't have fewer units as they are: a closed set."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FreeMultiheadAttention(nn.MultiheadAttention):
    """torch's attention with any number of heads: its own code demands heads × head width = stream width.

    Same parameters, same names, same results. The number of heads follows from the weights.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002 - torch's signature
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002
        is_causal: bool = False,  # noqa: ARG002, FBT001, FBT002 - a hint; the mask says the same
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``nn.MultiheadAttention.forward``, for batched input."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (self._split(*item) for item in zip((query, key, value), *self._projections(), strict=True))
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        if attn_mask is not None:
            heads = attn_mask.unflatten(0, (-1, scores.shape[1])) if attn_mask.ndim == 3 else attn_mask
            scores = scores.masked_fill(heads, float("-inf")) if heads.dtype == torch.bool else scores + heads
        if key_padding_mask is not None:
            padding = key_padding_mask[:, None, None]
            whole = padding.dtype == torch.bool
            scores = scores.masked_fill(padding, float("-inf")) if whole else scores + padding
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        mixed = mixed if self.batch_first else mixed.transpose(0, 1)
        if not need_weights:
            return mixed, None
        return mixed, weights.mean(1) if average_attn_weights else weights

    def _projections(self) -> tuple[Any, Any]:
        """Return weights and biases of query, key and value."""
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if self.in_proj_weight is None:
            return (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight), biases
        return self.in_proj_weight.chunk(3), biases

    def _split(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Split ``[B,S,D]`` into ``[B,N,S,K]``."""
        return F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


SUBSTITUTES: dict[type[nn.Module], type[nn.Module]] = {nn.MultiheadAttention: FreeMultiheadAttention}
"""Class → the subclass that stands for it; it adds no state, so that an instance changes class in place."""


def substitute(module: nn.Module) -> None:
    """Put the stand-in of a module in its place. Raises KeyError for a class that has none."""
    if type(module) not in SUBSTITUTES.values():
        module.__class__ = SUBSTITUTES[type(module)]
