"""A file format, complete: ``graph.json`` lists operators of torch's Core ATen set, ``weights.safetensors`` tensors.

Shapes are fixed, arithmetic is float32, and an interpreter executes what lies on disk.

Change this: keep ``write_graph`` where your compiler reads such a list, or put your own format in its place.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from dit_compress.core.errors import UserError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from dit_compress.export import Component, Fidelity
    from dit_compress.export.compare import Arithmetic
    from torch.export import ExportedProgram

GRAPH, WEIGHTS = "graph.json", "weights.safetensors"
SPECIAL = (torch.dtype, torch.device, torch.layout, torch.memory_format)


def write_graph(program: ExportedProgram, component: Component, place: Path) -> None:
    """Write the two files of a traced component."""
    constants = {name: value for name, value in program.constants.items() if isinstance(value, torch.Tensor)}
    tensors = {name: value.detach().clone().contiguous() for name, value in {**constants, **program.state_dict}.items()}
    save_file(tensors, place / WEIGHTS)
    inputs = iter(component.inputs)
    sources = {spec.arg.name: spec.target or f"input:{next(inputs)}" for spec in program.graph_signature.input_specs}
    nodes = [_node(node, sources) for node in program.graph.nodes]
    (place / GRAPH).write_text(json.dumps({"outputs": component.outputs, "nodes": nodes}, indent=0), "utf-8")


class Interpreter:
    """Executes the two files, operator by operator. Knows nothing but them."""

    fidelity: Fidelity = "interpreter"
    arithmetics: tuple[Arithmetic, ...] = ("float32",)

    def __init__(self, place: Path) -> None:
        try:
            self.weights = load_file(place / WEIGHTS)
            self.graph = json.loads((place / GRAPH).read_text("utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"it can't be read: {error}", where=str(place), mend="Export the bundle again") from error

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        """Return outputs by name; ``arithmetic`` is one of :attr:`arithmetics`."""
        known = {**self.weights, **{f"input:{name}": torch.from_numpy(value.copy()) for name, value in inputs.items()}}
        values: dict[str, Any] = {}
        results: list[Any] = []
        for node in self.graph["nodes"]:
            if "source" in node:
                values[node["name"]] = known[node["source"]]
            elif "operator" in node:
                operator = _operator(node["operator"])
                values[node["name"]] = operator(*_read(node["args"], values), **_read(node["kwargs"], values))
            else:
                results = _read(node["args"], values)[0]
        return {name: value.numpy() for name, value in zip(self.graph["outputs"], results, strict=True)}


def _operator(name: str) -> Any:
    """Return ``aten.linear.default`` as torch's function; nothing outside ATen is called."""
    if name == "getitem":
        return lambda value, index: value[index]
    space, operator, overload = name.split(".")
    if space != "aten":
        raise UserError(f"the graph names the operator {name!r}; only those of aten are executed")
    return getattr(getattr(torch.ops.aten, operator), overload)


def _node(node: Any, sources: Mapping[str, str]) -> dict[str, Any]:
    """Return one entry of the list: an input or weight, an operator, or the outputs."""
    if node.op == "placeholder":
        return {"name": node.name, "source": sources[node.name]}
    data = {"name": node.name, "args": _write(list(node.args)), "kwargs": _write(dict(node.kwargs))}
    if node.op == "output":
        return data
    return {**data, "operator": str(node.target) if hasattr(node.target, "overloadpacket") else "getitem"}


def _write(value: Any) -> Any:
    """Write an argument as JSON: ``{"node": name}`` is a value computed before."""
    if isinstance(value, torch.fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_write(item) for item in value]
    if isinstance(value, dict):
        return {"keys": {key: _write(item) for key, item in value.items()}}
    if isinstance(value, SPECIAL):
        return {"torch": str(value).removeprefix("torch."), "device": isinstance(value, torch.device)}
    if isinstance(value, float) and value in (float("inf"), -float("inf")):
        return {"float": str(value)}
    return value


def _read(value: Any, values: Mapping[str, Any]) -> Any:
    """Read the argument again."""
    if isinstance(value, list):
        return [_read(item, values) for item in value]
    if not isinstance(value, dict):
        return value
    if "node" in value:
        return values[value["node"]]
    if "keys" in value:
        return {key: _read(item, values) for key, item in value["keys"].items()}
    if "float" in value:
        return float(value["float"])
    return torch.device(value["torch"]) if value["device"] else getattr(torch, value["torch"])
