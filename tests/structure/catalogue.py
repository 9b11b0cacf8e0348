"""Every plain module of the tests with a call of it, and what its author knows: its stacks, what a skipped block gives.

It imports no dit-compress: the benchmark makes the modules in a process that has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import authors
import other_hands
import plain_dits
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


def _first(args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    """The stream is the first argument, and all that a block gives."""
    return args[0]


def _first_two(args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    return args[0], args[1]


def _output(args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    return other_hands.Output(sample=args[0], context=args[1])


@dataclass(frozen=True)
class Entry:
    """A module and its call.

    stacks: length by path. shapes: of the call's tensors. skipped: what a block gives that is left out, from its
    arguments. dtype: its own.
    """

    make: Callable[[], nn.Module]
    stacks: dict[str, int]
    shapes: tuple[tuple[int, ...], ...] = ((2, 6, 3), (2,))
    skipped: Callable[[tuple[Any, ...], dict[str, Any]], Any] = _first
    dtype: torch.dtype = torch.float64

    def module(self) -> nn.Module:
        """Whole, in eval mode, always the same; no two of its numbers are equal."""
        torch.manual_seed(0)
        module = self.make()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) / 10)
        return module.to(self.dtype).eval()

    def arguments(self) -> tuple[Any, ...]:
        """One call's, always the same."""
        torch.manual_seed(1)
        given: tuple[Tensor, ...] = tuple(torch.randn(shape).to(self.dtype) for shape in self.shapes)
        return (other_hands.Batch(*given),) if self.make is other_hands.Wrapped else given


LAYERS = {"layers": 4}
BLOCKS = {"blocks": 3}
DOUBLE = {"double_blocks": 3}
PLAIN = ((2, 6, 4), (2,))
DUAL = ((2, 6, 3), (2, 3, 5), (2,))


def _plain(block: type[nn.Module]) -> Entry:
    return Entry(lambda: plain_dits.Model(block), BLOCKS, PLAIN)


ENTRIES = {
    "fused_qkv": _plain(plain_dits.Fused),
    "einsum": _plain(plain_dits.Einsum),
    "multihead_attention": _plain(plain_dits.Torch),
    "bias_table": _plain(plain_dits.Table),
    "norm_across_heads": _plain(plain_dits.Across),
    "joint": Entry(plain_dits.JointModel, {"blocks": 4}, ((2, 6, 4), (2, 5, 4), (2,)), _first_two),
    "usual": Entry(other_hands.Trunk, LAYERS),
    "counted": Entry(other_hands.Counted, LAYERS),
    "counted_post_norm": Entry(other_hands.CountedPost, LAYERS),
    "module_dict": Entry(other_hands.Named, {"layers": 3}),
    "holes": Entry(other_hands.Holes, {"layers": 3}),
    "pairs": Entry(other_hands.Pairs, {"layers.*.0": 3, "layers.*.1": 3}),
    "lists_of_lists": Entry(other_hands.Stages, {"layers": 3}),
    "hourglass": Entry(other_hands.Hourglass, {"in_blocks": 2, "mid_block": 1, "out_blocks": 2}),
    "refiner": Entry(other_hands.Refined, {"layers": 4, "refiner": 2}),
    "temporal": Entry(other_hands.Video, {"blocks": 3, "temporal_blocks": 3}),
    "own_call": Entry(other_hands.Overridden, {"layers": 3}),
    "dataclass": Entry(other_hands.StateModel, DOUBLE, DUAL),
    "named_tuple": Entry(other_hands.TupleModel, DOUBLE, DUAL),
    "model_output": Entry(other_hands.OutputModel, DOUBLE, DUAL, _output),
    "bag": Entry(other_hands.BagModel, DOUBLE, DUAL),
    "silent_bag": Entry(other_hands.SilentModel, DOUBLE, DUAL),
    "not_contiguous": Entry(other_hands.TurnedModel, DOUBLE, DUAL, _first_two),
    "one_batch": Entry(other_hands.Wrapped, LAYERS),
    "single_precision": Entry(other_hands.StrictModel, {"layers": 3}, dtype=torch.float32),
    "half_precision": Entry(other_hands.HalfModel, LAYERS, dtype=torch.bfloat16),
    "two_dtypes": Entry(other_hands.Both16And32, LAYERS, dtype=torch.bfloat16),
    "raises": Entry(other_hands.Grumpy, LAYERS),
    "timm": Entry(other_hands.TimmModel, LAYERS),
    "scaled_by_stream": Entry(other_hands.ScaledModel, LAYERS),
    "dead_third": Entry(other_hands.LastModel, DOUBLE, DUAL, _first_two),
    "dead_third_by_heads": Entry(other_hands.LastByHeadsModel, DOUBLE, DUAL, _first_two),
    "all_in_one": Entry(other_hands.FatModel, {"layers": 3}),
    "hub": Entry(authors.Hub, LAYERS),
    "argparse": Entry(authors.Arguments, LAYERS),
    "pyramid": Entry(authors.Pyramid, LAYERS),
    "pre_only": Entry(authors.PreOnly, DOUBLE, DUAL, _first_two),
    "norms": Entry(authors.Normed, {"layers": 3}),
    "complex_rope": Entry(authors.Rotated, LAYERS),
    "parallel": Entry(authors.Single, {"single_blocks": 4}),
    "long_skips": Entry(authors.LongSkips, {"in_blocks": 2, "out_blocks": 2}),
    "experts": Entry(authors.Mixture, LAYERS),
    "unread_input": Entry(authors.Unread, LAYERS, ((2, 6, 3), (2,), (2,))),
    "video": Entry(authors.Patched, LAYERS, ((2, 3, 2, 4, 4), (2,))),
}
