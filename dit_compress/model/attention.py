"""Attention probabilities of a running module, with gradients, whichever function computes them.

Shapes: B batch, N heads, S queries, L keys, K head width.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dit_compress.structure.facts import Attention, Structure

_SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)


def attentions_at(structure: Structure, at: Sequence[int | str]) -> list[Attention]:
    """Return the attentions of blocks of the main stack (by position) and at module paths; UserError if none is."""
    found: dict[str, Attention] = {}
    for place in at:
        here = [
            item
            for item in structure.attentions
            if place == (item.block if isinstance(place, int) and item.stack == structure.main.path else item.path)
        ]
        if not here:
            known = ", ".join(item.path for item in structure.attentions[:4]) or "none"
            raise UserError(f"no attention was found at {place!r}", mend=f"Found are such as {known}")
        found |= {item.path: item for item in here}
    return list(found.values())


@contextmanager
def captured(module: nn.Module, attentions: Sequence[Attention]) -> Iterator[dict[str, Tensor]]:
    """Collect ``[B,N,S,L]`` of each attention's last call, by its path, for as long as the context is open."""
    watcher = _Watcher()
    handles = []
    for attention in attentions:
        place = module.get_submodule(attention.path)
        begin, end = watcher.hooks(attention)
        handles += [place.register_forward_pre_hook(begin), place.register_forward_hook(end, always_call=True)]
    try:
        yield watcher.taken
    finally:
        for handle in handles:
            handle.remove()


class _Watcher(TorchFunctionMode):
    """Sees the functions that attentions call, and lets them be.

    It is on during their calls alone: ``backward`` is a function, too, and inside one that it sees a mode is off, where
    blocks may run again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Tensor] = {}
        self.running: list[tuple[Attention, list[Tensor]]] = []

    def hooks(self, attention: Attention) -> tuple[Any, Any]:
        """Return the hooks around a call of the attention's module."""

        def begin(_module: nn.Module, _args: Any) -> None:
            if not self.running:
                self.__enter__()
            self.running.append((attention, []))

        def end(_module: nn.Module, _args: Any, output: Any) -> None:
            _, seen = self.running.pop()
            if not self.running:
                self.__exit__(None, None, None)
            if output is None:
                return  # the call failed
            if len(seen) != 1:
                what = f"computes {len(seen)} attentions in a call" if seen else "shows no attention probabilities"
                raise UserError(f"{attention.path!r} {what}", mend=_MEND)
            self.taken[attention.path] = seen[0] if seen[0].ndim > 3 else seen[0].unflatten(0, (-1, attention.heads))

        return begin, end

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; inside an attention, note its probabilities."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.running[-1][1].append(probabilities(*args, **kwargs))
        elif func in _SOFTMAX and output.ndim > 2 and _last(output, *args[1:2], **kwargs):
            self.running[-1][1].append(output)
        return output


_MEND = "Take one that calls scaled_dot_product_attention or softmax, once"


def _last(output: Tensor, dim: int = 0, **_: Any) -> bool:
    return dim in (-1, output.ndim - 1)


def probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001 - as scaled_dot_product_attention takes it
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    """Return ``softmax(q·kᵀ/sqrt(K) + mask)`` of the same call, in float32 at least; zero for a query without keys."""
    wide = torch.promote_types(query.dtype, torch.float32)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    with torch.autocast(query.device.type, enabled=False):
        scores = query.to(wide) @ key.to(wide).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    blind = (scores == float("-inf")).all(-1, keepdim=True)
    return scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
