"""A recipe as typed values. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.plugin.options import VideoOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.plugin.options import Part

BASE = "base"
"""The implicit first step, where a recipe has a ``model``: denoiser and text encoder, made from their options."""

PARTIAL = ".partial"
"""What the folder of an unfinished step has behind its name."""

NO_BUNDLE = frozenset({"evaluate", "export"})
"""Kinds of step that give reports and files, and no bundle to go on with."""

SHARED = ("model", "data", "text", "sampler")
"""Kinds of part that stand once at the top of a recipe and serve all steps."""


@dataclass(frozen=True)
class StepEntry:
    """One step. inputs: slot (``input``, ``teacher``) → the name of an earlier step, or a path with a separator."""

    kind: str
    part: Part
    name: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    line: int = field(default=0, compare=False)

    @property
    def gives_bundle(self) -> bool:
        """True where a later step can read what this one makes."""
        return self.kind not in NO_BUNDLE

    def as_data(self) -> dict[str, Any]:
        """Return the step as a recipe would write it, with every default."""
        return {self.kind: self.part.as_data(), "name": self.name, **self.inputs}


@dataclass(frozen=True)
class Recipe:
    """A validated recipe: every part checked, every step named, every input resolved.

    source: the bundle that the first step reads, where the recipe has ``model: {from: PATH}``.
    licence: of the weights that go in; bundles and manifests carry it.
    path: the file it came from, for messages.
    """

    name: str
    steps: tuple[StepEntry, ...]
    seed: int = 0
    model: Part | None = None
    source: str | None = None
    data: Part | None = None
    text: Part | None = None
    sampler: Part | None = None
    trackers: tuple[Part, ...] = ()
    licence: str | None = None
    path: str = field(default="", compare=False)

    @property
    def shared(self) -> dict[str, Part]:
        """The parts at the top of the recipe, by kind."""
        return {kind: part for kind in SHARED if (part := getattr(self, kind)) is not None}

    @property
    def video(self) -> tuple[int, int, int] | None:
        """Frames, height and width that the data's options state; of several sizes the first."""
        return next(iter(self.videos), None)

    @property
    def videos(self) -> tuple[tuple[int, int, int], ...]:
        """Every size that the data's options state."""
        options = self.data.options if self.data else None
        return options.videos if isinstance(options, VideoOptions) else ()

    @property
    def longest(self) -> int | None:
        """Frames of the longest clip, where the data's options alone say it."""
        options = self.data.options if self.data else None
        return options.longest if isinstance(options, VideoOptions) else None

    def step(self, name: str) -> StepEntry | None:
        """Return the step of that name."""
        return next((step for step in self.steps if step.name == name), None)

    def as_data(self) -> dict[str, Any]:
        """Return the resolved recipe: every default and every input written out. Loading it gives an equal recipe."""
        data: dict[str, Any] = {"name": self.name, "seed": self.seed}
        if self.licence is not None:
            data["licence"] = self.licence
        if self.source is not None:
            data["model"] = {"from": self.source}
        data |= {kind: part.as_data() for kind, part in self.shared.items()}
        if self.trackers:
            data["trackers"] = [tracker.as_data() for tracker in self.trackers]
        return {**data, "steps": [step.as_data() for step in self.steps]}
