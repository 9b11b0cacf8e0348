"""The common part of all exporters: they change no bundle, and the engine does the work around their three methods."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from dit_compress.core.errors import UserError
from dit_compress.export.contract import Exporter
from dit_compress.export.profiles import Device, profile_named
from dit_compress.export.types import Precision
from dit_compress.export.widths import Widths, at_each, narrowed
from dit_compress.plugin.options import Keyed, Options, PartField, Slot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dit_compress.export.sizes import Video
    from dit_compress.export.types import Artifact, Profile
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result


class ExportOptions(Options):
    """Options of every exporter; one that has fewer precisions, or another default, states the field anew.

    precision: of weights and arithmetic.
    device: a profile by name, or a JSON file.
    widths: of a bundle's nested ones, those that are exported, a package each; the whole model if absent.
    sampler: by which the package samples; the bundle's if absent. Euler: one step, called in a loop. Another: all steps
        in one file, where no value decides what it calls.
    """

    precision: Precision = "float32"
    device: Device = "cpu"
    widths: Widths = None
    sampler: Annotated[PartField | None, Slot("sampler"), Keyed("sampler")] = None


class ExportStep(Exporter):
    """A step that exports. A plugin adds ``check``, ``lower`` and ``runner``."""

    options: Any

    def __init__(self, options: ExportOptions) -> None:
        if not isinstance(options, ExportOptions):
            raise UserError(
                f"{type(options).__name__} are options of no exporter: 'precision', 'device' and 'widths' are missing",
                where=type(self).__name__,
                mend="Derive them from dit_compress.export.ExportOptions",
            )
        self.options = options

    @property
    def profile(self) -> Profile:
        """The device, as the options describe it."""
        return replace(profile_named(self.options.device), precision=self.options.precision)

    @property
    def sizes(self) -> tuple[Video, ...]:
        """Further videos (frames, height, width) that the files take; none, unless the exporter says otherwise."""
        return ()

    @property
    def widths(self) -> Sequence[float] | None:
        """Of a bundle's nested ones, those that are exported."""
        return self.options.widths

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle as the package samples it.

        UserError where a size does not fit the VAE, a width is none, or no file holds what the sampler does.
        """
        from dit_compress.export.sizes import need_fitting

        need_fitting(self.sizes, spec)
        if self.options.sampler is not None:
            spec = replace(spec, flow=self.flow(spec.flow))
        specs = narrowed(spec, self.widths)
        fixed = [each.flow.fixed(each.outline) for each in specs][-1]
        if fixed is None:
            return spec
        note = f"dit_walk: all {spec.flow.num_steps} steps in one graph; {fixed.note}"
        return replace(spec, notes=(*spec.notes, note))

    def flow(self, before: Flow) -> Flow:
        """Return how the package samples."""
        part = self.options.sampler
        return before if part is None else replace(before, sampler=part.as_data())

    def run(self, context: Context) -> Result:
        """Export the input bundle."""
        from dit_compress.export.step import export

        return at_each(context, self.widths, lambda each: export(self, each, self.flow(each.input.flow)))


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
