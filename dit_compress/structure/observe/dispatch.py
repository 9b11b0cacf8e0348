"""Watch every operation of a run, and put recorded or random numbers in the place of matmuls with parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dit_compress.structure.observe.origins import Origins
from dit_compress.structure.observe.trace import Change, DivergedError, Side, Touch, Trace
from dit_compress.structure.precision import widened

if TYPE_CHECKING:
    from collections.abc import Callable

_aten = torch.ops.aten
_COPIES = {_aten.clone.default, _aten._to_copy.default}  # noqa: SLF001 - the name of the operator
_ADDS = {_aten.add.Tensor, _aten.add_.Tensor}
_ALIASES = {_aten._unsafe_view.default, _aten.detach.default, _aten.lift_fresh.default}  # noqa: SLF001


class Weightless(Protocol):
    """A module without weights, as far as a watcher asks it: see ``weightless.Replica``."""

    module: nn.Module
    sides: dict[Any, Side | None]

    def value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return random values of a small parameter."""

    def normal(self, place: int, shape: tuple[int, ...]) -> Tensor:
        """Return random numbers for one place of the run, the same ones each time."""


class Dispatch(TorchDispatchMode):
    """Sees every operation of a run."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave out torch's wrapper against torch.compile around every operation: nothing here is compiled."""
        return False

    def __init__(
        self,
        replica: Weightless,
        canned: Trace | None,
        change: Change,
        outputs: Callable[[Touch, Touch], Tensor] | None,
    ) -> None:
        super().__init__()
        self.replica, self.canned, self.change, self.outputs = replica, canned, change, outputs
        self.trace = Trace()
        self.origins = Origins(replica.module, replica.sides)
        self.fresh: dict[int, Touch] = {}
        self.hold: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: widened(value) for name, value in kwargs.items()} if kwargs else {}
        tensors = [value for value in _flat(args) if isinstance(value, Tensor)]
        metas = sum(value.is_meta for value in tensors)
        if not metas:
            return func(*args, **kwargs)
        if metas == len(tensors):
            if func.is_view or func in _ALIASES:
                return func(*args, **kwargs)
            if func in _COPIES:
                return self.origins.copied(args[0], kwargs)
        if func in _ADDS and (added := self._bias_added(*args)) is not None:
            return added
        touched = MATMULS.get(func)
        if touched is not None:
            result = touched(self, func, args, kwargs)
            if result is not None:
                return result
        real = [self.realised(value) for value in args]
        return func(*real, **{name: self.realised(value) for name, value in kwargs.items()})

    def realised(self, value: Any) -> Any:
        """Return a view of a parameter, with its random values."""
        if isinstance(value, list | tuple):
            return type(value)(self.realised(item) for item in value)
        if not (isinstance(value, Tensor) and value.is_meta):
            return value
        origin = self.origins.origin(value)
        if origin is None:
            raise DivergedError("a tensor without values is neither a parameter nor a view of one")
        self.trace.read.add(origin.name)
        source = self.change.values.get(origin.name)
        if source is None:
            source = self.replica.value(origin.name, origin.shape)
        return self.origins.values(value, origin, source)

    def _bias_added(self, output: Any, bias: Any) -> Tensor | None:
        """Join an addition of a bias to the matmul before it: the two count as one."""
        note = self.fresh.get(output.untyped_storage()._cdata) if isinstance(output, Tensor) else None  # noqa: SLF001
        fits = isinstance(bias, Tensor) and bias.is_meta and bias.ndim == 1 and not output.is_meta
        if note is None or not fits or not bias.shape[0] == output.shape[-1] == note.output.shape[-1]:
            return None
        note.bias = note.bias or self._bias(bias)
        return output

    def matmul(
        self, shape: Any, weight: Tensor, out: int, x: Tensor | None, bias: Any = None, index: Tensor | None = None
    ) -> Tensor | None:
        """Note one use of a weight, whose outputs run along ``out`` (-1 or 0, then inputs along the other axis).

        Gives the output ``[..., out]``; None if the weight is no plain view of a parameter.
        """
        other = {-1: -2, -2: -1, 0: 1, 1: 0}[out]
        if self.canned is not None and self.outputs is None:
            # A replay of the same module: the geometry is known.
            place = len(self.trace.touches)
            origin = self.origins.origin(weight)
            if origin is None or place >= len(self.canned.touches):
                raise DivergedError("a replay took another way through the module")
            before = self.canned.touches[place]
            if before.rows.key[0] != origin.name:
                raise DivergedError("a replay took another way through the module")
            return self.touch(shape, before.rows, before.cols, before.bias, x, index)
        rows, cols = self.origins.side(weight, out, other), None if x is None else self.origins.side(weight, other, out)
        if rows is None or (x is not None and cols is None):
            return None
        return self.touch(shape, rows, cols, self._bias(bias), x, index)

    def touch(
        self,
        shape: Any,
        rows: Side,
        cols: Side | None,
        bias: Side | None,
        x: Tensor | None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Note one use of a weight and give its output."""
        note = Touch(rows, cols, bias, None if x is None else x.clone(), torch.empty(0), index)
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
            output = self.replica.normal(place, tuple(shape))
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
        entries = np.zeros(int(np.prod(rows.shape)), bool)
        entries[changed] = True
        where = torch.from_numpy(entries[rows.index])
        if self.change.zero:
            return output * ~where
        noise = self.replica.normal(-1 - len(self.trace.touches), tuple(output.shape))
        # Of the other sign: what a rectifier hides in one run it shows in the other, however few the tokens are.
        return torch.where(where, -torch.copysign(2 * noise, output), output)

    def _bias(self, bias: Any) -> Side | None:
        if not (isinstance(bias, Tensor) and bias.is_meta and bias.ndim >= 1):
            return None
        return self.origins.side(bias.reshape(-1)[None], 1, 0)

    def cut(self, path: str) -> Callable[..., Tensor]:
        """Make a hook that replays a module's output and notes its input."""

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            index = np.arange(output.shape[-1])
            rows, cols = (Side((path, (tag,)), (len(index),), index) for tag in ("out", "in"))
            return self.touch(output.shape, rows, cols, None, args[0])

        return hook


def _flat(args: Any) -> list[Any]:
    """Return the arguments of an operator: tensors and lists of tensors."""
    return [item for value in args for item in (value if isinstance(value, list | tuple) else (value,))]


_aten = torch.ops.aten


def _mm(mode: Dispatch, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    return _product(mode, None, args[0], args[1])


def _addmm(mode: Dispatch, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    return _product(mode, args[0], args[1], args[2])


def _product(mode: Dispatch, bias: Any, a: Tensor, b: Tensor) -> Tensor | None:
    """Replay ``[..., T, in] @ [..., in, out]``, the weight on either side."""
    if b.is_meta:
        a = mode.realised(a)
        return mode.matmul((*a.shape[:-1], b.shape[-1]), b, -1, a, bias)
    if not a.is_meta:
        return None
    made = mode.matmul((*a.shape[:-2], b.shape[-1], a.shape[-2]), a, -2, b.transpose(-1, -2))
    return None if made is None else made.transpose(-1, -2)


def _mv(mode: Dispatch, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    weight, x = args[-2], mode.realised(args[-1])
    if not weight.is_meta:
        return None
    return mode.matmul((weight.shape[0],), weight, 0, x, args[0] if len(args) > 2 else None)


def _linear(mode: Dispatch, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    x, weight = mode.realised(args[0]), args[1]
    if not weight.is_meta:
        return None
    return mode.matmul((*x.shape[:-1], weight.shape[0]), weight, 0, x, args[2] if len(args) > 2 else None)


def _convolution(mode: Dispatch, func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Replay a convolution: it mixes channels as a linear mixes features; a depthwise one is no matmul."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    if not weight.is_meta or groups != 1 or transposed:
        return None
    x = mode.realised(x)
    meta = torch.empty(x.shape, device="meta", dtype=x.dtype)
    plain = None if bias is None else torch.empty(weight.shape[0], device="meta", dtype=x.dtype)
    shape = func(meta, weight, plain, *args[3:], **kwargs).movedim(1, -1).shape
    made = mode.matmul(shape, weight, 0, x.movedim(1, -1), bias)
    return None if made is None else made.movedim(-1, 1).contiguous()


def _embedding(mode: Dispatch, _func: Any, args: Any, _kwargs: Any) -> Tensor | None:
    weight, index = args[0], args[1]
    return mode.matmul((*index.shape, weight.shape[1]), weight, 1, None, index=index)


MATMULS: dict[Any, Callable[..., Tensor | None]] = {
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
