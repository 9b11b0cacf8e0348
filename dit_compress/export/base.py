"""The common part of all exporters: they change no bundle, and the engine does the work around their three methods."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.export.contract import Exporter
from dit_compress.export.profiles import Device, profile_named
from dit_compress.export.types import Precision
from dit_compress.export.widths import Widths, at_each, narrowed
from dit_compress.plugin.options import Options

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.export.sizes import Video
    from dit_compress.export.types import Artifact, Profile
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result


class ExportOptions(Options):
    """Options of every exporter; one that has fewer precisions, or another default, states the field anew.

    precision: of weights and arithmetic.
    device: a profile by name, or a JSON file.
    widths: of a bundle's nested ones, those that are exported, a package each; the whole model if absent.
    """

    precision: Precision = "float32"
    device: Device = "cpu"
    widths: Widths = None


class ExportStep(Exporter):
    """A step that exports. A plugin adds ``check``, ``lower`` and ``runner``."""

    options: Any

    def __init__(self, options: ExportOptions) -> None:
        self.options = options

    @property
    def profile(self) -> Profile:
        """The device, as the options describe it."""
        return replace(profile_named(self.options.device), precision=self.options.precision)

    @property
    def sizes(self) -> tuple[Video, ...]:
        """Further videos (frames, height, width) that the files take; none, unless the exporter says otherwise."""
        return ()

    def plan(self, spec: Spec) -> Spec:
        """Change no bundle; raise a UserError where a size does not fit the VAE, a width is none, or it isn't Euler."""
        from dit_compress.export.sizes import need_fitting

        spec.flow.need_euler()
        narrowed(spec, self.options.widths)
        need_fitting(self.sizes, spec)
        return spec

    def run(self, context: Context) -> Result:
        """Export the input bundle."""
        from dit_compress.export.step import export

        return at_each(context, self.options.widths, lambda each: export(self, each))


def size_of(path: Path) -> int:
    """Count the bytes of a file, or of all the files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def need_whole(artifact: Artifact) -> None:
    """Raise a UserError where an artifact has not the ``bytes`` that its details say were written.

    For runtimes whose parsers end the process where a file is cut short.
    """
    written, found = artifact.details.get("bytes"), size_of(artifact.path)
    if written is not None and found != written:
        what = f"it holds {found:,} bytes, {written:,} were written"
        raise UserError(what, where=str(artifact.path), mend="Export the bundle again")
