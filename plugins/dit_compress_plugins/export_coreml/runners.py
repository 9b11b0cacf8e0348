"""Runners of a package: Core ML on a Mac, the interpreter elsewhere. Chunks run one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.errors import UserError, root_cause

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress.export.compare import Arithmetic
    from dit_compress.export.types import Artifact, Fidelity


def parts_of(artifact: Artifact) -> list[Path]:
    """Return the packages of an artifact, in the order in which they run."""
    chunks = artifact.details.get("chunks")
    return [artifact.path / name for name in chunks] if chunks else [artifact.path]


def function_for(artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> str:
    """Return the function whose shapes the inputs have; ``main`` where the package has one only.

    Raises:
        UserError: the package has none for them.
    """
    functions = artifact.details.get("functions")
    if not functions:
        return "main"
    given = {name: list(value.shape) for name, value in inputs.items()}
    for function in functions:
        if all(given.get(name) == list(shape) for name, shape in function["inputs"].items()):
            return str(function["name"])
    known = "; ".join(f"{each['name']}: {each['inputs']}" for each in functions)
    raise UserError(f"no function takes inputs of {given}", where=str(artifact.path), mend=f"Give one of {known}")


class MilRunner:
    """Executes a package with the interpreter, in float32 arithmetic and as the file says. Needs torch."""

    fidelity: Fidelity = "interpreter"

    def __init__(self, artifact: Artifact) -> None:
        from dit_compress.core.progress import quiet
        from dit_compress_plugins.export_coreml.mil import load_functions

        self.artifact = artifact
        with quiet():
            self.parts = [load_functions(part) for part in parts_of(artifact)]
        self._need_functions()
        half = artifact.precision == "float16"
        self.arithmetics: tuple[Arithmetic, ...] = ("float32", "float16") if half else ("float32",)

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        """Execute the package; outputs by name."""
        name = function_for(self.artifact, inputs)
        values: dict[str, Any] = dict(inputs)
        for functions in self.parts:
            values |= functions[name].run(values, arithmetic)
        return {output: values[output] for output in self.parts[-1][name].outputs}

    def _need_functions(self) -> None:
        wanted = {each["name"] for each in self.artifact.details.get("functions", ())}
        for part, functions in zip(parts_of(self.artifact), self.parts, strict=True):
            if missing := sorted(wanted - functions.keys()):
                what = f"the package has no function {', '.join(missing)}"
                raise UserError(what, where=str(part), mend="Export the bundle again")


class CoreMLRunner:
    """Executes a package with Core ML: macOS only."""

    fidelity: Fidelity = "production"

    def __init__(self, artifact: Artifact) -> None:
        import coremltools

        self.artifact = artifact
        units = getattr(coremltools.ComputeUnit, artifact.details.get("compute_units", "ALL"))
        names = [each["name"] for each in artifact.details.get("functions", ())]
        try:
            self.models = {
                name or "main": [
                    coremltools.models.MLModel(str(part), compute_units=units, function_name=name)
                    for part in parts_of(artifact)
                ]
                for name in names or (None,)
            }
        except Exception as error:
            what = f"Core ML can't load it: {root_cause(error)}"
            raise UserError(what, where=str(artifact.path), mend="Export the bundle again") from error
        self.arithmetics: tuple[Arithmetic, ...] = (artifact.precision,)

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:  # noqa: ARG002 - the file decides
        """Execute the package; outputs by name."""
        values: dict[str, Any] = dict(inputs)
        found: dict[str, Any] = {}
        function = function_for(self.artifact, inputs)
        for model in self.models[function]:
            found = model.predict({name: values[name] for name in _inputs_of(model, function)})
            values |= found
        return {name: np.asarray(value) for name, value in found.items()}


def _inputs_of(model: Any, function: str) -> list[str]:
    """Name a function's inputs: a package of several describes each by itself."""
    description = model.get_spec().description
    several = {each.name: each for each in description.functions}
    return [each.name for each in several.get(function, description).input]
