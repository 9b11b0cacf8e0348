"""Run a module without its weights: every matmul with a parameter is replaced by recorded random numbers.

Discovery asks only which entries of a parameter influence which others *directly*, that is along a
path that passes no other matmul. So the values of matrices never matter: they stay on the meta device, a
matmul gives random numbers (the same ones in every replay), and one call of a block of a 14B model takes
milliseconds. Small parameters (norms, biases, tables) get random values when an operation reads them.

Everything runs on the CPU in float64, also where a module asks for float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.structure.apply import apply_edits, edit_state
from dit_compress.structure.observe.dispatch import Watcher
from dit_compress.structure.observe.trace import Change, DivergedError, Touch, Trace
from dit_compress.structure.precision import WIDE, double_by_default
from dit_compress.structure.record import Call, map_tensors, tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dit_compress.structure.edits import Edit
    from dit_compress.structure.observe.trace import Side

HOLDERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention)
"""Modules whose parameters only matmuls read."""


class Replica:
    """A weightless copy of a module, with one call of it.

    values: parameters that operations read, by name; random, made when first read.
    cuts: modules whose output is replayed like that of a matmul (norms across heads).
    """

    def __init__(self, module: nn.Module, call: Call, *, seed: int = 0, real: bool = False) -> None:
        self.module, self.values = weightless_copy(module, real=real)
        self.call = call.map(_real)
        self.seed = seed
        self.cuts: tuple[str, ...] = ()
        self.sides: dict[Any, Side | None] = {}

    def edited(self, edits: list[Edit]) -> Replica:
        """A copy with some edits made."""
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module)
        apply_edits(other.module, edits)
        other.values, other.cuts = edit_state(self.values, edits), ()
        return other

    def run(
        self,
        canned: Trace | None = None,
        change: Change | None = None,
        outputs: Callable[[Touch, Touch], Tensor] | None = None,
    ) -> Trace:
        """One run; with ``canned`` a replay of its matmul outputs (``outputs`` may adapt them to other shapes)."""
        mode = Watcher(self, canned, change or Change(), outputs)
        handles = [self.module.get_submodule(path).register_forward_hook(mode.cut(path)) for path in self.cuts]
        if change and change.argument:
            path, edit = change.argument
            owner = self.module.get_submodule(path)
            handles.append(owner.register_forward_pre_hook(lambda _m, a, k: edit(a, k), with_kwargs=True))
        args, kwargs = map_tensors(Tensor.clone, (self.call.args, self.call.kwargs))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), double_by_default():
                torch.default_generator.manual_seed(0)  # torch.manual_seed keeps a traceback for every kind of device
                with mode:
                    mode.trace.output = self.module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if canned is not None and len(mode.trace.touches) != len(canned.touches):
            raise DivergedError("a replay made another number of matmuls")
        return mode.trace

    def value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The random value of a parameter, between 0.5 and 1.5: no norm is off, no gate is shut."""
        if name not in self.values:
            made = torch.Generator().manual_seed(self.seed * 7919 + sum(map(ord, name)))
            self.values[name] = torch.rand(shape, generator=made, dtype=torch.float64) + 0.5
        return self.values[name]


def run_weightless(module: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """What a module gives for arguments on the CPU: of the right shapes and, but for its weights, real."""
    return Replica(module, Call((), dict(arguments), recorded=True)).run().output


def weightless_copy(module: nn.Module, *, real: bool = False) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy in eval mode with parameters and tables (floating buffers) on meta, and the values of the tables.

    real: tables, and parameters that no linear, convolution or embedding holds, are real tensors: for modules
    that ask a table for its device, or index it by lists.
    """
    memo: dict[int, Any] = {}
    values: dict[str, Tensor] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            dtype = WIDE.get(parameter.dtype, parameter.dtype)
            small = real and not isinstance(owner, HOLDERS)
            made = (
                torch.rand(parameter.shape, dtype=dtype) + 0.5
                if small
                else torch.empty_like(parameter, device="meta", dtype=dtype)
            )
            memo[id(parameter)] = nn.Parameter(made, requires_grad=False)
        for value in vars(owner).values():
            if isinstance(value, Tensor):
                memo.setdefault(id(value), _real(value))
    for name, buffer in module.named_buffers():
        memo[id(buffer)] = value = _real(buffer)
        if value.is_floating_point() and not real:
            values[name] = value
            memo[id(buffer)] = torch.empty(value.shape, device="meta", dtype=value.dtype)
    return copy.deepcopy(module, memo).eval(), values


def hollow_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU whose parameters take no memory: one zero each, seen as the whole. Not to be run."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
        memo[id(parameter)] = nn.Parameter(zero, requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.zeros(buffer.shape, dtype=buffer.dtype) if buffer.is_meta else buffer.cpu()
    return copy.deepcopy(module, memo)


def _real(value: Tensor) -> Tensor:
    """On the CPU in float64; what has no values (meta) gets random ones."""
    if value.is_meta:
        if value.dtype.is_floating_point:
            made = torch.Generator().manual_seed(value.numel())
            return torch.randn(value.shape, generator=made, dtype=torch.float64)
        return torch.ones(value.shape, dtype=WIDE.get(value.dtype, value.dtype))
    return value.detach().to("cpu", WIDE.get(value.dtype, value.dtype))


@dataclass
class Seen:
    """The first call of a module. Tensors are held, so that their identities stay unique.

    writes: whether the call wrote into one of its arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    callers: set[tuple[str, ...]] = field(default_factory=set)
    writes: bool = False

    def inputs(self) -> dict[int | str, Any]:
        """Arguments by position and keyword."""
        return dict([*enumerate(self.args), *self.kwargs.items()])

    def outputs(self) -> dict[int | None, Any]:
        """Results by position; None for a result that is no tuple."""
        if isinstance(self.output, tuple | list):
            return dict(enumerate(self.output))
        return {None: self.output}

    @property
    def call(self) -> Call:
        """The call, to be replayed."""
        return Call(self.args, self.kwargs, recorded=True)


def watch(replica: Replica) -> tuple[dict[str, Seen], Trace]:
    """Run once and note the first call of every module, and which modules were running at any of its calls."""
    seen: dict[str, Seen] = {}
    running: list[str] = []
    entered: list[list[int]] = []
    callers: dict[str, set[tuple[str, ...]]] = {}
    handles = []
    for path, module in replica.module.named_modules():

        def enter(_module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            entered.append(_versions(args, kwargs))
            callers.setdefault(path, set()).add(tuple(running))
            running.append(path)

        def leave(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            running.pop()
            writes = entered.pop() != _versions(args, kwargs)
            seen.setdefault(path, Seen(args, kwargs, output, callers[path], writes))

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        base = replica.run()
    finally:
        for handle in handles:
            handle.remove()
    return seen, base


def _versions(args: Any, kwargs: Any) -> list[int]:
    """How often each tensor among the arguments was written to."""
    return [tensor._version for tensor in tensors_in((args, kwargs))]  # noqa: SLF001 - autograd's own counter
