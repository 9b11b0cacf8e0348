"""A model whose weights stay in their files: an operation reads the weight it needs, and lets it go.

The module is an ordinary one to whoever measures, masks, edits or calls it. Its parameters have shapes and dtypes;
views, slices and casts of them are noted, and done where the bytes are read.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dit_compress.structure.edits import Take
from dit_compress.structure.files.disk import TORCH, Buffers, Piece, cut, edited
from dit_compress.structure.precision import written

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from dit_compress.structure.files.tensor_files import TensorAt

_OP = torch.ops.aten


class Memory:
    """Blocks of memory that are lent to one tensor after another: fresh pages cost more than the arithmetic.

    A block is lent again when no tensor stands in it any more, views included.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []
        self.buffers = Buffers()

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
    """A tensor in a file, with the dtype of the module's parameter; read in each operation that needs its values.

    piece: what of the file it is. views: what was noted since, to be done on what is read.
    """

    piece: Piece
    memory: Memory
    views: tuple[tuple[Any, tuple[Any, ...], Mapping[str, Any]], ...]

    @staticmethod
    def __new__(cls, piece: Piece, memory: Memory, like: Tensor, views: tuple[Any, ...] = ()) -> Self:
        """Make it with the shape, strides and dtype of a tensor without values."""
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # noqa: SLF001 - torch's own way to subclass
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device="cpu"
        )
        made.piece, made.memory, made.views = piece, memory, views
        return made

    def __init__(self, *_: Any) -> None:
        super().__init__()

    __torch_function__ = torch._C._disabled_torch_function_impl  # noqa: SLF001 - results are plain tensors

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Say where it lies; printing reads nothing."""
        return f"OnDisk({self.piece.source.name!r}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: Any) -> Self:
        """Return itself: nothing writes to it."""
        return self

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """Read the values, in another dtype where one is given: as if it were cast from the tensor's own."""
        stored = getattr(torch, TORCH[self.piece.source.dtype])
        value = self._stored(stored)
        for step in (self.dtype, dtype or self.dtype):
            # A wider dtype on the way changes no value.
            if step != value.dtype and (step == dtype or dtype is None or torch.promote_types(stored, step) != step):
                value = self.memory.empty(tuple(value.shape), step).copy_(value)
        for func, rest, kwargs in self.views:
            value = func(value, *rest, **kwargs)
        return value

    def _stored(self, dtype: torch.dtype) -> Tensor:
        """Read the bytes as they are in the file."""
        value = self.memory.empty(self.piece.described.shape, dtype)
        place, start = value.view(-1).view(torch.uint8).numpy(), 0
        for chunk in cut(self.piece, self.memory.buffers):
            place[start : start + len(chunk)] = chunk
            start += len(chunk)
        return value

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG003
        """Note a view, a slice, a copy without values; read for any other operation."""
        kwargs = kwargs or {}
        if any(isinstance(args[place] if isinstance(place, int) else kwargs.get(place), cls) for place in written(func)):
            _refuse_writing()
        own = args[0] if args and isinstance(args[0], cls) else None
        if own is not None and (noted := _noted(own, func, args[1:], kwargs)) is not None:
            return noted
        if own is not None and func is _OP.pow.Tensor_Scalar:
            return own.read().pow_(*args[1:])  # in place: what was read is nobody else's
        return func(*tree_map(_read, args), **tree_map(_read, kwargs))


def _noted(own: OnDisk, func: Any, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return what an operation gives without reading more than it must; None where it needs the values."""
    if func in (_OP.detach.default, _OP.alias.default):
        return OnDisk(own.piece, own.memory, _empty(own), own.views)
    if func is _OP._to_copy.default or func is _OP.empty_like.default:  # noqa: SLF001 - its name
        if torch.device(kwargs.get("device") or "cpu").type == "meta" or func is _OP.empty_like.default:
            return func(_empty(own), *rest, **{"device": own.device, **kwargs})
        return own.read(kwargs.get("dtype"))
    if func is _OP.index_select.default and not own.views:
        index = rest[1].tolist()
        if index == sorted(set(index)):
            piece = edited(own.piece, Take(own.piece.name, rest[0], tuple(index)))
            return OnDisk(piece, own.memory, _empty(own).index_select(rest[0], rest[1].to("meta")))
    if getattr(func, "is_view", False):
        seen = func(_empty(own), *rest, **kwargs)
        if isinstance(seen, Tensor):
            return OnDisk(own.piece, own.memory, seen, (*own.views, (func, rest, kwargs)))
    return None


def _empty(own: OnDisk) -> Tensor:
    return torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device="meta")


def _read(value: Any) -> Any:
    return value.read() if isinstance(value, OnDisk) else value


def _refuse_writing() -> NoReturn:
    raise RuntimeError("weights on disk are read, not written to: make a tensor of them first")


# ------------------------------------------------------------------ modules


def leave_on_disk(module: nn.Module, tensors: Mapping[str, TensorAt]) -> None:
    """Let a module without weights have those of its files, read when they are used; its buffers are read now."""
    memory = Memory()
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
    """Read what still lies on disk."""
    for owner in module.modules():
        for leaf, value in list(owner.named_parameters(recurse=False)):
            if isinstance(value, OnDisk):
                owner._parameters[leaf] = nn.Parameter(value.read().clone(), requires_grad=value.requires_grad)  # noqa: SLF001
