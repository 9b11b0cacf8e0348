"""A folder per component: ``weights.safetensors`` and ``graph.json``, one entry per operator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from dit_compress.export import Artifact, ExportStep, Profile, inspect

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from dit_compress.export import Component, Diagnostic

KIND = "graph"
SPECIAL = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class GraphExport(ExportStep):
    """Step ``export: {use: graph}``."""

    profile = Profile("stranger", precision="float32", max_rank=8)

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """What holds for every target."""
        return inspect(component, profile)

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Two files."""
        program = component.program
        place = folder / f"{component.name}.{KIND}"
        place.mkdir()
        tensors = {**program.state_dict, **{k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}}
        save_file(
            {name: value.detach().clone().contiguous() for name, value in tensors.items()},
            place / "weights.safetensors",
        )
        inputs = iter(component.inputs)
        sources = {
            spec.arg.name: spec.target or f"input:{next(inputs)}" for spec in program.graph_signature.input_specs
        }
        nodes = [_node(node, sources) for node in program.graph.nodes]
        (place / "graph.json").write_text(json.dumps({"nodes": nodes, "outputs": component.outputs}))
        return [Artifact(place, component.name, KIND, profile.precision)]

    def runner(self, artifact: Artifact) -> Interpreter:
        """Executes the two files, with torch's operators."""
        return Interpreter(artifact.path)


class Interpreter:
    """Knows nothing but the files."""

    fidelity = "interpreter"
    arithmetics = ("float32",)

    def __init__(self, folder: Path) -> None:
        self.weights = load_file(folder / "weights.safetensors")
        self.graph = json.loads((folder / "graph.json").read_text())

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: str) -> dict[str, np.ndarray]:
        """Outputs by name."""
        given = {f"input:{name}": torch.from_numpy(value.copy()) for name, value in inputs.items()}
        values: dict[str, Any] = {}
        for node in self.graph["nodes"]:
            if "source" in node:
                values[node["name"]] = {**self.weights, **given}[node["source"]]
            elif "operator" in node:
                function = _function(node["operator"])
                values[node["name"]] = function(*_read(node["args"], values), **_read(node["kwargs"], values))
            else:
                results = _read(node["args"], values)[0]
        return {name: value.numpy() for name, value in zip(self.graph["outputs"], results, strict=True)}


def _node(node: Any, sources: Mapping[str, str]) -> dict[str, Any]:
    if node.op == "placeholder":
        return {"name": node.name, "source": sources[node.name]}
    data = {"name": node.name, "args": _write(list(node.args)), "kwargs": _write(dict(node.kwargs))}
    return data if node.op == "output" else {**data, "operator": _name(node.target)}


def _name(target: Any) -> str:
    return str(target) if isinstance(target, torch._ops.OpOverload) else target.__name__


def _function(name: str) -> Any:
    if name == "getitem":
        return lambda value, index: value[index]
    space, operator, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), operator), overload)


def _write(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_write(item) for item in value]
    if isinstance(value, dict):
        return {"keys": {key: _write(item) for key, item in value.items()}}
    if isinstance(value, SPECIAL):
        return {"torch": str(value).removeprefix("torch."), "device": isinstance(value, torch.device)}
    return value


def _read(value: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_read(item, values) for item in value]
    if not isinstance(value, dict):
        return value
    if "node" in value:
        return values[value["node"]]
    if "keys" in value:
        return {key: _read(item, values) for key, item in value["keys"].items()}
    return torch.device(value["torch"]) if value["device"] else getattr(torch, value["torch"])
