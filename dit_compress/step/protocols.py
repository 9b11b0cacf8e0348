"""The engine's contract with steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result


class Step(Protocol):
    """One entry of a recipe, constructed with its options."""

    def plan(self, spec: Spec) -> Spec:
        """Return what the step makes of the bundle described by ``spec``; reads no weights.

        Raises ``dit_compress.core.errors.UserError`` where the step can't work on such a bundle.
        """

    def run(self, context: Context) -> Result:
        """Do it: read ``context.input``, give a bundle, or metrics and files."""


class Latent(Step, Protocol):
    """A step that gives the bundle its codec, and loads it back from the bundle."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make an empty codec, called on the meta device. It follows :class:`Codec`."""


class Transform(Step, Protocol):
    """A change of structure, logged by name and replayed on the meta device when the bundle loads."""

    @staticmethod
    def replay(module: nn.Module, data: Mapping[str, Any]) -> None:
        """Repeat the logged change on a module without weights."""


class Tracker(Protocol):
    """Records scalars of a training step."""

    def open(self, folder: Path, *, resume_step: int) -> None:
        """Start in the step's folder; drop what was written after ``resume_step``."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""

    def picture(self, step: int, path: Path) -> None:
        """Record a picture of samples made in training, a JPEG in the step's folder; by default do nothing."""
        del step, path

    def close(self) -> None:
        """Flush."""
