"""Facts about a DiT, and the axes of removable units that granularities name out of them.

Facts are neutral (discovery states them); an :class:`Axis` is data: for each unit, the slices of the
named tensors that belong to it, the places where a mask multiplies, and what must follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

# ------------------------------------------------------------------ facts


@dataclass(frozen=True)
class Stack:
    """A list of blocks through which one stream runs.

    path: the ``nn.ModuleList``. stream: the argument of a block that carries the stream (a position
    or a keyword). output: where a block returns it (None: it is the whole output).
    deletable: a block taken out equals a block skipped (else a tombstone keeps its place).
    """

    path: str
    length: int
    stream: int | str
    output: int | None
    deletable: bool = True

    def block(self, index: int) -> str:
        """Module path of one block."""
        return f"{self.path}.{index}"


@dataclass(frozen=True)
class Norm:
    """A normalisation over all heads at once: it sees every head, so its statistics must follow."""

    path: str


@dataclass(frozen=True)
class Attention:
    """One attention: N heads of width K between the projections and the output projection.

    across: RMS norms that run across heads (exact only if the mask acts on their input).
    gathers: call arguments that hold a table over the whole inner width (RoPE of LTX).
    attributes: integer attributes that must follow, and what they count (``heads`` or ``width``).
    """

    path: str
    stack: str
    block: int
    heads: int
    width: int
    inputs: tuple[str, ...]
    values: tuple[str, ...]
    output: str
    across: tuple[Norm, ...] = ()
    gathers: tuple[str, ...] = ()
    attributes: tuple[tuple[str, Literal["heads", "width"]], ...] = ()


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward: F channels between ``ups`` and ``down``.

    gated: ``fused`` where one projection gives value and gate stacked (rows j and j + F are one unit).
    """

    path: str
    stack: str
    block: int
    width: int
    ups: tuple[str, ...]
    down: str
    gated: Literal["no", "fused", "split"] = "no"


@dataclass(frozen=True)
class Refusal:
    """A part that can't be removed exactly, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Structure:
    """Everything discovery found in a module."""

    stacks: tuple[Stack, ...]
    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    refusals: tuple[Refusal, ...] = ()

    @property
    def main(self) -> Stack:
        """The stack that carries the latent's tokens: the longest one, the last of equals."""
        return max(reversed(self.stacks), key=lambda stack: stack.length)


# ------------------------------------------------------------------ axes


@dataclass(frozen=True)
class Member:
    """Slices of one tensor: unit u owns ``indices[u]`` along ``dim``."""

    tensor: str
    dim: int
    indices: np.ndarray = field(repr=False)

    @classmethod
    def equal(cls, tensor: str, dim: int, units: int, width: int = 1, start: int = 0) -> Member:
        """``units`` neighbours of ``width`` entries each, from ``start``."""
        return cls(tensor, dim, start + np.arange(units * width).reshape(units, width))


@dataclass(frozen=True)
class MaskPoint:
    """Where a mask multiplies: the last axis of a module's input or output; unit u owns ``indices[u]``."""

    module: str
    side: Literal["input", "output"]
    indices: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Follow:
    """An attribute that follows the number of kept units: ``value · kept / units``."""

    module: str
    attribute: str


@dataclass(frozen=True)
class Gather:
    """A call argument of a module whose last axis is taken by the kept indices."""

    module: str
    argument: str
    indices: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Axis:
    """A named list of exchangeable units.

    name: unique, ``<level>:<module path>``. blocks: set only on a block axis.
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


Kept = dict[str, tuple[int, ...]]
"""A pruning plan: axis name → the units that stay, ascending."""


def everything(axes: Sequence[Axis]) -> Kept:
    """The plan that removes nothing."""
    return {axis.name: tuple(range(axis.units)) for axis in axes}
