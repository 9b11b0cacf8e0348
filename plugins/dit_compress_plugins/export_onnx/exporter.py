"""The exporter: check, lower, run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.errors import UserError
from dit_compress.export import Artifact, Diagnostic, Profile, inspect, trace
from dit_compress.export.trace import module_path, operator_name, operators, root_cause
from dit_compress.rewrite.graph import ATTENTION
from dit_compress_plugins.export_onnx.convert import KIND, convert, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from dit_compress.context import Context, Result
    from dit_compress.export import Component, Fidelity
    from dit_compress.spec import Spec
    from dit_compress.verify import Arithmetic
    from dit_compress_plugins.export_onnx import ONNXOptions

ATTENTION_RANK = 4
NUM_THREADS = 1
"""Sums are split over threads: equal bytes in, equal decibels out."""


class ONNXExport:
    """Step ``export: {use: onnx}``."""

    def __init__(self, options: ONNXOptions) -> None:
        self.options = options

    @property
    def profile(self) -> Profile:
        """ONNX Runtime takes tensors of rank 8; nothing here needs more than other targets."""
        return Profile(f"onnx-{self.options.opset}", precision=self.options.precision, max_rank=8)

    def plan(self, spec: Spec) -> Spec:
        """Files change no bundle."""
        return spec

    def run(self, context: Context) -> Result:
        """Export the input bundle."""
        from dit_compress.export import export

        return export(self, context)

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """What would break in ONNX. Needs no weights: the component may lie on the meta device."""
        try:
            program = trace(component)
        except UserError as error:
            return [Diagnostic("", where, "error", what, mend) for where, what, mend in error.problems]
        what, mend = "ONNX has attention of rank 4 only", "Add an axis of heads"
        return inspect(component, program, profile) + [
            Diagnostic(operator_name(node), module_path(node), "error", what, mend)
            for node in operators(program)
            if node.target is ATTENTION and node.meta["val"].ndim != ATTENTION_RANK
        ]

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """One ``.onnx``, with the weights beside it above 2 GB."""
        path = folder / f"{component.name}.{KIND}"
        save(convert(component, profile.precision, self.options.opset), path)
        return [Artifact(path, component.name, KIND, profile.precision, {"opset": self.options.opset})]

    def runner(self, artifact: Artifact) -> ORTRunner:
        """ONNX Runtime on the CPU, the runtime that apps use."""
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
        """Outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
