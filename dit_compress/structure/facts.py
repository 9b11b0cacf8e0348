"""Facts about a DiT, and the axes of removable units that granularities name out of them.

Facts are neutral (discovery states them); an :class:`Axis` is data: for each unit, the slices of the
named tensors that belong to it, the places where a mask multiplies, and what must follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

# ------------------------------------------------------------------ slices and places


class _ByValue:
    """Equality of dataclasses that hold index arrays."""

    def _key(self) -> tuple[Any, ...]:
        return tuple(
            (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value for value in vars(self).values()
        )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, _ByValue) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True, eq=False)
class Member(_ByValue):
    """Slices of one tensor: unit u owns ``indices[u]`` along ``dim``."""

    tensor: str
    dim: int
    indices: np.ndarray = field(repr=False)

    @classmethod
    def equal(cls, tensor: str, dim: int, units: int, width: int = 1, start: int = 0) -> Member:
        """Make ``units`` neighbours of ``width`` entries each, from ``start``."""
        return cls(tensor, dim, start + np.arange(units * width).reshape(units, width))


@dataclass(frozen=True, eq=False)
class MaskPoint(_ByValue):
    """A point where a mask multiplies: along ``dim`` of a module's input or output; unit u owns ``indices[u]``.

    What no unit owns is left alone. With the side ``parameter``, ``module`` names a parameter: a weight that
    no module of its own applies, whose slices are multiplied (masks shared by the batch only).
    """

    module: str
    side: Literal["input", "output", "parameter", "rms", "moments"]
    indices: np.ndarray = field(repr=False)
    dim: int = -1


@dataclass(frozen=True)
class Follow:
    """An integer attribute that follows: ``step`` less for every unit that goes (None: in proportion).

    attribute: may be dotted (``processor.heads``).
    """

    module: str
    attribute: str
    step: int | None = None


@dataclass(frozen=True, eq=False)
class Gather(_ByValue):
    """Tensors in a call argument of a module, taken along ``dim`` by the kept indices.

    argument: a position or a keyword. Every tensor in it that has as many entries along ``dim`` as the units
    own is taken: a table, or a tuple of them.
    """

    module: str
    argument: int | str
    indices: np.ndarray = field(repr=False)
    dim: int = -1


@dataclass(frozen=True)
class Norm:
    """A normalisation over all heads at once: it sees every head, so its statistics must follow.

    eps: its attribute that is added to the mean square.
    """

    path: str
    eps: str = "eps"


# ------------------------------------------------------------------ facts


@dataclass(frozen=True)
class Stack:
    """A list of blocks through which one or more streams run.

    path: the list. stream: the argument of a block that carries the main stream: a position, a keyword, or either
    with the names inside it (``0.image``). output: where a block returns it (None: it is the whole output).
    deletable: a block taken out equals a block skipped (else a tombstone keeps its place). returns: what a skipped
    block gives for each of its outputs, see ``Skip``; empty for the main stream alone. removable: False where the
    model doesn't run without a block. borrowed: paths of parts of blocks that the model calls on its own, relative to
    the list (whole with ``names``): a tombstone keeps them. writes: whether blocks write into their arguments.
    names: paths of the blocks, where they are not ``path.0``, ``path.1`` …; they are no plain list then, and none is
    deleted. removed: how many tombstones stand among them.
    """

    path: str
    length: int
    stream: int | str
    output: int | str | None
    deletable: bool = True
    returns: tuple[tuple[str, int | str], ...] = ()
    removable: bool = True
    borrowed: tuple[str, ...] = ()
    writes: bool = False
    names: tuple[str, ...] = ()
    removed: int = 0

    def block(self, index: int) -> str:
        """Return module path of one block."""
        return self.names[index] if self.names else f"{self.path}.{index}"

    @property
    def apart(self) -> bool:
        """Whether its blocks are parts of lists in a list, each called by the model itself."""
        return ".*." in self.path

    @property
    def blocks(self) -> list[str]:
        """Module paths of all."""
        return [self.block(index) for index in range(self.length)]


@dataclass(frozen=True)
class UnitList:
    """A list of exchangeable units inside one block, as observed.

    block, place: which block of its stack, and that block's path. members: what each unit owns. masks: where a mask
    makes a unit contribute nothing, anywhere. follows, gathers, across: what must follow when units go. substitutes:
    modules that need a stand-in to have fewer.
    """

    path: str
    stack: str
    block: int
    count: int
    members: tuple[Member, ...] = field(default=(), repr=False)
    masks: tuple[MaskPoint, ...] = field(default=(), repr=False)
    follows: tuple[Follow, ...] = ()
    gathers: tuple[Gather, ...] = ()
    across: tuple[Norm, ...] = ()
    substitutes: tuple[str, ...] = ()
    place: str = ""

    def axis(self, level: str) -> Axis:
        """Return the axis of these units."""
        return Axis(
            f"{level}:{self.path}",
            level,
            self.count,
            self.stack,
            self.block,
            self.members,
            self.masks,
            self.follows,
            self.gathers,
            self.across,
            substitutes=self.substitutes,
            place=self.place,
        )


@dataclass(frozen=True)
class Attention(UnitList):
    """Heads: a unit is one head, or a key-value head with its query heads, of all streams that share it.

    width: entries of a unit in the output projection's input.
    """

    width: int = 1

    @property
    def heads(self) -> int:
        """Units."""
        return self.count


@dataclass(frozen=True)
class FeedForward(UnitList):
    """Channels: a unit is one channel before the output projection, with its gate where there is one."""

    @property
    def width(self) -> int:
        """Channels."""
        return self.count


@dataclass(frozen=True)
class Width(UnitList):
    """Channels of the residual stream: a unit is one channel, with all that reads or writes it anywhere.

    path: the stack whose stream it is. It stands in no block.
    """

    def axis(self, level: str) -> Axis:
        """Return the axis of the channels."""
        axis = Axis(f"{level}:{self.path}", level, self.count, "", None, self.members, self.masks, self.follows)
        return replace(axis, substitutes=self.substitutes)


@dataclass(frozen=True)
class Refusal:
    """A part that can't be removed exactly, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Structure:
    """Everything discovery found in a module.

    widths: the main stream's channels, where they were looked for (``Granularity.width``) and can be cut.
    """

    stacks: tuple[Stack, ...]
    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    refusals: tuple[Refusal, ...] = ()
    widths: tuple[Width, ...] = ()

    @property
    def main(self) -> Stack:
        """The stack that carries the latent's tokens: the longest one, removed blocks counted; the last of equals.

        Parts of lists in a list are it where there is nothing else.

        Raises UserError where no stack was found.
        """
        if not self.stacks:
            raise UserError(f"no list of blocks was found through which a stream runs{self.reasons()}")
        return max(reversed(self.stacks), key=lambda stack: (not stack.apart, stack.length + stack.removed))

    def stack(self, path: str) -> Stack:
        """Return the stack of a path; raise a UserError where there is none."""
        found = next((stack for stack in self.stacks if stack.path == path), None)
        if found is None:
            raise UserError(f"{path!r} is no list of blocks here{self.reasons()}")
        return found

    def at(self, place: str) -> Structure:
        """Return what stands in the one stack that a level names (``block.double_blocks``): its path, or the end of it.

        Raises UserError where there is none, or more than one; with the reason where it is a list that is refused.
        """
        paths = [item.path for item in self.stacks if f".{item.path}".endswith(f".{place}")]
        refused = [item for item in self.refusals if f".{item.path}".endswith(f".{place}")]
        if not paths and refused:
            raise UserError(f"the blocks of {refused[0].path!r} can't be removed: {refused[0].reason}")
        if len(paths) != 1:
            known = ", ".join(item.path for item in self.stacks)
            raise UserError(
                f"{place!r} names {'several stacks' if paths else 'no stack'}; there are {known or 'none'}",
                mend="Name one of them",
            )
        (path,) = paths
        stack = self.stack(path)
        held = tuple(f"{name}." for name in (path, *stack.blocks))
        return Structure(
            (stack,),
            tuple(part for part in self.attentions if part.stack == path),
            tuple(part for part in self.feed_forwards if part.stack == path),
            tuple(item for item in self.refusals if f"{item.path}.".startswith(held)),
            tuple(width for width in self.widths if width.path == path),
        )

    def reasons(self) -> str:
        """Return the first refusals, in brackets; empty where there are none, or none that names a part."""
        named = [f"{item.path}: {item.reason}" for item in self.refusals if item.path]
        return f" ({'; '.join(named[:3])})" if named else ""


