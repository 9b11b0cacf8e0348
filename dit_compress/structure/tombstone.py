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
    """The results of a skipped block, made of its arguments; see ``Stack``.

    returns: for each result ``("pass", argument)``, ``("zeros", argument)`` or ``("none", "")``; before the kind
    stands ``name=`` where a block returns one structure with names, of a class that no argument has.
    """

    stream: int | str
    output: int | str | None
    returns: tuple[tuple[str, int | str], ...] = ()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the skipped block's output."""
        if self.output is None:
            return self._one(("pass", self.stream), args, kwargs)
        if isinstance(self.output, str) and not self.output[0].isdigit():
            named = {item[0].rpartition("=")[0]: self._one(item, args, kwargs) for item in self.returns}
            return named[""] if "" in named else Results(named)
        return tuple(self._one(item, args, kwargs) for item in self.every(args, kwargs))

    def every(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[str, int | str], ...]:
        """Return one item for each result of a tuple."""
        if self.returns:
            return self.returns
        # Without a list of returns: the streams are the block's first arguments, in the order it returns them.
        first = [*range(len(args)), *kwargs]
        count = max(2, int(self.output or 0) + 1)
        return tuple(("pass", self.stream if place == self.output else first[place]) for place in range(count))

    @staticmethod
    def _one(item: tuple[str, int | str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        kind, key = item[0].rpartition("=")[2], item[1]
        if kind == "none":
            return None
        value = argument_at(args, kwargs, key)
        return torch.zeros_like(value) if kind == "zeros" else value


class Results(dict[str, Any]):
    """Named results, read as attributes, by name, by position, or one after the other."""

    def __getattr__(self, name: str) -> Any:
        """Return a result as an attribute."""
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __getitem__(self, key: Any) -> Any:
        """Return a result by its name, or by its position."""
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]

    def __iter__(self) -> Any:
        """Return the results."""
        return iter(tuple(self.values()))


class Tombstone(nn.Module):
    """Stands where a block was: gives back the streams it got. No parameters of its own.

    It keeps the attributes of the block and of the modules in it, but no tensors, because a model may ask
    its blocks for them (``layers[0].self_attn.processor``); and whole the parts that the model calls on its
    own (``borrowed``).
    """

    def __init__(
        self,
        stream: int | str,
        output: int | str | None,
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
