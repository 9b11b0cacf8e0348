"""Everything a module's structure depends on: classes, shapes and plain attributes, but no weights."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor, nn

from dit_compress.structure.record import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Found = TypeVar("Found")
PLAIN = (bool, int, float, str, list, tuple, dict)


class Known(Generic[Found]):
    """Results by key, the latest ones."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: OrderedDict[Any, Found] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Found]) -> Found:
        """Return the result of ``key``; make it where it is not known."""
        if key not in self.found:
            self.found[key] = make()
            if len(self.found) > self.most:
                self.found.popitem(last=False)
        return self.found[key]


def signature(module: nn.Module, arguments: Mapping[Any, Any]) -> Any:
    """Describe what modules that are alike share: classes, parameters, plain attributes, shapes of arguments."""
    modules = tuple(
        (path, type(owner), _num_hooks(owner), _attributes(owner)) for path, owner in module.named_modules()
    )
    tensors = tuple((name, tuple(value.shape)) for name, value in (*module.named_parameters(), *module.named_buffers()))
    given = tuple((key, _described(value)) for key, value in arguments.items())
    return modules, tensors, given


def _num_hooks(owner: nn.Module) -> int:
    """Count hooks before a forward: a pruned module gathers its tables in them."""
    return len(owner._forward_pre_hooks)  # noqa: SLF001 - there is no public way to ask


def _attributes(owner: object) -> str:
    """Describe plain attributes of a module, and of the plain objects that it holds."""
    listed = []
    for name in sorted(vars(owner).keys() - SKIPPED):
        value = vars(owner)[name]
        if isinstance(value, PLAIN):
            listed.append(f"{name}={_described(value)}")
        elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | Tensor | type) and not callable(value):
            listed.append(f"{name}:{type(value).__name__}")
        elif isinstance(owner, nn.Module) and hasattr(value, "__dict__") and type(value).__module__ != "builtins":
            plain = {key: item for key, item in vars(value).items() if isinstance(item, bool | int | float | str)}
            listed.append(f"{name}:{type(value).__name__}{sorted(plain.items())}")
    return ";".join(listed)


SKIPPED = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of every module: its children, parameters and hooks."""


def _described(value: Any) -> str:
    """Describe the shapes of the tensors in a value, and anything else by its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:300]
    shapes = [tuple(tensor.shape) for tensor in tensors_in(value)]
    return f"{shapes}{type(value).__name__}" if shapes else repr(value)[:300]
