"""Run a module without its weights: every matmul with a parameter is replaced by recorded random numbers.

Discovery asks only which entries of a parameter influence which others *directly*, that is along a
path that passes no other matmul. So the values of matrices never matter: they stay on the meta device, a
matmul gives random numbers (the same ones in every replay), and one call of a block of a 14B model takes
milliseconds. Small parameters (norms, biases, tables) get random values when an operation reads them.

Everything runs on the CPU in float64, also where a module asks for float32.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dit_compress.structure.edits import apply_edits, edit_state
from dit_compress.structure.record import Call, map_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dit_compress.structure.edits import Edit

Key = tuple[str, tuple[Any, ...]]
"""A list of exchangeable entries: a parameter and its dimensions, or a cut module and ``("in",)`` or ``("out",)``."""

_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
MATMULS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention)
_aten = torch.ops.aten
_COPIES = {_aten.clone.default, _aten._to_copy.default}  # noqa: SLF001 - the name of the operator
_ADDS = {_aten.add.Tensor, _aten.add_.Tensor}
_ALIASES = {_aten._unsafe_view.default, _aten.detach.default, _aten.lift_fresh.default}  # noqa: SLF001


class DivergedError(RuntimeError):
    """A replay took another way through the module than the recorded run: its control flow depends on data."""


@dataclass(frozen=True)
class Side:
    """One side of a weight: feature f of the matmul is entry ``index[f]`` of ``key``, raveled over ``shape``."""

    key: Key
    shape: tuple[int, ...]
    index: np.ndarray = field(repr=False)


@dataclass
class Touch:
    """One use of a weight: its sides, the input ``[..., in]`` and the output ``[..., out]``."""

    rows: Side
    cols: Side | None
    bias: Side | None
    input: Tensor | None
    output: Tensor


@dataclass
class Trace:
    """What one run did."""

    touches: list[Touch] = field(default_factory=list)
    output: Any = None
    read: set[str] = field(default_factory=set)


@dataclass
class Change:
    """What a replay does differently.

    rows: entries of outputs that get other random numbers (zeros with ``zero``).
    values: parameters with other values. argument: ``(module path, function of its args and kwargs)``.
    """

    rows: Mapping[Key, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    argument: tuple[str, Callable[[Any, Any], tuple[Any, Any]]] | None = None
    zero: bool = False

    def with_(self, other: Change) -> Change:
        """Both changes."""
        return Change(
            {**self.rows, **other.rows}, {**self.values, **other.values}, self.argument or other.argument, self.zero
        )


@dataclass(frozen=True)
class _Origin:
    """Where the entries of a meta storage come from: entry i is entry ``index[i]`` (or i) of the parameter."""

    name: str
    shape: tuple[int, ...]
    index: Tensor | None = None


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
        mode = _Mode(self, canned, change or Change(), outputs)
        handles = [self.module.get_submodule(path).register_forward_hook(mode.cut(path)) for path in self.cuts]
        if change and change.argument:
            path, edit = change.argument
            owner = self.module.get_submodule(path)
            handles.append(owner.register_forward_pre_hook(lambda _m, a, k: edit(a, k), with_kwargs=True))
        args, kwargs = map_tensors(Tensor.clone, (self.call.args, self.call.kwargs))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), eager_flex_attention():
                torch.manual_seed(0)
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


def weightless_copy(module: nn.Module, *, real: bool = False) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy in eval mode with parameters and tables (floating buffers) on meta, and the values of the tables.

    real: tables, and parameters that no linear, convolution or embedding holds, are real tensors: for modules
    that ask a table for its device, or index it by lists.
    """
    memo: dict[int, Any] = {}
    values: dict[str, Tensor] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            dtype = _WIDE.get(parameter.dtype, parameter.dtype)
            small = real and not isinstance(owner, MATMULS)
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


