"""Find and set things inside a module by their names: parameters, attributes, call arguments and what is in them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

DEEPEST = 4
"""Structures inside structures that are looked into."""


# ------------------------------------------------------------------ structures: tuples, dicts, objects with attributes


def fields_of(value: Any) -> dict[str, Any]:
    """Return what a tuple, list, dict, dataclass or other plain object holds, by name; empty for anything else."""
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        return dict(zip(names, value, strict=True))
    if isinstance(value, Tensor | nn.Module | type | ModuleType) or callable(value):
        return {}
    slots = getattr(value, "__dataclass_fields__", ())
    held = vars(value) if hasattr(value, "__dict__") else {name: getattr(value, name) for name in slots}
    return {name: item for name, item in held.items() if not name.startswith("__")}


def holds_tensors(value: Any, depth: int = DEEPEST) -> bool:
    """Tell whether a value is a tensor, or a structure with one in it."""
    return isinstance(value, Tensor) or (
        depth > 0 and any(holds_tensors(item, depth - 1) for item in fields_of(value).values())
    )


def leaves_of(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return tensors in a structure, and what holds none, with their dotted names."""
    if isinstance(value, Tensor) or not holds_tensors(value):
        yield path, value
        return
    for name, item in fields_of(value).items():
        yield from leaves_of(item, f"{path}.{name}" if path else name)


def part_at(value: Any, path: str) -> Any:
    """Return what stands at a dotted name in a structure; all of it for the empty name."""
    for name in path.split(".") if path else ():
        value = fields_of(value)[name]
    return value


def with_part(value: Any, path: str, part: Any) -> Any:
    """Return a copy of a structure with something else at a dotted name."""
    if not path:
        return part
    name, _, rest = path.partition(".")
    new = with_part(fields_of(value)[name], rest, part)
    return with_fields(value, {**fields_of(value), name: new})


def with_fields(value: Any, fields: Mapping[str, Any]) -> Any:
    """Return a copy of a structure with other things in it."""
    if hasattr(value, "_fields"):
        return type(value)(**fields)
    if isinstance(value, tuple | list):
        return type(value)(fields.values())
    made = copy.copy(value)
    for name, item in fields.items():
        if isinstance(made, Mapping):
            made[name] = item  # type: ignore[index]
        else:
            object.__setattr__(made, name, item)
    return made


# ------------------------------------------------------------------ call arguments


def split_key(key: int | str) -> tuple[int | str, str]:
    """Return an argument's key → the argument, and the dotted name inside it: ``0.image`` → ``(0, "image")``."""
    if isinstance(key, int):
        return key, ""
    head, _, rest = key.partition(".")
    return (int(head) if head.isdigit() else head), rest


def argument_at(args: tuple[Any, ...], kwargs: Mapping[str, Any], key: int | str) -> Any:
    """Return a call argument by position or keyword, or something inside one."""
    head, rest = split_key(key)
    return part_at(args[head] if isinstance(head, int) else kwargs[head], rest)


def with_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], key: int | str, value: Any) -> tuple[Any, Any]:
    """Return the arguments with something else at one key."""
    head, rest = split_key(key)
    if isinstance(head, int):
        return (*args[:head], with_part(args[head], rest, value), *args[head + 1 :]), kwargs
    return args, {**kwargs, head: with_part(kwargs[head], rest, value)}


def output_at(output: Any, place: int | str | None) -> Any:
    """Return a block's result, or something inside it."""
    return part_at(output, "" if place is None else str(place))


def with_output(output: Any, place: int | str | None, value: Any) -> Any:
    """Return a block's result with something else at one place."""
    return with_part(output, "" if place is None else str(place), value)


# ------------------------------------------------------------------ modules


def attribute_at(module: nn.Module, path: str, name: str) -> Any:
    """Return an attribute of a submodule; the name may be dotted."""
    return attrgetter(name)(module.get_submodule(path))


def number_at(module: nn.Module, path: str, name: str) -> int:
    """Return an integer attribute of a submodule, which may be that of a tuple of one (``normalized_shape``)."""
    value = attribute_at(module, path, name)
    return int(value[0] if isinstance(value, tuple) else value)


def set_attribute(module: nn.Module, path: str, name: str, value: float) -> None:
    """Set it; as a tuple of one where it is a tuple."""
    *owners, leaf = name.split(".")
    owner: Any = module.get_submodule(path)
    for item in owners:
        # Objects such as attention processors may be shared between blocks: this block gets its own.
        own = copy.copy(getattr(owner, item))
        setattr(owner, item, own)
        owner = own
    setattr(owner, leaf, (value,) if isinstance(getattr(owner, leaf, None), tuple) else value)


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its full name."""
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def tensor_or_none(module: nn.Module, name: str) -> Tensor | None:
    """Do the same; None where there is none (a linear without bias)."""
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf, None)
