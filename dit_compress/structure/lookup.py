"""Find and set things inside a module by their names: parameters, attributes, call arguments."""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def argument_at(args: tuple[Any, ...], kwargs: Mapping[str, Any], key: int | str) -> Any:
    """Return a call argument by position or keyword."""
    return args[key] if isinstance(key, int) else kwargs[key]


def attribute_at(module: nn.Module, path: str, name: str) -> Any:
    """Return an attribute of a submodule; the name may be dotted."""
    return attrgetter(name)(module.get_submodule(path))


def set_attribute(module: nn.Module, path: str, name: str, value: float) -> None:
    """Set it."""
    *owners, leaf = name.split(".")
    owner: Any = module.get_submodule(path)
    for item in owners:
        # Objects such as attention processors may be shared between blocks: this block gets its own.
        own = copy.copy(getattr(owner, item))
        setattr(owner, item, own)
        owner = own
    setattr(owner, leaf, value)


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its full name."""
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def tensor_or_none(module: nn.Module, name: str) -> Tensor | None:
    """Do the same; None where there is none (a linear without bias)."""
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf, None)
