"""The contract of exporters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dit_compress.step.protocols import Step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import TypeGuard

    from dit_compress.export.component import Component
    from dit_compress.export.types import Artifact, Diagnostic, Profile, Runner


class Exporter(Step, Protocol):
    """Files for a device. A subclass of ``ExportStep`` adds three methods to the engine's own work."""

    @property
    def profile(self) -> Profile:
        """The device, as the options describe it."""

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Further videos (frames, height, width) that the files take."""

    @property
    def widths(self) -> Sequence[float] | None:
        """Shares of a denoiser of nested widths that are exported; None for the whole."""
        return None

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """Say what would break on the target, each with operator, module path, severity and mend.

        ``plan``, ``check --deep`` and ``run`` ask before any training is paid for: the component then lies on
        the meta device, without weights. They ask again before ``lower``.
        """

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Write the component's files into the folder. UserError where that fails."""

    def runner(self, artifact: Artifact) -> Runner:
        """Return something that executes the file just as it is on disk, with its fidelity.

        ``verify`` and ``play`` ask on other machines: the module at ``load`` imports torch only where it needs it.
        """


def is_exporter(step: Step) -> TypeGuard[Exporter]:
    """Tell whether a step subclasses :class:`Exporter`: others of its kind write no single component."""
    return Exporter in type(step).__mro__
