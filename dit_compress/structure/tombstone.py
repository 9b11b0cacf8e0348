"""The stand-in for a removed block: a parameter-free pass-through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.structure.lookup import argument_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Skip:
    """The output of a block that is skipped, made of its arguments; see ``Stack``."""

    stream: int | str
    output: int | None
    returns: tuple[tuple[str, int | str], ...] = ()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the skipped block's output."""
        if self.output is None:
            return self._one(("pass", self.stream), args, kwargs)
        # Without a list of returns: the streams are the block's first arguments, in the order it returns them.
        first = [*range(len(args)), *kwargs]
        returns = self.returns or tuple(
            ("pass", self.stream if place == self.output else first[place]) for place in range(max(2, self.output + 1))
        )
        return tuple(self._one(item, args, kwargs) for item in returns)

    @staticmethod
    def _one(item: tuple[str, int | str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        kind, key = item
        if kind == "none":
            return None
        value = argument_at(args, kwargs, key)
        return torch.zeros_like(value) if kind == "zeros" else value


class Tombstone(nn.Module):
    """Stands where a block was: gives back the streams it got. No parameters of its own.

    It keeps the attributes of the block and of the modules in it, but no tensors, because a model may ask
    its blocks for them (``layers[0].self_attn.processor``); and whole the parts that the model calls on its
    own (``borrowed``).
    """

    def __init__(
        self,
        stream: int | str,
        output: int | None,
        returns: Sequence[Sequence[int | str]] = (),
        block: nn.Module | None = None,
        borrowed: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if block is not None:
            _take_attributes(self, block, borrowed)
        self.skips = Skip(stream, output, tuple((str(kind), key) for kind, key in returns))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block would have returned, had it added nothing."""
        return self.skips(args, kwargs)


def _take_attributes(to: nn.Module, block: nn.Module, borrowed: Sequence[str]) -> None:
    """Take attributes of a module and its children, tensors left out; of the borrowed children everything."""
    for name, value in vars(block).items():
        if not name.startswith("_") and name != "training" and not isinstance(value, Tensor):
            setattr(to, name, value)
    for name, child in block.named_children():
        if name in borrowed:
            to.add_module(name, child)
            continue
        bare = nn.Module()
        inside = [path.partition(".")[2] for path in borrowed if path.partition(".")[0] == name]
        _take_attributes(bare, child, inside)
        to.add_module(name, bare)
