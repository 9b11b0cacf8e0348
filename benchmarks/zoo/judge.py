"""One class before the judge: what was found against what the source says, and what removal computes.

The reference is independent of the toolkit's masks: the original model with the removed units' weights set to zero
(for blocks: skipped). Error = max|Δ| / max|reference|.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from dit_compress.core.errors import UserError
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import CompactionError, block_axes, compact_module, disagreement
from dit_compress.structure.edits import edits_from_data
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.structure.observe.discover import observe
from dit_compress.structure.observe.width_units import observe_width
from dit_compress.structure.precision import double_by_default
from dit_compress.structure.record import Call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from truth import Truth

    from dit_compress.structure.facts import Axis, Kept, Structure

LEVELS = ("block", "head", "ffn")
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}
ACTS = 1e-4
"""Least change of the output, relative to its largest value, that a removal must make."""
FAILS = (CompactionError, UserError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError)


class InDouble(TorchDispatchMode):
    """float32 that a module asks for by name becomes float64, so that an error of 1e-10 can be seen at all."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator in double precision; other dtypes may be in the keyword arguments."""
        wide = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        changed = {k: wide.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return func(*args, **changed)


@dataclass
class Verdict:
    """The outcome for one class. counted: levels whose units are those of the source; error: by level, in float64.

    acts: by level, whether the removal changes the output at all: else it would prove nothing.
    """

    name: str
    counted: dict[str, bool] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    single: dict[str, float] = field(default_factory=dict)
    reloads: dict[str, bool] = field(default_factory=dict)
    acts: dict[str, bool] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    mutations: dict[str, bool] = field(default_factory=dict)
    peer: str = ""
    width: str = ""
    """The error of the stream's width, or why it stays."""
    width_exact: bool = False

    def exact(self, level: str) -> bool:
        """Tell whether units are as in the source, masked equals compact in both precisions, and so after a reload."""
        return (
            self.counted.get(level, False)
            and self.acts.get(level, False)
            and self.error.get(level, np.inf) <= EXACT[torch.float64]
            and self.single.get(level, np.inf) <= EXACT[torch.float32]
            and self.reloads.get(level, False)
        )


def judge(name: str, stacks: list[Truth]) -> Verdict:
    """Put one class to the whole trial."""
    verdict = Verdict(name)
    module, inputs = models.build(name)
    try:
        structure = observe(module, Call((), inputs, recorded=True))
    except UserError as error:
        verdict.refused.append(str(error)[:200])
        return verdict
    verdict.refused += [f"{item.path}: {item.reason}" for item in structure.refusals]
    for level in LEVELS:
        verdict.counted[level] = counted(structure, stacks, level)
        axes = axes_of(structure, level)
        if axes:
            remove(verdict, level, axes)
    narrow(verdict, observe_width(module, [Call((), inputs, recorded=True)], structure))
    mutate(verdict, structure)
    return verdict


def axes_of(structure: Structure, level: str) -> list[Axis]:
    """Return every axis of a level, of all stacks."""
    if level == "block":
        return block_axes(structure)
    parts = structure.attentions if level == "head" else structure.feed_forwards
    return [part.axis(level) for part in parts]


def counted(structure: Structure, stacks: list[Truth], level: str) -> bool:
    """Tell whether every stack, and every attention or feed-forward in it, is there with the units of the source."""
    found = {stack.path: stack for stack in structure.stacks}
    if level == "block":
        return all(s.path in found and found[s.path].removable and found[s.path].length == s.length for s in stacks)
    parts = structure.attentions if level == "head" else structure.feed_forwards
    for s in stacks:
        for block in range(s.length):
            units = sorted(part.count for part in parts if (part.stack, part.block) == (s.path, block))
            if units != sorted(s.of(block)[0 if level == "head" else 1]):
                return False
    return True


def plan(axes: list[Axis]) -> Kept:
    """Plan a removal: the second unit goes, of wide axes every third one more, never a run at an end."""
    return {axis.name: tuple(u for u in range(axis.units) if u != 1 and (axis.units < 6 or u % 3)) for axis in axes}


def call_of(name: str, dtype: torch.dtype) -> tuple[nn.Module, Call]:
    """Return the model and one call of it in a precision."""
    module, inputs = models.build(name)
    call = Call((), inputs, recorded=True).map(lambda x: x.to(dtype) if x.is_floating_point() else x)
    return module.to(dtype), call


def remove(verdict: Verdict, level: str, axes: list[Axis]) -> None:
    """Compact at one level, and compare with the reference; in both precisions."""
    kept = plan(axes)
    for dtype, errors in ((torch.float64, verdict.error), (torch.float32, verdict.single)):
        with throughout(dtype):
            module, call = call_of(verdict.name, dtype)
            try:
                reference = reference_of(module, call, level, axes, kept)
                compacted = copy.deepcopy(module)
                entry = compact_module(compacted, call, axes, kept)
                errors[level] = disagreement(call.replay(compacted), reference)
                verdict.acts[level] = disagreement(reference, call.replay(module)) > ACTS
            except FAILS as error:
                verdict.refused.append(f"{level}: {type(error).__name__}: {str(error)[:120]}")
                return
            if not errors[level] <= EXACT[dtype]:
                verdict.wrong.append(f"{level}: {errors[level]:.1e} in {dtype}")
    verdict.reloads[level] = reloads(verdict.name, compacted, call, entry)


@contextmanager
def throughout(dtype: torch.dtype) -> Iterator[None]:
    """Compute in float64, also where a module asks for float32; flex attention then runs without torch.compile."""
    if dtype != torch.float64:
        yield
        return
    with InDouble(), double_by_default():
        yield


def reference_of(module: nn.Module, call: Call, level: str, axes: list[Axis], kept: Kept) -> Any:
    """Return what the original gives without the removed units."""
    if level == "block":
        with masked(module, axes, hard_masks(axes, kept, next(module.parameters()))):
            return call.replay(module)
    zeroed = copy.deepcopy(module)
    for axis in axes:
        gone = np.setdiff1d(np.arange(axis.units), kept[axis.name])
        norms = {norm.path for norm in axis.across}
        for member in axis.members:
            owner, _, leaf = member.tensor.rpartition(".")
            if owner not in norms and hasattr(zeroed.get_submodule(owner), leaf):
                tensor = getattr(zeroed.get_submodule(owner), leaf)
                with torch.no_grad():
                    tensor.index_fill_(member.dim, torch.from_numpy(member.indices[gone].ravel()), 0)
    return call.replay(zeroed)


def reloads(name: str, compacted: nn.Module, call: Call, entry: dict[str, Any]) -> bool:
    """Tell whether the saved weights, put into the class and cut by the logged edits, give the same output."""
    with tempfile.TemporaryDirectory() as folder:
        state = {key: value.contiguous().clone() for key, value in compacted.state_dict().items()}
        save_file(state, Path(folder) / "model.safetensors")
        again, _ = call_of(name, next(compacted.parameters()).dtype)
        apply_edits(again, edits_from_data(entry["data"]["edits"]))
        again.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return disagreement(call.replay(again), call.replay(compacted)) <= 1e-6


def narrow(verdict: Verdict, structure: Structure) -> None:
    """Cut the stream's width in float64 against the model with masks, and reload it.

    What a masked norm counts is a matter of definition, so there is no reference without the toolkit's masks.
    """
    if not structure.widths:
        verdict.width = f"{structure.refusals[0].path}: {structure.refusals[0].reason}"
        return
    axes = [width.axis("width") for width in structure.widths]
    with throughout(torch.float64):
        module, call = call_of(verdict.name, torch.float64)
        try:
            reference = reference_of(module, call, "block", axes, plan(axes))
            compacted = copy.deepcopy(module)
            entry = compact_module(compacted, call, axes, plan(axes))
            error = disagreement(call.replay(compacted), reference)
            acts = disagreement(reference, call.replay(module)) > ACTS
            again = reloads(verdict.name, compacted, call, entry)
        except FAILS as failed:
            verdict.width = f"{type(failed).__name__}: {str(failed)[:120]}"
            return
    verdict.width = f"{error:.0e}"
    verdict.width_exact = error <= EXACT[torch.float64] and acts and again


# ------------------------------------------------------------------ mutations


def stale(axis: Axis) -> Axis | None:
    """Break the compaction: integer attributes do not follow."""
    return replace(axis, follows=()) if axis.follows else None


def unscaled(axis: Axis) -> Axis | None:
    """Break the compaction: norms across heads are sliced, but not rescaled."""
    return replace(axis, across=()) if axis.across else None


def shifted(axis: Axis) -> Axis | None:
    """Break the compaction: producers' rows belong to the neighbours' columns, the wrong gate, the wrong value."""
    if axis.blocks:
        return replace(axis, blocks=replace(axis.blocks, deletable=True)) if not axis.blocks.deletable else None
    if axis.level != "ffn":
        return None
    columns = {point.module for point in axis.masks}
    members = [
        m
        if m.tensor.rpartition(".")[0] in columns or m.tensor in columns
        else replace(m, indices=np.roll(m.indices, 1, 0))
        for m in axis.members
    ]
    return replace(axis, members=tuple(members))


def mutate(verdict: Verdict, structure: Structure) -> None:
    """Put every mutation before the proof of the compaction, which must reject it."""
    for level in LEVELS:
        for mutation in (stale, unscaled, shifted):
            for axis in axes_of(structure, level):
                broken = mutation(axis)
                if broken is None or (not axis.blocks and axis.block != 0):
                    continue
                name = f"{mutation.__name__}:{axis.name}"
                module, call = call_of(verdict.name, torch.float32)
                reference = reference_of(module, call, level, [axis], plan([axis]))
                try:
                    compact_module(module, call, [broken], plan([broken]))
                except FAILS:
                    verdict.mutations[name] = True
                else:
                    # A linear attention divides the scale of its keys out: there the mutation changes nothing.
                    if disagreement(call.replay(module), reference) > EXACT[torch.float32]:
                        verdict.mutations[name] = False
