"""The parameter that a tensor on the meta device is a view, or a copy, of; entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_compress.structure.observe.trace import Side

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Origin:
    """The source of the entries of a meta storage: entry i is entry ``index[i]`` (or i) of the parameter."""

    name: str
    shape: tuple[int, ...]
    index: Tensor | None = None


class Origins:
    """The parameters and tables of a module that are on meta, found again by their storage.

    sides: what earlier runs found along the axes of plain views, kept for the next ones.
    """

    def __init__(self, module: nn.Module, sides: dict[Any, Side | None]) -> None:
        self.known: dict[int, Origin] = {}
        self.sides = sides
        self.hold: list[Tensor] = []
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_meta:
                self.register(tensor, Origin(name, tuple(tensor.shape)))

    def register(self, value: Tensor, origin: Origin) -> None:
        """Note what the entries of a tensor without values are."""
        self.hold.append(value)
        self.known[value.untyped_storage()._cdata] = origin  # noqa: SLF001 - the identity of a storage

    def origin(self, value: Tensor) -> Origin | None:
        """Return the parameter that a meta tensor views."""
        return self.known.get(value.untyped_storage()._cdata)  # noqa: SLF001

    def copied(self, value: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Copy in another order of memory: the entries are still those of the parameter."""
        origin = self.origin(value)
        made = torch.ops.aten.clone.default(value, memory_format=kwargs.get("memory_format"))
        if origin is not None:
            source = origin.index if origin.index is not None else torch.arange(int(np.prod(origin.shape)))
            index = source.as_strided(value.size(), value.stride(), value.storage_offset())
            spread = torch.empty(made.untyped_storage().nbytes() // made.element_size(), dtype=torch.int64)
            spread.as_strided(made.size(), made.stride()).copy_(index)
            self.register(made, Origin(origin.name, origin.shape, spread))
        return made

    def side(self, weight: Tensor, axis: int, other: int) -> Side | None:
        """Return what the features along ``axis`` of a weight are."""
        origin = self.origin(weight)
        if origin is None:
            return None
        if origin.index is not None:
            return self._side(weight, axis, other, origin)
        key = (origin.name, origin.shape, tuple(weight.shape), weight.stride(), weight.storage_offset(), axis, other)
        if key not in self.sides:
            self.sides[key] = self._side(weight, axis, other, origin)
        return self.sides[key]

    def _side(self, weight: Tensor, axis: int, other: int, origin: Origin) -> Side | None:
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

    def _coordinates(self, weight: Tensor, axis: int, origin: Origin) -> tuple[np.ndarray, ...]:
        flat = int(weight.storage_offset()) + np.arange(weight.shape[axis]) * weight.stride(axis)
        if origin.index is not None:
            flat = origin.index.numpy()[flat]
        return np.unravel_index(flat, origin.shape)

    def values(self, value: Tensor, origin: Origin, source: Tensor) -> Tensor:
        """Return the values that a view of a parameter sees."""
        if origin.index is not None:
            source = source.reshape(-1)[origin.index]
        return source.contiguous().as_strided(value.size(), value.stride(), value.storage_offset())