@contextmanager
def eager_flex_attention() -> Iterator[None]:
    """Flex attention without torch.compile, which refuses to run where operations are watched."""
    from torch.nn.attention import flex_attention as flex

    name = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    before = getattr(flex, name, None)
    if before is not None:
        setattr(flex, name, True)
    try:
        yield
    finally:
        if before is not None:
            setattr(flex, name, before)


def _real(value: Tensor) -> Tensor:
    """On the CPU in float64; what has no values (meta) gets random ones."""
    if value.is_meta:
        if value.dtype.is_floating_point:
            made = torch.Generator().manual_seed(value.numel())
            return torch.randn(value.shape, generator=made, dtype=torch.float64)
        return torch.ones(value.shape, dtype=_WIDE.get(value.dtype, value.dtype))
    return value.detach().to("cpu", _WIDE.get(value.dtype, value.dtype))


class _Mode(TorchDispatchMode):
    """Sees every operation of a run."""

    supports_higher_order_operators = True

    def __init__(
        self,
        replica: Replica,
        canned: Trace | None,
        change: Change,
        outputs: Callable[[Touch, Touch], Tensor] | None,
    ) -> None:
        super().__init__()
        self.replica, self.canned, self.change, self.outputs = replica, canned, change, outputs
        self.trace = Trace()
        self.random = torch.Generator().manual_seed(replica.seed)
        self.noise = torch.Generator().manual_seed(replica.seed + 1)
        self.origins: dict[int, _Origin] = {}
        self.fresh: dict[int, Touch] = {}
        self.hold: list[Tensor] = []
        for name, tensor in (*replica.module.named_parameters(), *replica.module.named_buffers()):
            if tensor.is_meta:
                self._register(tensor, _Origin(name, tuple(tensor.shape)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: _wide(value) for name, value in kwargs.items()} if kwargs else {}
        tensors = [value for value in _flat(args) if isinstance(value, Tensor)]
        metas = sum(value.is_meta for value in tensors)
        if not metas:
            return func(*args, **kwargs)
        if metas == len(tensors):
            if func.is_view or func in _ALIASES:
                return func(*args, **kwargs)
            if func in _COPIES:
                return self._copied(args[0], kwargs)
        if func in _ADDS and (added := self._bias_added(*args)) is not None:
            return added
        touched = _MATMULS.get(func)
        if touched is not None:
            result = touched(self, func, args, kwargs)
            if result is not None:
                return result
        real = [self.realised(value) for value in args]
        return func(*real, **{name: self.realised(value) for name, value in kwargs.items()})

    # -- parameters on meta

    def _register(self, value: Tensor, origin: _Origin) -> None:
        self.hold.append(value)
        self.origins[value.untyped_storage()._cdata] = origin  # noqa: SLF001 - the identity of a storage

    def origin(self, value: Tensor) -> _Origin | None:
        """The parameter that a meta tensor views."""
        return self.origins.get(value.untyped_storage()._cdata)  # noqa: SLF001

    def _copied(self, value: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """A copy in another order of memory: its entries are still those of the parameter."""
        origin = self.origin(value)
        made = _aten.clone.default(value, memory_format=kwargs.get("memory_format"))
        if origin is not None:
            source = origin.index if origin.index is not None else torch.arange(int(np.prod(origin.shape)))
            index = source.as_strided(value.size(), value.stride(), value.storage_offset())
            spread = torch.empty(made.untyped_storage().nbytes() // made.element_size(), dtype=torch.int64)
            spread.as_strided(made.size(), made.stride()).copy_(index)
            self._register(made, _Origin(origin.name, origin.shape, spread))
        return made

    def realised(self, value: Any) -> Any:
        """A view of a parameter, with its random values."""
        if isinstance(value, list | tuple):
            return type(value)(self.realised(item) for item in value)
        if not (isinstance(value, Tensor) and value.is_meta):
            return value
        origin = self.origin(value)
        if origin is None:
            raise DivergedError("a tensor without values is neither a parameter nor a view of one")
        self.trace.read.add(origin.name)
        source = self.change.values.get(origin.name)
        if source is None:
            source = self.replica.value(origin.name, origin.shape)
        if origin.index is not None:
            source = source.reshape(-1)[origin.index]
        return source.contiguous().as_strided(value.size(), value.stride(), value.storage_offset())

    def side(self, weight: Tensor, axis: int, other: int) -> Side | None:
        """What the features along ``axis`` of a weight are."""
        origin = self.origin(weight)
        if origin is None:
            return None
        along, across = (self._coordinates(weight, item, origin) for item in (axis, other))
        dims = tuple(dim for dim, values in enumerate(along) if (values != values[0]).any())
        taken = {dim for dim, values in enumerate(across) if (values != values[0]).any()}
        if set(dims) & taken:
            return None
        if not dims:
            dims = tuple(dim for dim in range(len(origin.shape)) if dim not in taken and origin.shape[dim] == 1)[:1]
        shape = tuple(origin.shape[dim] for dim in dims)
        index = np.ravel_multi_index([along[dim] for dim in dims], shape) if dims else np.zeros(1, int)
        return Side((origin.name, dims), shape, index)

    def _coordinates(self, weight: Tensor, axis: int, origin: _Origin) -> tuple[np.ndarray, ...]:
        flat = weight.storage_offset() + np.arange(weight.shape[axis]) * weight.stride(axis)
        if origin.index is not None:
            flat = origin.index.numpy()[flat]
        return np.unravel_index(np.asarray(flat), origin.shape)

    # -- matmuls

    def _bias_added(self, output: Any, bias: Any) -> Tensor | None:
        """The output of a matmul to which a bias is added in a step of its own: it counts as one with the matmul."""
        note = self.fresh.get(output.untyped_storage()._cdata) if isinstance(output, Tensor) else None  # noqa: SLF001
        fits = isinstance(bias, Tensor) and bias.is_meta and bias.ndim == 1 and not output.is_meta
        if note is None or not fits or not bias.shape[0] == output.shape[-1] == note.output.shape[-1]:
            return None
        note.bias = note.bias or self._bias(bias)
        return output

    def matmul(self, shape: Any, weight: Tensor, out: int, x: Tensor | None, bias: Any = None) -> Tensor | None:
        """Note one use of a weight, whose outputs run along ``out`` (-1 or 0, then inputs along the other axis).

        Gives the output ``[..., out]``; None if the weight is no plain view of a parameter.
        """
        other = {-1: -2, -2: -1, 0: 1, 1: 0}[out]
        if self.canned is not None and self.outputs is None:
            # A replay of the same module: the geometry is known.
            place = len(self.trace.touches)
            origin = self.origin(weight)
            if origin is None or place >= len(self.canned.touches):
                raise DivergedError("a replay took another way through the module")
            before = self.canned.touches[place]
            if before.rows.key[0] != origin.name:
                raise DivergedError("a replay took another way through the module")
            return self.touch(shape, before.rows, before.cols, before.bias, x)
        rows, cols = self.side(weight, out, other), None if x is None else self.side(weight, other, out)
        if rows is None or (x is not None and cols is None):
            return None
        return self.touch(shape, rows, cols, self._bias(bias), x)

    def touch(self, shape: Any, rows: Side, cols: Side | None, bias: Side | None, x: Tensor | None) -> Tensor:
        """Note one use of a weight and give its output."""
        note = Touch(rows, cols, bias, None if x is None else x.clone(), torch.empty(0))
        note.output = self._output(note, shape)
        self.trace.touches.append(note)
        # A module may write into what it gets: the recorded numbers stay as they are.
        given = note.output.clone()
        self.hold.append(given)
        self.fresh[given.untyped_storage()._cdata] = note  # noqa: SLF001
        return given

    def _output(self, note: Touch, shape: Any) -> Tensor:
        place = len(self.trace.touches)
        if self.canned is None:
            output = torch.randn(tuple(shape), generator=self.random, dtype=torch.float64)
        else:
            if place >= len(self.canned.touches) or self.canned.touches[place].rows.key[0] != note.rows.key[0]:
                raise DivergedError("a replay took another way through the module")
            before = self.canned.touches[place]
            output = before.output if self.outputs is None else self.outputs(note, before)
            if output.shape != tuple(shape):
                raise DivergedError("a replay met other shapes")
        return self._changed(output, note.rows)

    def _changed(self, output: Tensor, rows: Side) -> Tensor:
        changed = self.change.rows.get(rows.key)
        if changed is None:
            return output
        where = torch.from_numpy(np.isin(rows.index, changed))
        if self.change.zero:
            return output * ~where
        noise = torch.randn(output.shape, generator=self.noise, dtype=torch.float64) * 2
        return torch.where(where, noise, output)

    def _bias(self, bias: Any) -> Side | None:
        if not (isinstance(bias, Tensor) and bias.is_meta and bias.ndim >= 1):
            return None
        return self.side(bias.reshape(-1)[None], 1, 0)

    def cut(self, path: str) -> Callable[..., Tensor]:
        """A hook that replays a module's output and notes its input."""

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            index = np.arange(output.shape[-1])
            rows, cols = (Side((path, (tag,)), (len(index),), index) for tag in ("out", "in"))
            return self.touch(output.shape, rows, cols, None, args[0])

        return hook


# ------------------------------------------------------------------ the matmuls of aten


def _mm(mode: _Mode, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    return _product(mode, None, args[0], args[1])


def _addmm(mode: _Mode, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    return _product(mode, args[0], args[1], args[2])


def _product(mode: _Mode, bias: Any, a: Tensor, b: Tensor) -> Tensor | None:
    """``[..., T, in] @ [..., in, out]``, the weight on either side."""
    if b.is_meta:
        a = mode.realised(a)
        return mode.matmul((*a.shape[:-1], b.shape[-1]), b, -1, a, bias)
    made = mode.matmul((*a.shape[:-2], b.shape[-1], a.shape[-2]), a, -2, b.transpose(-1, -2))
    return None if made is None else made.transpose(-1, -2)


def _mv(mode: _Mode, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    weight, x = args[-2], mode.realised(args[-1])
    if not weight.is_meta:
        return None
    return mode.matmul((weight.shape[0],), weight, 0, x, args[0] if len(args) > 2 else None)


def _linear(mode: _Mode, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    x, weight = mode.realised(args[0]), args[1]
    if not weight.is_meta:
        return None
    return mode.matmul((*x.shape[:-1], weight.shape[0]), weight, 0, x, args[2] if len(args) > 2 else None)


def _convolution(mode: _Mode, func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Channels are mixed like a linear's features; a depthwise convolution is no matmul."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    if not weight.is_meta or groups != 1 or transposed:
        return None
    x = mode.realised(x)
    meta = torch.empty(x.shape, device="meta", dtype=x.dtype)
    plain = None if bias is None else torch.empty(weight.shape[0], device="meta", dtype=x.dtype)
    shape = func(meta, weight, plain, *args[3:], **kwargs).movedim(1, -1).shape
    made = mode.matmul(shape, weight, 0, x.movedim(1, -1), bias)
    return None if made is None else made.movedim(-1, 1)


def _embedding(mode: _Mode, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    weight, index = args[0], args[1]
    return mode.matmul((*index.shape, weight.shape[1]), weight, 1, None)


_MATMULS: dict[Any, Callable[..., Tensor | None]] = {
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten.mv.default: _mv,
    _aten.addmv.default: _mv,
    _aten.linear.default: _linear,
    _aten.convolution.default: _convolution,
    _aten.embedding.default: _embedding,
}


def _flat(args: Any) -> list[Any]:
    """Arguments of an operator: tensors and lists of tensors."""
    return [item for value in args for item in (value if isinstance(value, list | tuple) else (value,))]


def _wide(value: Any) -> Any:
    """A dtype or device that an operation asks for → the one in use here."""
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    return torch.device("cpu") if isinstance(value, torch.device) and value.type != "cpu" else value
