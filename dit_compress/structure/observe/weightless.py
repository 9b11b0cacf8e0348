"""Run a module without its weights: every matmul with a parameter is replaced by recorded random numbers.

Discovery asks only which entries of a parameter influence which others *directly*, that is along a
path that passes no other matmul. So the values of matrices never matter: they stay on the meta device, a
matmul gives random numbers (the same ones in every replay), and one call of a block of a 14B model takes
milliseconds. Small parameters (norms, biases, tables) get random values when an operation reads them.

Everything runs on the CPU in float64, also where a module asks for float32.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.structure.apply import apply_edits, edit_state
from dit_compress.structure.copies import deep_copy
from dit_compress.structure.lookup import leaves_of
from dit_compress.structure.observe.dispatch import Dispatch
from dit_compress.structure.observe.trace import FAILURES, Change, DivergedError, Touch, Trace
from dit_compress.structure.precision import WIDE, Claiming, double_by_default
from dit_compress.structure.record import Call, map_tensors, tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dit_compress.structure.edits import Edit
    from dit_compress.structure.observe.trace import Side

HOLDERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention)
"""Modules whose parameters only matmuls read."""


class Replica:
    """A weightless copy of a module, with one call of it.

    values: parameters that operations read, by name; random, made when first read.
    claims: the dtype that tensors say they have. cuts: modules whose output is replayed like that of a matmul (norms
    across heads).
    """

    def __init__(
        self,
        module: nn.Module,
        call: Call,
        *,
        seed: int = 0,
        real: bool = False,
        claims: torch.dtype | None = None,
    ) -> None:
        self.module, self.values = weightless_copy(module, real=real)
        self.claims = claims
        self.call = call.map(_real)
        self.seed = seed
        self.cuts: tuple[str, ...] = ()
        self.sides: dict[Any, Side | None] = {}
        self.drawn: dict[Any, Tensor] = {}

    def edited(self, edits: list[Edit], shared: Sequence[nn.Module] = ()) -> Replica:
        """Make a copy with some edits made. shared: modules that no edit changes: the same ones in the copy."""
        other = copy.copy(self)
        other.module = deep_copy(self.module, {id(module): module for module in shared})
        apply_edits(other.module, edits)
        other.values, other.cuts = edit_state(self.values, edits), ()
        return other

    def run(
        self,
        canned: Trace | None = None,
        change: Change | None = None,
        outputs: Callable[[Touch, Touch], Tensor] | None = None,
    ) -> Trace:
        """Run once; with ``canned``, replay its matmul outputs (``outputs`` may adapt them to other shapes)."""
        mode = Dispatch(self, canned, change or Change(), outputs)
        handles = [self.module.get_submodule(path).register_forward_hook(mode.cut(path)) for path in self.cuts]
        if change and change.argument:
            path, edit = change.argument
            owner = self.module.get_submodule(path)
            handles.append(owner.register_forward_pre_hook(lambda _m, a, k: edit(a, k), with_kwargs=True))
        args, kwargs = map_tensors(Tensor.clone, (self.call.args, self.call.kwargs))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), double_by_default():
                torch.default_generator.manual_seed(0)  # torch.manual_seed keeps a traceback for every kind of device
                with mode, Claiming(self.claims) if self.claims else nullcontext():
                    mode.trace.output = self.module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if canned is not None and len(mode.trace.touches) != len(canned.touches):
            raise DivergedError("a replay made another number of matmuls")
        return mode.trace

    def normal(self, place: int, shape: tuple[int, ...]) -> Tensor:
        """Return the random numbers of one place in a run: the same ones in every run. Not to be written to."""
        if (place, shape) not in self.drawn:
            made = torch.Generator().manual_seed(self.seed * 7919 + place + 2**32)
            self.drawn[place, shape] = torch.randn(shape, generator=made, dtype=torch.float64)
        return self.drawn[place, shape]

    def value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the random value of a parameter, between 0.5 and 1.5: no norm is off, no gate is shut."""
        if name not in self.values:
            made = torch.Generator().manual_seed(self.seed * 7919 + sum(map(ord, name)))
            self.values[name] = torch.rand(shape, generator=made, dtype=torch.float64) + 0.5
        return self.values[name]


def run_weightless(module: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """Run a module on the CPU without its weights: shapes are right, and values that need no weights are real.

    Where it does not run, its tables become real, too (Mochi asks one for its device).
    """
    call = Call((), dict(arguments), recorded=True)
    try:
        return Replica(module, call).run().output
    except FAILURES as error:
        with suppress(*FAILURES):
            return Replica(module, call, real=True).run().output
        raise error from None


def weightless_copy(module: nn.Module, *, real: bool = False) -> tuple[nn.Module, dict[str, Tensor]]:
    """Copy in eval mode with parameters and tables (floating buffers) on meta; return it with the tables' values.

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
    return deep_copy(module, memo).eval(), values


def hollow_copy(module: nn.Module) -> nn.Module:
    """Copy to the CPU with parameters that take no memory: one zero each, seen as the whole. Not to be run."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
        memo[id(parameter)] = nn.Parameter(zero, requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.zeros(buffer.shape, dtype=buffer.dtype) if buffer.is_meta else buffer.cpu()
    return deep_copy(module, memo)


def _real(value: Tensor) -> Tensor:
    """Move to the CPU in float64; give what has no values (meta) random ones."""
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
        """Return arguments by position and keyword; tensors in structures by their dotted names."""
        given: list[tuple[int | str, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        return {f"{key}.{path}" if path else key: item for key, value in given for path, item in leaves_of(value)}

    def outputs(self) -> dict[int | str | None, Any]:
        """Return results by position, or by dotted names where they are structures; None for one tensor."""
        plain = isinstance(self.output, tuple | list) and not hasattr(self.output, "_fields")
        if not plain:
            return {path or None: item for path, item in leaves_of(self.output)}
        return {
            f"{place}.{path}" if path else place: item
            for place, value in enumerate(self.output)
            for path, item in leaves_of(value)
        }

    @property
    def call(self) -> Call:
        """The call, to be replayed."""
        return Call(self.args, self.kwargs, recorded=True)


def watch(replica: Replica) -> tuple[dict[str, Seen], Trace]:
    """Run once and note the first call of every module, and which modules were running at any of its calls."""
    seen: dict[str, Seen] = {}
    running: list[str] = []
    entered: list[tuple[tuple[Any, Any], list[tuple[int, int]]]] = []
    callers: dict[str, set[tuple[str, ...]]] = {}
    handles = []
    for path, module in replica.module.named_modules():

        def enter(_module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            # Structures are copied: a module may put other tensors into those that it gets, or gives.
            entered.append((map_tensors(_same, (args, kwargs)), _versions(args, kwargs)))
            callers.setdefault(path, set()).add(tuple(running))
            running.append(path)

        def leave(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            running.pop()
            given, before = entered.pop()
            call = Seen(*given, map_tensors(_same, output), callers[path], before != _versions(args, kwargs))
            seen.setdefault(path, call)

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        base = replica.run()
    finally:
        for handle in handles:
            handle.remove()
    # Where the module has a __call__ of its own, no hook saw it.
    seen.setdefault("", Seen(replica.call.args, replica.call.kwargs, base.output))
    return seen, base


def _versions(args: Any, kwargs: Any) -> list[tuple[int, int]]:
    """Return which tensors are among the arguments, and how often each was written to."""
    return [(id(tensor), tensor._version) for tensor in tensors_in((args, kwargs))]  # noqa: SLF001 - autograd's own


def _same(tensor: Tensor) -> Tensor:
    return tensor
