"""The exporter: check, lower, run. Imports torch and coremltools only where they are used."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.export.base import ExportStep
from dit_compress.export.types import Artifact, Diagnostic
from dit_compress_plugins.export_coreml import WEIGHT_BITS

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.export.component import Component
    from dit_compress.export.types import Profile, Runner

KIND = "mlpackage"


class CoreMLExport(ExportStep):
    """Step ``export: {use: coreml}``."""

    @property
    def profile(self) -> Profile:
        """The device the options describe."""
        return replace(super().profile, weight_bits=WEIGHT_BITS.get(self.options.weights))

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Further videos that the files take, as the options say."""
        return self.options.sizes

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """Say what would break in Core ML. Needs no weights: the component may lie on the meta device."""
        from dit_compress.core.progress import quiet
        from dit_compress.export.inspection import inspected, module_path, operator_name
        from dit_compress.export.rewrite import why_not
        from dit_compress_plugins.export_coreml.convert import has_translation

        # Chunks of a graph of several steps would have all weights each.
        found, nodes = inspected(component, profile, splits=component.steps == 1)
        with quiet():
            untranslated = {
                (operator_name(node), module_path(node), why_not(node)) for node in nodes if not has_translation(node)
            }
        unknown = "coremltools has no translation of it"
        mend = "Write it with operators that Core ML has, or add a rewrite in dit_compress/export/rewrite"
        other = "Stretch by a whole number, or by another mode"
        return found + [
            Diagnostic(name, path, "error", why or unknown, other if why else mend)
            for name, path, why in sorted(untranslated)
        ]

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Write one ``.mlpackage``, or a folder of chunks where one would exceed the profile's limit.

        A component of several sizes becomes one function each, in the same packages.
        """
        from dit_compress_plugins.export_coreml.functions import describe, lower_sizes

        path, chunks = lower_sizes(component, folder, lambda part, place: self._write(part, profile, place))
        details = {
            "minimum_os": self.options.minimum_os,
            "compute_units": self.options.compute_units,
            "weights": self.options.weights or profile.precision,
            **({"chunks": chunks} if chunks else {}),
            **({"functions": describe(component)} if component.sizes else {}),
        }
        return [Artifact(path, component.name, KIND, profile.precision, details, weight_bits=profile.bits)]

    def _write(self, component: Component, profile: Profile, folder: Path) -> tuple[Path, list[str]]:
        """Write a component of one size: its package, or a folder and its chunks."""
        from dit_compress_plugins.export_coreml.chunks import split

        path = folder / f"{component.name}.{KIND}"
        self._convert(component, profile, path)
        return split(path, profile.max_file_bytes)

    def _convert(self, component: Component, profile: Profile, path: Path) -> None:
        """Convert and save. The program is let go before anything is cut: cutting takes thrice its memory."""
        from dit_compress_plugins.export_coreml.compress import compress
        from dit_compress_plugins.export_coreml.convert import convert
        from dit_compress_plugins.export_coreml.package import save_package

        model = convert(component, profile.precision, self.options.minimum_os)
        if self.options.weights is not None:
            model = compress(model, self.options.weights, component.name)
        save_package(model, path)

    def runner(self, artifact: Artifact) -> Runner:
        """Return Core ML itself on a Mac, else the interpreter, over the package as it is on disk."""
        from dit_compress_plugins.export_coreml import runners

        return runners.CoreMLRunner(artifact) if sys.platform == "darwin" else runners.MilRunner(artifact)
