"""Check, lower, run: a folder per component with ``model.xml`` and ``model.bin``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError, root_cause
from dit_compress.export import Artifact, ExportStep

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.export import Component, Diagnostic, Profile

KIND = "openvino"


class OpenVINOExport(ExportStep):
    """Step ``export: {use: openvino}``."""

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """What holds for every target; OpenVINO's own refusals come from ``lower``."""
        from dit_compress.export.inspection import inspected

        return inspected(component, profile)[0]

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Convert the traced program, weights and arithmetic in float32."""
        import openvino

        place = folder / f"{component.name}.{KIND}"
        place.mkdir()
        try:
            model = openvino.convert_model(component.program)
        except Exception as error:
            what = f"OpenVINO can't convert it: {root_cause(error)}"
            raise UserError(what, where=f"component {component.name}") from error
        for port, name in zip(model.inputs, component.inputs, strict=True):
            port.get_tensor().set_names({name})
        for port, name in zip(model.outputs, component.outputs, strict=True):
            port.get_tensor().set_names({name})
        model.set_friendly_name(component.name)
        for number, operation in enumerate(model.get_ordered_ops()):  # or names count up from file to file
            operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
        openvino.save_model(model, place / "model.xml", compress_to_fp16=False)
        return [Artifact(place, component.name, KIND, "float32", weight_bits=32)]

    def runner(self, artifact: Artifact) -> OpenVINORunner:
        """The runtime that applications use."""
        return OpenVINORunner(artifact.path)


class OpenVINORunner:
    """Knows nothing but the files. Needs no torch."""

    fidelity, arithmetics = "production", ("float32",)

    def __init__(self, folder: Path) -> None:
        import openvino

        try:
            exact = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
            self.model = openvino.Core().compile_model(folder / "model.xml", "CPU", exact)
        except Exception as error:
            what = f"OpenVINO can't load it: {root_cause(error)}"
            raise UserError(what, where=str(folder), mend="Export the bundle again") from error

    def __call__(self, inputs: Any, arithmetic: str) -> dict[str, Any]:
        """Outputs by name."""
        found = self.model({port.any_name: inputs[port.any_name] for port in self.model.inputs})
        return {port.any_name: found[port].copy() for port in self.model.outputs}
