"""The exporter: check, lower, run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.errors import UserError
from dit_compress.export import Artifact, Diagnostic, Profile, inspect, trace
from dit_compress.export.trace import module_path, operator_name, operators
from dit_compress_plugins.export_coreml.convert import convert, has_translation, quiet
from dit_compress_plugins.export_coreml.mil import load_program
from dit_compress_plugins.export_coreml.package import save_package

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from dit_compress.context import Context, Result
    from dit_compress.export import Component, Fidelity
    from dit_compress.spec import Spec
    from dit_compress.verify import Arithmetic
    from dit_compress_plugins.export_coreml import CoreMLOptions

KIND = "mlpackage"


class CoreMLExport:
    """Step ``export: {use: coreml}``."""

    def __init__(self, options: CoreMLOptions) -> None:
        self.options = options

    @property
    def profile(self) -> Profile:
        """The device the options describe."""
        return Profile(f"coreml-{self.options.minimum_os}", precision=self.options.precision)

    def plan(self, spec: Spec) -> Spec:
        """Files change no bundle."""
        return spec

    def run(self, context: Context) -> Result:
        """Export the input bundle."""
        from dit_compress.export import export

        return export(self, context)

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """What would break in Core ML. Needs no weights: the component may lie on the meta device."""
        try:
            program = trace(component)
        except UserError as error:
            return [Diagnostic("", where, "error", what, mend) for where, what, mend in error.problems]
        found = inspect(component, program, profile)
        with quiet():
            untranslated = {
                (operator_name(node), module_path(node)) for node in operators(program) if not has_translation(node)
            }
        mend = "Write it with operators that Core ML has, or add a rewrite in dit_compress/rewrite"
        return found + [
            Diagnostic(name, path, "error", "coremltools has no translation of it", mend)
            for name, path in sorted(untranslated)
        ]

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """One ``.mlpackage``."""
        path = folder / f"{component.name}.{KIND}"
        model = convert(component, profile.precision, self.options.minimum_os)
        save_package(model, path)
        details = {"minimum_os": self.options.minimum_os, "compute_units": self.options.compute_units}
        return [Artifact(path, component.name, KIND, profile.precision, details)]

    def runner(self, artifact: Artifact) -> MilRunner:
        """The interpreter, over the package as it is on disk."""
        return MilRunner(artifact)


class MilRunner:
    """Executes a package with the interpreter, in float32 arithmetic and as the file says."""

    fidelity: Fidelity = "interpreter"

    def __init__(self, artifact: Artifact) -> None:
        with quiet():
            self.program = load_program(artifact.path)
        half = artifact.precision == "float16"
        self.arithmetics: tuple[Arithmetic, ...] = ("float32", "float16") if half else ("float32",)

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return self.program.run(inputs, arithmetic)
