"""Objections of any target to a traced component."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.export.rewrite import odd_norms
from dit_compress.export.types import Diagnostic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram
    from torch.fx import Node

    from dit_compress.export.component import Component
    from dit_compress.export.types import Profile

RANDOM = ("rand", "randn", "randint", "bernoulli", "normal", "dropout", "rand_like", "randn_like", "normal_functional")

LARGE = 2**16
"""Values of a tensor whose padding is worth a warning."""


def inspect(component: Component, profile: Profile, *, splits: bool = False) -> list[Diagnostic]:
    """Return the objections that hold for every target: rank, dtypes, randomness, size, unused inputs.

    ``splits``: the exporter writes several files where one would be too large.

    Raises:
        UserError: as of ``Component.program``.
    """
    program = component.program
    found = [*_weights(component, profile, splits=splits), *_dtypes(component, profile), *_unused(component, program)]
    found += [*_written(component, program), *_norms(component, profile)]
    for node in operators(program):
        found += _objections(node, profile)
    return found + _short_rows(program, profile)


def inspected(component: Component, profile: Profile, *, splits: bool = False) -> tuple[list[Diagnostic], list[Node]]:
    """Inspect the traced component, and list its operators; an untraceable one is a diagnostic itself."""
    try:
        found = inspect(component, profile, splits=splits)
    except UserError as error:
        return [Diagnostic("", where, "error", what, mend) for where, what, mend in error.problems], []
    return found, list(operators(component.program))


def operators(program: ExportedProgram) -> Iterator[Node]:
    """Yield the nodes that compute."""
    for node in program.graph_module.graph.nodes:
        if node.op == "call_function" and "val" in node.meta:
            yield node


def module_path(node: Node) -> str:
    """Return dotted path of the module a node was traced in, relative to the component's module."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path.removeprefix("module").lstrip(".") for path, _ in stack.values()]
    return paths[-1] if paths and paths[-1] else "(the component itself)"


def operator_name(node: Node) -> str:
    """Return ``aten.linear`` of ``aten.linear.default``."""
    return ".".join(str(node.target).split(".")[:2])


def _objections(node: Node, profile: Profile) -> Iterator[Diagnostic]:
    name, path = operator_name(node), module_path(node)
    values = [value for value in _flat(node.meta["val"]) if isinstance(value, Tensor)]
    rank = max((value.ndim for value in values), default=0)
    if rank > profile.max_rank:
        mend = "Fold neighbouring axes into one before computing on it"
        yield Diagnostic(name, path, "error", f"a tensor of rank {rank}, the target takes {profile.max_rank}", mend)
    if any(isinstance(size, torch.SymInt) for value in values for size in value.shape):
        mend = "Give every tensor a size that does not depend on values: a mask instead of a selection"
        yield Diagnostic(name, path, "error", "a shape that depends on values", mend)
    if any(value.is_complex() for value in values):
        yield Diagnostic(name, path, "error", "complex numbers", "Write the rotation with cosines and sines")
    if name.removeprefix("aten.") in RANDOM:
        yield Diagnostic(name, path, "error", "random numbers inside the graph", "Make the noise an input")


def _weights(component: Component, profile: Profile, *, splits: bool) -> Iterator[Diagnostic]:
    count = count_weights(component.module) if component.num_weights is None else component.num_weights
    size = count * profile.bits // 8
    mend = "Prune more, or choose a smaller precision"
    if profile.memory_bytes is not None and size > profile.memory_bytes:
        message = f"weights of {_mib(size)}, the device has {_mib(profile.memory_bytes)}"
        yield Diagnostic("", component.name, "error", message, mend)
    elif profile.max_file_bytes is not None and size > profile.max_file_bytes and not splits:
        message = f"weights of {_mib(size)}, a file may have {_mib(profile.max_file_bytes)}"
        yield Diagnostic("", component.name, "error", message, mend)


def count_weights(module: nn.Module) -> int:
    """Count the values of all parameters and buffers, shared ones once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() for tensor in tensors.values())


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


def _dtypes(component: Component, profile: Profile) -> Iterator[Diagnostic]:
    for name, value in component.inputs.items():
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in profile.dtypes:
            article = "an" if dtype[0] in "aeiou" else "a"
            message = f"{article} {dtype} input; the target has {', '.join(profile.dtypes)}"
            yield Diagnostic("", f"input {name}", "error", message, "Give it as int32 or float32")


def _short_rows(program: ExportedProgram, profile: Profile) -> list[Diagnostic]:
    """Return one warning for all large tensors whose last axis the device pads."""
    short = [
        node
        for node in operators(program)
        if isinstance(value := node.meta["val"], Tensor)
        and not any(isinstance(size, torch.SymInt) for size in value.shape)
        and value.numel() >= LARGE
        and 0 < value.shape[-1] < profile.alignment
    ]
    if not short:
        return []
    shape = list(short[0].meta["val"].shape)
    message = f"large tensors end in less than {profile.alignment} values ({shape}, first): they are padded"
    mend = "Put the longest axis last"
    return [Diagnostic(operator_name(short[0]), module_path(short[0]), "warning", message, mend)]


def _unused(component: Component, program: ExportedProgram) -> Iterator[Diagnostic]:
    names = program.graph_signature.user_inputs
    users = {node.name: node.users for node in program.graph_module.graph.nodes if node.op == "placeholder"}
    for given, traced in zip(component.inputs, names, strict=True):
        if not users.get(str(traced)):
            mend = "Leave it out of the component's inputs"
            yield Diagnostic("", f"input {given}", "error", "the module does not use this input", mend)


def _written(component: Component, program: ExportedProgram) -> Iterator[Diagnostic]:
    """Yield the inputs that the module writes into: no file can do that."""
    given = dict(zip(program.graph_signature.user_inputs, component.inputs, strict=True))
    for traced in program.graph_signature.user_inputs_to_mutate.values():
        mend = "Clone it in the module first, or write the operation without an underscore"
        yield Diagnostic("", f"input {given[traced]}", "error", "the module writes into this input", mend)


def _norms(component: Component, profile: Profile) -> Iterator[Diagnostic]:
    """Norms that no rewrite keeps finite in half precision."""
    for path, kind in odd_norms(component.module) if profile.precision == "float16" else ():
        message = f"{kind} is not x / sqrt(mean(x²) + eps) · weight over the last axis: squares overflow above 256"
        yield Diagnostic("", path or component.name, "warning", message, "Write it so, or export in float32")


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]
