"""The trace that a run of a weightless module leaves behind, and the change that a replay makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from torch import Tensor

Key = tuple[str, tuple[Any, ...]]
"""A list of exchangeable entries: a parameter and its dimensions, or a cut module and ``("in",)`` or ``("out",)``."""


FAILURES = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError)
"""The errors that somebody else's module may raise."""


class DivergedError(RuntimeError):
    """A replay took another way through the module than the recorded run: its control flow depends on data."""


@dataclass(frozen=True)
class Side:
    """One side of a weight: feature f of the matmul is entry ``index[f]`` of ``key``, raveled over ``shape``."""

    key: Key
    shape: tuple[int, ...]
    index: np.ndarray = field(repr=False)


@dataclass
class Touch:
    """One use of a weight: its sides, the input ``[..., in]`` and the output ``[..., out]``.

    index: of an embedding, the entries that were looked up.
    """

    rows: Side
    cols: Side | None
    bias: Side | None
    input: Tensor | None
    output: Tensor
    index: Tensor | None = None


@dataclass
class Trace:
    """The record of one run."""

    touches: list[Touch] = field(default_factory=list)
    output: Any = None
    read: set[str] = field(default_factory=set)


@dataclass
class Change:
    """The difference that a replay makes.

    rows: entries of outputs that get other random numbers (zeros with ``zero``).
    values: parameters with other values. argument: ``(module path, function of its args and kwargs)``.
    """

    rows: Mapping[Key, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    argument: tuple[str, Callable[[Any, Any], tuple[Any, Any]]] | None = None
    zero: bool = False

    def with_(self, other: Change) -> Change:
        """Join both changes."""
        return Change(
            {**self.rows, **other.rows}, {**self.values, **other.values}, self.argument or other.argument, self.zero
        )
