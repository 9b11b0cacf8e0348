"""Make the pruned model, prove it on a recorded call, and write it into the transform log."""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.progress import say
from dit_compress.structure.apply import apply_edits, edit_state, replace_tensor
from dit_compress.structure.edits import (
    REVISION,
    Scale,
    as_ranges,
    compile_edits,
    edits_as_data,
    from_ranges,
    settle_norms,
)
from dit_compress.structure.facts import Axis
from dit_compress.structure.files.finite import need_finite
from dit_compress.structure.lookup import tensor_at
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.structure.precision import in_double
from dit_compress.structure.record import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from dit_compress.structure.facts import Kept, Stack, Structure
    from dit_compress.structure.record import Call

LOG_NAME = "prune"
TOLERANCE = 1e-10
"""Largest max|Δ| / max|reference| between masked and compact, both computed in float64."""
SINGLE = 1e-5
"""The same in the module's own precision, where one of its kernels has no float64."""


class CompactionError(RuntimeError):
    """Masked and compact disagree: the structure was not understood. Nothing was written."""


def compact_module(module: nn.Module, call: Call, axes: Sequence[Axis], kept: Kept) -> dict[str, Any]:
    """Do the same for any module, proven on a recorded call (see :func:`dit_compress.record`)."""
    return compact_proven(module, lambda: call.replay(module), axes, kept)


def compact_proven(module: nn.Module, run: Callable[[], Any], axes: Sequence[Axis], kept: Kept) -> dict[str, Any]:
    """Prune the module in place, proven on what ``run`` gives before, under masks, and after."""
    settle_norms(module, axes)
    edits = compile_edits(module, axes, kept)
    parameter = next(module.parameters())
    if parameter.device.type == "meta":
        apply_edits(module, edits)
        return {"name": LOG_NAME, "revision": REVISION, "data": log_data(axes, kept, edits)}
    say(f"proving that {type(module).__name__} cut equals it masked")
    with masked(module, axes, hard_masks(axes, kept, parameter)):
        reference, precision, tolerance = _widest(run, parameter.dtype)
    if not tensors_in(reference):
        raise UserError(
            "the call gives no tensor back, so that nothing could be proven on it",
            where=type(module).__name__,
            mend="Record a call that returns tensors, alone or in tuples, lists, dicts or attributes",
        )
    _need_finite(module, reference)
    # Scaled weights are rounded anew: the proof takes them unrounded.
    scaled = {edit.tensor: tensor_at(module, edit.tensor) for edit in edits if isinstance(edit, Scale)}
    for name, value in scaled.items():
        replace_tensor(module, name, value.double() if precision is not nullcontext else value)
    apply_edits(module, edits)
    with precision():
        error = disagreement(run(), reference)
    for name, value in edit_state(scaled, edits).items():
        replace_tensor(module, name, value)
    if not error <= tolerance:
        raise CompactionError(f"masked and compact differ by {error:.1e} of the largest value")
    return {"name": LOG_NAME, "revision": REVISION, "data": log_data(axes, kept, edits)}


def _need_finite(module: nn.Module, reference: Any) -> None:
    """Raise a UserError where nothing can be proven since the output is not finite; it names a weight that is not."""
    if all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(reference)):
        return
    need_finite(module)
    raise UserError(
        "the call gives NaN or infinity", where=type(module).__name__, mend="Record a call whose output is finite"
    )


def _widest(
    run: Callable[[], Any], dtype: torch.dtype
) -> tuple[Any, Callable[[], AbstractContextManager[None]], float]:
    """Return what a run gives in float64, else in its own precision; with the precision, and how exact it can be.

    dtype: what float64 passes for, where the module checks dtypes.
    """
    for precision in (in_double, partial(in_double, dtype)):
        with suppress(UserError, RuntimeError, TypeError, ValueError, AssertionError), precision():
            return run(), precision, TOLERANCE
    return run(), nullcontext, SINGLE


def disagreement(candidate: Any, reference: Any) -> float:
    """Return the largest :func:`relative_error` over the tensors of two outputs, NaN if one is.

    Infinity where their number or shapes differ, and where there is nothing to compare.
    """
    pairs = list(zip_longest(tensors_in(candidate), tensors_in(reference)))
    if any(a is None or b is None or a.shape != b.shape for a, b in pairs):
        return float("inf")
    errors = [relative_error(a, b) for a, b in pairs if b.is_floating_point() or b.is_complex()]
    return max(errors, key=lambda error: (math.isnan(error), error), default=float("inf"))


def log_data(axes: Sequence[Axis], kept: Kept, edits: list[Any]) -> dict[str, Any]:
    """Return the entry of a plan in the transform log: the units that stay, and the compiled edits."""
    units = {axis.name: axis.units for axis in axes}
    return {
        "kept": {name: {"of": units[name], "units": as_ranges(index)} for name, index in kept.items()},
        "edits": edits_as_data(edits),
    }


def kept_blocks(log: Sequence[dict[str, Any]], stack: str) -> tuple[int, ...] | None:
    """Return which original blocks of a stack the log has left; None where the log never pruned that stack."""
    origin: tuple[int, ...] | None = None
    for entry in log:
        record = entry["data"].get("kept", {}).get(f"block:{stack}") if entry["name"] == LOG_NAME else None
        if record is not None:
            units = from_ranges(record["units"])
            origin = units if origin is None else tuple(origin[index] for index in units)
    return origin


def relative_error(candidate: Tensor, reference: Tensor) -> float:
    """Return max|Δ| / max|reference|."""
    scale = reference.abs().max().clamp_min(torch.finfo(reference.dtype).tiny)
    return float((candidate - reference).abs().max() / scale)


def block_axes(structure: Structure) -> list[Axis]:
    """Return the blocks of every stack from which some can go."""
    return [block_axis(stack) for stack in structure.stacks if stack.removable and stack.length > 1]


def block_axis(stack: Stack) -> Axis:
    """Return the axis of a stack's blocks."""
    return Axis(f"block:{stack.path}", "block", stack.length, stack.path, blocks=stack)
