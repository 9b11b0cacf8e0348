"""Copies that take no memory for weights: the modules are new, the tensors are shared, or stand on the meta device."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

AnyModule = TypeVar("AnyModule", bound=nn.Module)
TABLES = (OrderedDict, dict, set)


def shared_copy(module: AnyModule) -> AnyModule:
    """Make new modules around the same tensors: hooks, masks and edits of the copy leave the original alone.

    An edit of the copy replaces tensors, it does not write to them; training either one trains both.
    """
    return _with_tensors(module, lambda tensor: tensor)


def single_copy(module: AnyModule) -> AnyModule:
    """Do the same with half-precision tensors in float32; wider ones are shared."""

    def wide(tensor: Tensor) -> Tensor:
        half = tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)
        return tensor.detach().float() if half else tensor

    return _with_tensors(module, wide)


def meta_copy(module: AnyModule) -> AnyModule:
    """Do the same without weights, all of it on the meta device."""
    copied = _with_tensors(module, lambda tensor: tensor.detach().to("meta"))
    return copied.to("meta")


def _with_tensors(module: AnyModule, change: Callable[[Tensor], Tensor]) -> AnyModule:
    """Copy a module deeply, with every parameter and buffer given."""
    memo: dict[int, Tensor] = {}
    for parameter in module.parameters():
        value = change(parameter)
        memo[id(parameter)] = value if value is parameter else nn.Parameter(value, parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = change(buffer)
    return deep_copy(module, memo)


def deep_copy(module: AnyModule, memo: dict[int, Any] | None = None) -> AnyModule:
    """Do what ``copy.deepcopy`` does, in a fraction of the time.

    Each module holds a dozen tables of hooks, nearly all of them empty: they are made here, not taken apart as objects.

    memo: what stands in the copy for an object of the original, by identity.
    """
    made = memo if memo is not None else {}
    for owner in module.modules():
        for value in vars(owner).values():
            if type(value) in TABLES and not value:
                made.setdefault(id(value), type(value)())
    return copy.deepcopy(module, made)
