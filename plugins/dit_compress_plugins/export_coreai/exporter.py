"""The exporter: check, lower, run. Imports torch and Core AI only where they are used."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.core.errors import UserError, root_cause
from dit_compress.export.base import ExportStep, need_whole, size_of
from dit_compress.export.types import Artifact, Diagnostic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress.export.compare import Arithmetic
    from dit_compress.export.component import Component
    from dit_compress.export.types import Fidelity, Profile

KIND = "aimodel"
MAX_RANK = 8
"""Core AI takes more axes than Core ML: the rank of a profile is Core ML's."""
MINIMUM_OS = "iOS27"


class CoreAIExport(ExportStep):
    """Step ``export: {use: coreai}``."""

    @property
    def profile(self) -> Profile:
        """The device the options describe; one asset is better than several, so there is no limit on a file."""
        return replace(super().profile, max_rank=MAX_RANK, max_file_bytes=None)

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """Say what would break in Core AI. Needs no weights: the component may lie on the meta device."""
        from dit_compress.export.inspection import inspected
        from dit_compress_plugins.export_coreai.convert import untranslated

        found, nodes = inspected(component, profile)
        return [*found, *(untranslated(component) if nodes else ())]

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Write one ``.aimodel``."""
        from dit_compress_plugins.export_coreai.convert import convert

        path = folder / f"{component.name}.{KIND}"
        convert(component, profile.precision, path)
        details = {"minimum_os": MINIMUM_OS, "function": "main", "bytes": size_of(path)}
        return [Artifact(path, component.name, KIND, profile.precision, details, weight_bits=profile.bits)]

    def runner(self, artifact: Artifact) -> CoreAIRunner:
        """Return Core AI's own runtime: on Linux the makers' reference, on a Mac what apps use."""
        return CoreAIRunner(artifact)


class CoreAIRunner:
    """Executes an asset. Slow on Linux: prove at small shapes."""

    fidelity: Fidelity = "production" if sys.platform == "darwin" else "reference"

    def __init__(self, artifact: Artifact) -> None:
        from coreai.authoring import AIModelAsset
        from coreai.runtime import NDArray

        self._array = NDArray
        self._loop = asyncio.new_event_loop()
        self._open = AsyncExitStack()
        self.arithmetics: tuple[Arithmetic, ...] = (artifact.precision,)
        need_whole(artifact)
        try:
            asset = AIModelAsset.load(artifact.path)
            # Off a Mac this compiles the asset's program for the CPU; the result lives as long as the context.
            self._model = self._loop.run_until_complete(self._open.enter_async_context(asset.executable()))
            self._function = self._model.load_function(artifact.details.get("function", "main"))
        except Exception as error:
            what = f"Core AI can't load it: {root_cause(error)}"
            raise UserError(what, where=str(artifact.path), mend="Export the bundle again") from error

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:  # noqa: ARG002 - the asset decides
        """Execute the file; outputs by name."""
        given = {name: self._array(np.ascontiguousarray(value)) for name, value in inputs.items()}
        found = self._loop.run_until_complete(self._function(given))
        return {name: np.array(value.numpy()) for name, value in found.items()}

    def __del__(self) -> None:
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._open.aclose())
            self._loop.close()
