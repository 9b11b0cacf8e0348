"""What every exporter has in common: it changes no bundle, and the engine does the work around its three methods."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.export.profiles import profile_named

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.export.types import Artifact, Profile
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result


class ExportStep:
    """A step that exports. A plugin adds ``check``, ``lower`` and ``runner`` (see ``hooks.Exporter``).

    Reads ``precision``, ``device`` and ``sizes`` of the options where they have them.
    """

    device = "cpu"
    """Name of the profile where the options name none."""

    def __init__(self, options: Any) -> None:
        self.options: Any = options

    @property
    def profile(self) -> Profile:
        """The device, as the options describe it."""
        found = profile_named(getattr(self.options, "device", None) or self.device)
        return replace(found, precision=getattr(self.options, "precision", found.precision))

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Further videos (frames, height, width) that the files take."""
        return getattr(self.options, "sizes", ())

    def plan(self, spec: Spec) -> Spec:
        """Files change no bundle. UserError where a further size does not fit the VAE, or the sampler is not Euler."""
        from dit_compress.export.sizes import need_fitting

        spec.flow.need_euler()
        need_fitting(self.sizes, spec)
        return spec

    def run(self, context: Context) -> Result:
        """Export the input bundle."""
        from dit_compress.export.step import export

        return export(self, context)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all the files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def need_whole(artifact: Artifact) -> None:
    """UserError where an artifact has not the ``bytes`` that its details say were written.

    For runtimes whose parsers end the process where a file is cut short.
    """
    written, found = artifact.details.get("bytes"), size_of(artifact.path)
    if written is not None and found != written:
        what = f"it holds {found:,} bytes, {written:,} were written"
        raise UserError(what, where=str(artifact.path), mend="Export the bundle again")
