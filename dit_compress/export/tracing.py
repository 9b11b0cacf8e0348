"""From a module with its inputs to a traced program."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.progress import quiet
from dit_compress.export.rewrite import rewrite_for, rewrite_graph, rewrite_modules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.export import ExportedProgram

    from dit_compress.export.types import Rewrites


class Named(nn.Module):
    """A module called by the component's input names, which tracers then give to the file's inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Tensor) -> Any:
        """Return the module's output; the names come in the order of the component's inputs."""
        return self.module(*inputs.values())


def trace(name: str, module: nn.Module, inputs: Mapping[str, Tensor], rewrites: Rewrites) -> ExportedProgram:
    """Trace a module called by the names of its inputs; ``Component.program`` asks once for each component.

    name: of the component. rewrites: what the trace gets beyond what all get.
    """
    named = Named(rewrite_modules(module))
    try:
        with torch.no_grad(), quiet(), _plain_attention():  # torch prints the whole graph where it can't go on
            program = torch.export.export(named, (), dict(inputs), strict=False)
            program = program.run_decompositions({})
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"torch.export can't trace it: {root_cause(error)}",
            where=f"component {name}{_place(error)}",
            mend="Make control flow and shapes independent of values",
        ) from error
    rewrite_graph(program)
    rewrite_for(program, rewrites)
    return program


def copied(program: ExportedProgram) -> ExportedProgram:
    """Copy a program: a graph of its own, the weights in common."""
    weights = (*program.state_dict.values(), *program.constants.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(program, {id(weight): weight for weight in weights})


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Do without torch's fused encoder layer, which no other runtime has."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _place(error: Exception) -> str:
    """Return the innermost line of the model's own code in a traceback, as ``file:function``."""
    frame, place = error.__traceback__, ""
    while frame is not None:
        code = frame.tb_frame.f_code
        if code.co_name == "forward" and "/torch/" not in code.co_filename:
            owner = frame.tb_frame.f_locals.get("self")
            place = f", {type(owner).__name__}.forward"
        frame = frame.tb_next
    return place
