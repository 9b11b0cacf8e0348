"""From a component to an ``.aimodel`` asset: trace, rewrite, decompose, convert, fix the bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.files import disk_errors
from dit_compress.core.progress import quiet
from dit_compress.export.inspection import module_path, operator_name, operators
from dit_compress.export.types import Diagnostic

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from dit_compress.export.component import Component
    from dit_compress.export.types import Precision

DATE = "19700101T000000Z"
MEND = "Write it with operators that Core AI has, or add a rewrite in dit_compress/export/rewrite"


def convert(component: Component, precision: Precision, path: Path) -> None:
    """Write the component as an asset with float32 inputs and outputs of fixed shapes.

    Raises:
        UserError: coreai-torch refuses the program.
    """
    with quiet():
        from coreai_torch import TorchConverter

        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
        try:
            converter.add_exported_program(
                decomposed(component.in_precision(precision)),
                input_names=list(component.inputs),
                output_names=list(component.outputs),
            )
            program = converter.to_coreai()
            with disk_errors(path):
                program.save_asset(path)
        except UserError:
            raise
        except Exception as error:
            what = f"coreai-torch can't convert it: {root_cause(error)}"
            raise UserError(what, where=f"component {component.name}", mend=MEND) from error
    forget_date(path)


def decomposed(component: Component) -> ExportedProgram:
    """Decompose the traced program into the operators that Core AI has."""
    from coreai_torch import get_decomp_table

    return component.program.run_decompositions(get_decomp_table())


def untranslated(component: Component) -> tuple[Diagnostic, ...]:
    """List operators that coreai-torch has no lowering for."""
    with quiet():
        from coreai_torch._aten_to_core import _aten_to_core_resolver  # coreai-torch has no public way to ask

        nodes = list(operators(decomposed(component)))
    missing = {
        (operator_name(node), module_path(node))
        for node in nodes
        if str(node.target).startswith("aten.")
        and not str(node.target).startswith(("aten._assert", "aten.sym_"))
        and str(node.target).removeprefix("aten.") not in _aten_to_core_resolver
    }
    what = "coreai-torch has no lowering of it"
    return tuple(Diagnostic(name, path, "error", what, MEND) for name, path in sorted(missing))


def forget_date(path: Path) -> None:
    """Remove when the asset was made from its metadata: equal models shall have equal bytes."""
    file = path / "metadata.json"
    data = json.loads(file.read_text("utf-8"))
    data["creationDate"] = DATE
    file.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", "utf-8")