# ------------------------------------------------------------------ axes


@dataclass(frozen=True)
class Axis:
    """A named list of exchangeable units.

    name: unique, ``<level>:<module path>``. blocks: set only on a block axis. place: path of the block it stands in;
    ``<stack>.<block>`` if empty.
    """

    name: str
    level: str
    units: int
    stack: str
    block: int | None = None
    members: tuple[Member, ...] = ()
    masks: tuple[MaskPoint, ...] = ()
    follows: tuple[Follow, ...] = ()
    gathers: tuple[Gather, ...] = ()
    across: tuple[Norm, ...] = ()
    blocks: Stack | None = None
    substitutes: tuple[str, ...] = ()
    place: str = ""

    @property
    def everywhere(self) -> bool:
        """Whether it stands in no block and no stack: units go through the whole network."""
        return not self.blocks and self.block is None and not self.stack

    @property
    def block_path(self) -> str:
        """Path of the block it stands in."""
        return self.place or f"{self.stack}.{self.block}"


Kept = dict[str, tuple[int, ...]]
"""A pruning plan: axis name → the units that stay, ascending."""


def everything(axes: Sequence[Axis]) -> Kept:
    """Return the plan that removes nothing."""
    return {axis.name: tuple(range(axis.units)) for axis in axes}


class Granularity(Protocol):
    """Names axes of removable units out of the facts that discovery states."""

    multiple_of: int
    num_parts: int | None
    """The number of equal parts into which a learned search may cut an axis; None for its single units."""
    width: bool = False
    """Whether it reads ``Structure.widths``: they are looked for only where a level asks, since that takes a while."""

    def axes(self, structure: Structure) -> list[Axis]:
        """Return every axis of this level, as data."""

    def keep(self, axis: Axis) -> int | None:
        """Return how many of the axis' units the options keep; None where the options leave it to a budget."""
