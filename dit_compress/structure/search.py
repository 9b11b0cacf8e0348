"""What a search is given and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.denoiser import Denoiser
    from dit_compress.structure.axes import Axis, Kept


@dataclass(frozen=True)
class SearchProblem:
    """Keep exactly ``keep[axis.name]`` units of every axis.

    units: per level, into how many equal parts a learned search may cut an axis (FFN channels).
    """

    denoiser: Denoiser
    axes: tuple[Axis, ...]
    keep: Mapping[str, int]
    units: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The units that stay, and what the report shows of how they were found."""

    kept: Kept
    history: dict[str, Any] = field(default_factory=dict)
