"""A model whose weights stay in their files: an operation reads the weight it needs, and lets it go.

The module is an ordinary one to whoever measures, masks, edits or calls it. Its parameters have shapes and dtypes;
views, slices and casts of them are noted, and done where the bytes are read.
"""

from __future__ import annotations

import ctypes
import weakref
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dit_compress.structure.edits import Take
from dit_compress.structure.files.disk import edited
from dit_compress.structure.files.slices import TORCH, Buffers, Piece, cut
from dit_compress.structure.precision import written

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from dit_compress.structure.files.tensor_files import TensorAt

_OP = torch.ops.aten
_TO = torch.ops.aten._to_copy.default  # noqa: SLF001 - its name
AT_ONCE = 1 << 20
"""Entries of a matrix that are widened and multiplied at once: they stay in the processor's cache."""


class Memory:
    """Blocks of memory that are lent to one tensor after another: fresh pages cost more than the arithmetic.

    A block is lent again when no tensor stands in it any more, views included.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []
        self._latest: tuple[Piece, tuple[torch.dtype, ...], Tensor] | None = None
        self.buffers = Buffers()

    def latest(self, tensor: OnDisk) -> Tensor:
        """Read a tensor, unless it is the one that was read last. Not to be written to."""
        if tensor.views:
            self._latest = None
            return tensor.read()
        if self._latest is None or self._latest[0] is not tensor.piece or self._latest[1] != tensor.casts:
            self._latest = None  # its memory is lent again
            self._latest = tensor.piece, tensor.casts, tensor.read()
        return self._latest[2]

    def release(self) -> None:
        """Give everything back; what the C allocator keeps of it, too, where it can be asked (glibc)."""
        self._blocks, self._latest, self.buffers = [], None, Buffers()
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor whose values are whatever stood there before."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        free = [place for place, (_, lent) in enumerate(self._blocks) if lent() is None]
        fit = [place for place in free if len(self._blocks[place][0]) >= size]
        if fit:
            block = self._blocks.pop(min(fit, key=lambda place: len(self._blocks[place][0])))[0]
        else:
            if free:  # one that is too small makes room for one that is not
                self._blocks.pop(max(free, key=lambda place: len(self._blocks[place][0])))
            block = np.empty(size, np.uint8)
        lent = block[:size]
        self._blocks.append((block, weakref.ref(lent)))
        return torch.from_numpy(lent).view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)


class OnDisk(Tensor):
    """A tensor in a file, read in each operation that needs its values.

    piece: what of the file it is. casts: dtypes that it took one after another, the parameter's own first. views: what
    else was noted, to be done on what is read.
    """

    piece: Piece
    memory: Memory
    casts: tuple[torch.dtype, ...]
    views: tuple[tuple[Any, tuple[Any, ...], Mapping[str, Any]], ...]

    def __new__(
        cls,
        piece: Piece,
        memory: Memory,
        like: Tensor,
        casts: tuple[torch.dtype, ...] = (),
        views: tuple[Any, ...] = (),
    ) -> Self:
        """Make it with the shape, strides and dtype of a tensor without values."""
        made = Tensor._make_wrapper_subclass(  # noqa: SLF001 - torch's own way to subclass
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=torch.device("cpu")
        )
        made.piece, made.memory, made.casts, made.views = piece, memory, casts or (like.dtype,), views
        return made

    def __init__(self, *_: Any) -> None:
        super().__init__()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001 - results are plain tensors

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Say where it lies; printing reads nothing."""
        return f"OnDisk({self.piece.source.name!r}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: Any) -> Self:
        """Return itself: nothing writes to it."""
        return self

    @property
    def stored(self) -> torch.dtype:
        """The dtype in the file."""
        return getattr(torch, TORCH[self.piece.source.dtype])

    def read(self) -> Tensor:
        """Read the values into memory that is lent, cast a chunk at a time."""
        *between, last = self.steps() or [self.stored]
        value, start = self.memory.empty(self.piece.described.shape, last), 0
        for chunk in cut(self.piece, self.memory.buffers):
            part = torch.from_numpy(np.frombuffer(chunk, np.uint8)).view(self.stored)
            for dtype in between:
                part = part.to(dtype)
            value.view(-1)[start : start + len(part)] = part
            start += len(part)
        for func, rest, kwargs in self.views:
            value = func(value, *rest, **kwargs)
        return value

    def steps(self) -> list[torch.dtype]:
        """Return the casts that can change a value: a wider dtype on the way to another changes none."""
        found, now = [], self.stored
        for dtype, later in zip_longest(self.casts, self.casts[1:]):
            if dtype != now and (later is None or torch.promote_types(now, dtype) != dtype):
                found.append(dtype)
                now = dtype
        return found

    def applied(self, rows: Tensor) -> Tensor:
        """Return ``rows @ self`` of a transposed matrix, ``[S,in]`` → ``[S,out]``, a few of its rows at a time."""
        kept, width = self.piece.described.shape
        product, start = rows.new_empty(len(rows), kept), 0
        for chunk in cut(self.piece, self.memory.buffers):
            matrix = torch.from_numpy(np.frombuffer(chunk, np.uint8)).view(self.stored).view(-1, width)
            for part in matrix.split(max(1, AT_ONCE // width)):
                for dtype in self.steps():
                    part = self.memory.empty(tuple(part.shape), dtype).copy_(part)  # noqa: PLW2901 - cast step by step
                product[:, start : start + len(part)] = rows @ part.t()
                start += len(part)
        return product

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Note a view, a slice, a cast; read for any other operation."""
        kwargs = kwargs or {}
        given = {**dict(enumerate(args)), **kwargs}
        if any(isinstance(given.get(place), cls) for place in written(func)):
            raise RuntimeError("weights on disk are read, not written to: make a tensor of them first")
        parts = func.decompose(*args, **kwargs)  # of an operation that consists of others, such as 'to'
        if parts is not NotImplemented:
            return parts
        if args and isinstance(args[0], cls):
            own, rest = args[0], args[1:]
            if func is _OP.pow.Tensor_Scalar:
                return torch.pow(own.memory.latest(own), *rest, out=own.memory.empty(tuple(own.shape), own.dtype))
            noted = _noted(own, func, rest, kwargs)
            if noted is not None:
                return noted
        if func in (_OP.mm.default, _OP.addmm.default) and not kwargs:
            *bias, rows, matrix = args
            if isinstance(matrix, cls) and [view[0] for view in matrix.views] == [_OP.t.default]:
                product = matrix.applied(_read(rows))
                return product.add_(_read(bias[0])) if bias else product
        return func(*tree_map(_read, args), **tree_map(_read, kwargs))


def _noted(own: OnDisk, func: Any, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return what an operation gives without reading more than it must; None where it needs the values."""
    if func in (_OP.detach.default, _OP.alias.default):
        return OnDisk(own.piece, own.memory, _empty(own), own.casts, own.views)
    if func is _OP.empty_like.default or (func is _TO and torch.device(kwargs.get("device") or "cpu").type == "meta"):
        return func(_empty(own), *rest, **{"device": own.device, **kwargs})
    if func is _TO and kwargs.keys() <= {"dtype"}:
        cast = func(_empty(own), **kwargs)
        return OnDisk(own.piece, own.memory, cast, (*own.casts, cast.dtype), own.views)
    if func is _OP.index_select.default and not own.views and bool((rest[1].diff() > 0).all()):
        dim, index = rest
        piece = edited(own.piece, Take(own.piece.name, dim, index.numpy()))
        return OnDisk(piece, own.memory, _empty(own).index_select(dim, index.to("meta")), own.casts)
    if getattr(func, "is_view", False):
        seen = func(_empty(own), *rest, **kwargs)
        if isinstance(seen, Tensor):
            return OnDisk(own.piece, own.memory, seen, own.casts, (*own.views, (func, rest, kwargs)))
    return None


def _empty(own: OnDisk) -> Tensor:
    return torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device="meta")


def _read(value: Any) -> Any:
    return value.memory.latest(value) if isinstance(value, OnDisk) else value


# ------------------------------------------------------------------ modules


@contextmanager
def left_on_disk(module: nn.Module, tensors: Mapping[str, TensorAt]) -> Iterator[None]:
    """Let a module without weights have those of its files, read when they are used; its buffers are read now.

    What reading took of memory is given back on leaving, whoever still holds the module.
    """
    memory = Memory()
    _leave(module, tensors, memory)
    try:
        yield
    finally:
        memory.release()


def _leave(module: nn.Module, tensors: Mapping[str, TensorAt], memory: Memory) -> None:
    known = {id(value): name for name, value in module.state_dict(keep_vars=True).items() if name in tensors}

    def there(name: str, like: Tensor) -> OnDisk:
        return OnDisk(Piece(tensors[name], name, {}), memory, torch.empty_like(like, device="meta"))

    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for leaf, old in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if id(old) in known and id(old) not in made:
                made[id(old)] = nn.Parameter(there(known[id(old)], old), requires_grad=old.requires_grad)
            owner._parameters[leaf] = made.get(id(old), old)  # noqa: SLF001 - no register hook may see it
        for leaf, buffer in list(owner.named_buffers(recurse=False)):
            if id(buffer) in known:
                owner._buffers[leaf] = there(known[id(buffer)], buffer).read().clone()  # noqa: SLF001 - as above


def bring_to_memory(module: nn.Module) -> None:
    """Read what still lies on disk; tied weights stay tied."""
    held = {id(value): value for value in module.parameters() if isinstance(value, OnDisk)}
    read = {key: nn.Parameter(value.read().clone(), requires_grad=value.requires_grad) for key, value in held.items()}
    for owner in module.modules():
        for leaf, value in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            owner._parameters[leaf] = read.get(id(value), value)  # noqa: SLF001 - no register hook may see it
