"""What executes a package: Core ML on a Mac, the interpreter elsewhere. Chunks run one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.errors import UserError, root_cause

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress.export.types import Artifact, Fidelity
    from dit_compress.verify import Arithmetic


def parts_of(artifact: Artifact) -> list[Path]:
    """The packages of an artifact, in the order in which they run."""
    chunks = artifact.details.get("chunks")
    return [artifact.path / name for name in chunks] if chunks else [artifact.path]


class MilRunner:
    """Executes a package with the interpreter, in float32 arithmetic and as the file says. Needs torch."""

    fidelity: Fidelity = "interpreter"

    def __init__(self, artifact: Artifact) -> None:
        from dit_compress.progress import quiet
        from dit_compress_plugins.export_coreml.mil import load_program

        with quiet():
            self.programs = [load_program(part) for part in parts_of(artifact)]
        half = artifact.precision == "float16"
        self.arithmetics: tuple[Arithmetic, ...] = ("float32", "float16") if half else ("float32",)

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        """Outputs by name."""
        values: dict[str, Any] = dict(inputs)
        for program in self.programs:
            values |= program.run(values, arithmetic)
        return {name: values[name] for name in self.programs[-1].outputs}


class CoreMLRunner:
    """Executes a package with Core ML: macOS only."""

    fidelity: Fidelity = "production"

    def __init__(self, artifact: Artifact) -> None:
        import coremltools

        units = getattr(coremltools.ComputeUnit, artifact.details.get("compute_units", "ALL"))
        try:
            self.models = [coremltools.models.MLModel(str(part), compute_units=units) for part in parts_of(artifact)]
        except Exception as error:
            what = f"Core ML can't load it: {root_cause(error)}"
            raise UserError(what, where=str(artifact.path), mend="Export the bundle again") from error
        self.arithmetics: tuple[Arithmetic, ...] = (artifact.precision,)

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:  # noqa: ARG002 - the file decides
        """Outputs by name."""
        values: dict[str, Any] = dict(inputs)
        found: dict[str, Any] = {}
        for model in self.models:
            wanted = [each.name for each in model.get_spec().description.input]
            found = model.predict({name: values[name] for name in wanted})
            values |= found
        return {name: np.asarray(value) for name, value in found.items()}
