"""Export any module by one recorded call: one component, proven like those of a bundle."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.export.component import Component
from dit_compress.export.components import WIDE_RANK
from dit_compress.export.contract import is_exporter
from dit_compress.export.inputs import without_unused
from dit_compress.export.package import export_components
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.structure.copies import shared_copy, single_copy
from dit_compress.structure.lookup import leaves_of
from dit_compress.structure.record import map_tensors, tensors_in

if TYPE_CHECKING:
    from dit_compress.structure.record import Call

NAME = "model"
"""The component, and the stem of its files."""
_HALF = (torch.float16, torch.bfloat16)


def export(module: nn.Module, *, call: Call, target: str, out: str | Path, **options: Any) -> dict[str, Any]:
    """Export a module as one recorded call of it runs; the report of the proof, and ``left_out``.

    The files take the shapes of the call. What is no tensor in it, and inputs that the module does not use
    (``left_out``, a warning names them), are constants of the file. Half precision is exported from float32.

    Args:
        module: any module; it stays as it is.
        call: one call of it (:func:`dit_compress.record`).
        target: an exporter, such as ``onnx`` or ``coreml``.
        out: a new folder: files, golden tensors and ``manifest.json``.
        options: those of the exporter: ``precision``, ``device`` …

    Raises:
        UserError: the module can't be traced, the exporter objects, or a file is refused. Nothing is written then.
    """
    if Path(out).exists():
        raise UserError("this exists already", where=str(out), mend="Name a new folder, or remove this one")
    exporter = make_part("export", {"use": target, **options}, installed()).build()
    if not is_exporter(exporter):
        raise UserError(f"the exporter {target!r} writes no single component", mend="Name another target")
    component = recorded_component(module, call)
    for name in component.left_out:
        warnings.warn(f"input {name!r} is left out: the module does not use it", stacklevel=2)
    about = {"exporter": {"plugin": target, "options": options}}
    report = export_components(exporter, [component], exporter.profile, Path(out), about)
    return {**report, "left_out": list(component.left_out)}


def recorded_component(module: nn.Module, call: Call) -> Component:
    """Return the module as a component of those of the call's tensors that it uses."""
    if not call.recorded:
        raise UserError("nothing was recorded", mend="Run 'with dit_compress.record(model) as call'")
    half = any(tensor.dtype in _HALF for tensor in module.parameters())
    copied = (single_copy(module) if half else shared_copy(module)).eval()
    call = call.map(lambda tensor: tensor.float() if half and tensor.dtype in _HALF else tensor)
    outputs = tensors_in(call.replay(copied))
    if not outputs:
        raise UserError("the call gives no tensor back", where=type(module).__name__, mend="Record one that does")
    return without_unused(_component(copied, call, len(outputs)))


class RecordedStep(nn.Module):
    """A module, called as it was recorded, with the call's tensors as its inputs."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the tensors of the result; inputs come as files have them, and get the dtypes of the call back."""
        dtypes = [tensor.dtype for tensor in tensors_in((self.call.args, self.call.kwargs))]
        left = (
            tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)
        )
        args, kwargs = map_tensors(lambda _: next(left), (self.call.args, self.call.kwargs))
        found = tensors_in(self.module(*args, **kwargs))
        return found[0] if len(found) == 1 else tuple(found)


def _component(module: nn.Module, call: Call, outputs: int) -> Component:
    tensors = tensors_in((call.args, call.kwargs))
    inputs = {name: _plain(tensor) for name, tensor in zip(_names(module, call), tensors, strict=True)}
    floats = [name for name, value in inputs.items() if value.is_floating_point()]
    component = Component(
        name=NAME,
        module=RecordedStep(module, call).eval(),
        inputs=inputs,
        outputs=("output",) if outputs == 1 else tuple(f"output_{place}" for place in range(outputs)),
        varied=tuple(name for name in floats if inputs[name].ndim >= WIDE_RANK),
        precise=tuple(name for name in floats if inputs[name].ndim < 2),
    )
    return component if component.varied else replace(component, varied=tuple(floats))


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor as files take it: whole numbers and masks as int32, numbers as float32."""
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int32).contiguous()


def _names(module: nn.Module, call: Call) -> list[str]:
    """Names of the call's tensors, in their order: those of ``forward``'s arguments, and of what is inside them."""
    signature = inspect.signature(module.forward)
    words = [name for name, found in signature.parameters.items() if found.kind is not found.VAR_POSITIONAL]
    positions = {place: words[place] if place < len(words) else f"input_{place}" for place in range(len(call.args))}
    arguments = {**{positions[place]: value for place, value in enumerate(call.args)}, **call.kwargs}
    found = [
        f"{name}_{path.replace('.', '_')}" if path else name
        for name, value in arguments.items()
        for path, leaf in leaves_of(value)
        if isinstance(leaf, Tensor)
    ]
    count = len(tensors_in((call.args, call.kwargs)))
    return found if len(found) == len(set(found)) == count else [f"input_{place}" for place in range(count)]
