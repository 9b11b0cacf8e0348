"""The exporter: check, lower, run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError, root_cause
from dit_compress.export.base import ExportStep
from dit_compress.export.types import Artifact, Diagnostic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from dit_compress.export.compare import Arithmetic
    from dit_compress.export.component import Component
    from dit_compress.export.types import Fidelity, Profile

KIND = "onnx"
ATTENTION_RANK = 4
NUM_THREADS = 1
"""Sums are split over threads: equal bytes in, equal decibels out."""


class ONNXExport(ExportStep):
    """Step ``export: {use: onnx}``."""

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """Say what would break in ONNX. Needs no weights: the component may lie on the meta device."""
        from dit_compress.export.inspection import inspected, module_path, operator_name
        from dit_compress.export.rewrite.graph import ATTENTION
        from dit_compress_plugins.export_onnx.convert import untranslated

        what, mend = "ONNX has attention of rank 4 only", "Add an axis of heads"
        found, nodes = inspected(component, profile, splits=True)
        found += [
            Diagnostic(operator_name(node), module_path(node), "error", what, mend)
            for node in nodes
            if node.target is ATTENTION and node.meta["val"].ndim != ATTENTION_RANK
        ]
        if any(each.severity == "error" for each in found):
            return found
        return found + untranslated(component, self.options.opset)

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Write one ``.onnx``, with the weights beside it above 2 GB."""
        from dit_compress_plugins.export_onnx.convert import convert, save

        path = folder / f"{component.name}.{KIND}"
        save(convert(component, profile.precision, self.options.opset), path)
        details = {"opset": self.options.opset}
        return [Artifact(path, component.name, KIND, profile.precision, details, weight_bits=profile.bits)]

    def runner(self, artifact: Artifact) -> ORTRunner:
        """Return ONNX Runtime on the CPU, the runtime that apps use."""
        return ORTRunner(artifact)


class ORTRunner:
    """Executes a file with ONNX Runtime."""

    fidelity: Fidelity = "production"

    def __init__(self, artifact: Artifact) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = NUM_THREADS
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(artifact.path), options, ["CPUExecutionProvider"])
        except Exception as error:
            what = f"ONNX Runtime can't load it: {root_cause(error)}"
            raise UserError(what, where=str(artifact.path), mend="Export the bundle again") from error
        self.arithmetics: tuple[Arithmetic, ...] = (artifact.precision,)

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:  # noqa: ARG002 - the file decides
        """Execute the file; outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
