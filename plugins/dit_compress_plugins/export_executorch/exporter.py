"""The exporter: check, lower, run. Imports torch and ExecuTorch only where they are used."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.files import disk_errors
from dit_compress.export.base import ExportStep, need_whole, size_of
from dit_compress.export.types import Artifact, Diagnostic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress.export.compare import Arithmetic
    from dit_compress.export.component import Component
    from dit_compress.export.types import Fidelity, Profile

KIND = "pte"


class ExecuTorchExport(ExportStep):
    """Step ``export: {use: executorch}``."""

    @property
    def profile(self) -> Profile:
        """The device the options describe, without the 3D convolutions that ExecuTorch can't run."""
        return replace(super().profile, flat_convolutions=True)

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """Say what would break. ExecuTorch writes files that it can't load or run: operators need a kernel here."""
        from dit_compress.export.inspection import inspected
        from dit_compress_plugins.export_executorch.convert import without_kernel

        found, nodes = inspected(component, profile)
        return [*found, *(without_kernel(component) if nodes else ())]

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Write one ``.pte``."""
        from dit_compress_plugins.export_executorch.convert import convert

        path = folder / f"{component.name}.{KIND}"
        data, portable = convert(component, profile.precision)
        with disk_errors(path):
            path.write_bytes(data)
        names = {"inputs": list(component.inputs), "outputs": list(component.outputs)}
        details = {"backend": "xnnpack", "portable": portable, **names, "bytes": size_of(path)}
        return [Artifact(path, component.name, KIND, profile.precision, details, weight_bits=profile.bits)]

    def runner(self, artifact: Artifact) -> ExecuTorchRunner:
        """Return ExecuTorch's runtime, the one that apps use."""
        return ExecuTorchRunner(artifact)


class ExecuTorchRunner:
    """Executes a file with ExecuTorch's runtime. Its Python binding needs torch."""

    fidelity: Fidelity = "production"

    def __init__(self, artifact: Artifact) -> None:
        import torch
        from executorch.runtime import Runtime

        need_whole(artifact)
        self.arithmetics: tuple[Arithmetic, ...] = (artifact.precision,)
        self._tensor = torch.from_numpy
        self.names, self.outputs = artifact.details["inputs"], artifact.details["outputs"]
        try:
            self.program = Runtime.get().load_program(artifact.path)
            self.method = self.program.load_method("forward")
        except Exception as error:
            what = f"ExecuTorch can't load it: {root_cause(error)}"
            raise UserError(what, where=str(artifact.path), mend="Export the bundle again") from error

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:  # noqa: ARG002 - the file decides
        """Execute the file; outputs by name."""
        given = [self._tensor(np.ascontiguousarray(inputs[name])) for name in self.names]
        results = self.method.execute(given)
        # The runtime owns the memory of its outputs: the next execution writes over it.
        return {name: result.numpy().copy() for name, result in zip(self.outputs, results, strict=True)}
