"""Check, lower, run: one folder per component. The format stands in ``graph.py``.

``verify`` and ``play`` import this module on machines without torch: torch is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.export import Artifact, Diagnostic, ExportStep
from dit_compress.export.base import need_whole, size_of

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.export import Component, Profile

    from dit_compress.scaffold.samples.export.graph import Interpreter

KIND = "example"
"""Suffix of the files, and ``kind`` in the manifest."""

KERNELS: frozenset[str] | None = None
"""Change this: the operators that your target has, as "aten.linear"; None: all. ``check`` names each that it lacks."""


class ExampleExport(ExportStep):
    """Step ``export: {use: example}``. The engine traces, proves and packs around these three methods."""

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """List what any target objects to, and the operators that this one lacks. Asked before anything is trained."""
        from dit_compress.export.inspection import inspected, module_path, operator_name

        found, operators = inspected(component, profile)
        what, mend = "the target has no such operator", "Write it with others, or prune the module that needs it"
        return found + [
            Diagnostic(operator_name(node), module_path(node), "error", what, mend)
            for node in operators
            if KERNELS is not None and operator_name(node) not in KERNELS
        ]

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Change this: call your converter on the traced program, and list what it wrote."""
        from dit_compress.scaffold.samples.export.graph import write_graph

        place = folder / f"{component.name}.{KIND}"
        place.mkdir()
        write_graph(component.program, component, place)
        # weight_bits and precision decide which gates the proof applies: state what the file really holds.
        return [Artifact(place, component.name, KIND, "float32", {"bytes": size_of(place)}, weight_bits=32)]

    def runner(self, artifact: Artifact) -> Interpreter:
        """Change this: your runtime. Its ``fidelity`` is production where apps run the same, else reference."""
        from dit_compress.scaffold.samples.export.graph import Interpreter

        need_whole(artifact)
        return Interpreter(artifact.path)
