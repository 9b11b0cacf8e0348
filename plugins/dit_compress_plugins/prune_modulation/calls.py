"""Calls of a denoiser's module at several timesteps, and what its linears got and gave in them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_compress.structure.lookup import argument_at, with_argument
from dit_compress.structure.record import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from dit_compress.model.denoiser import Denoiser

_HALF = (torch.float16, torch.bfloat16)


def example_at_hand(denoiser: Denoiser) -> Call:
    """Return the denoiser's example where its module stands; half precision as float32, unless the module has it."""
    like = next(denoiser.module.parameters())
    low = like.dtype in _HALF

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(like.device, torch.float32 if tensor.dtype in _HALF and not low else tensor.dtype)

    return denoiser.example_call().map(moved)


def at_time(call: Call, argument: int | str, time: float) -> Call:
    """Return a call with another timestep."""
    clock = argument_at(call.args, call.kwargs, argument)
    # Rounded to whole steps, or to half precision, it would be another one.
    rounds = clock.dtype in _HALF or not (clock.is_floating_point() or float(time).is_integer())
    return _with(call, argument, torch.full_like(clock, time, dtype=torch.float32 if rounds else clock.dtype))


def redrawn(call: Call, arguments: Iterable[int | str], seed: int) -> Call:
    """Return a call with other features of as large a spread in some arguments; single numbers stay."""
    for argument in arguments:
        value = argument_at(call.args, call.kwargs, argument)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1:
            drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)
            call = _with(call, argument, value.mean() + value.std() * drawn)
    return call


def _with(call: Call, argument: int | str, value: Tensor) -> Call:
    return Call(*with_argument(call.args, call.kwargs, argument, value), recorded=True)


def watched(module: nn.Module, call: Call, paths: Sequence[str]) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """Run a call; return its output, and rows of the inputs ``[N,I]`` and outputs ``[N,O]`` of some linears."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in paths}
    with ExitStack() as stack:
        for path in paths:

            def note(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
                seen[path].append((args[0].flatten(0, -2).detach(), output.flatten(0, -2).detach()))

            stack.callback(module.get_submodule(path).register_forward_hook(note).remove)
        output = call.replay(module)
    joined = {path: (torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])) for path, rows in seen.items()}
    return output, joined
