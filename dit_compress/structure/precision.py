"""float64 in place of every lower precision: what a module asks for by name, and what its weights are stored in."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}


def widened(value: Any) -> Any:
    """Replace a dtype or device among an operation's arguments by the one in use: float64, on the CPU."""
    if isinstance(value, torch.dtype):
        return WIDE.get(value, value)
    return torch.device("cpu") if isinstance(value, torch.device) and value.type != "cpu" else value


class InDouble(TorchDispatchMode):
    """Every operation computes in float64. Weights stay as they are stored: each is widened where it is read."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave out torch's wrapper against torch.compile around every operation: nothing here is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation on wider tensors; views stay views, and what is written to stays what it is."""
        kwargs = {name: WIDE.get(v, v) if isinstance(v, torch.dtype) else v for name, v in (kwargs or {}).items()}
        if getattr(func, "is_view", False):
            return func(*args, **kwargs)
        given = written(func)
        args = tuple(value if place in given else tree_map(_wide, value) for place, value in enumerate(args))
        return func(*args, **{name: v if name in given else tree_map(_wide, v) for name, v in kwargs.items()})


class Claiming(TorchFunctionMode):
    """Every float64 tensor says that it has another dtype: a module that checks dtypes meets those it expects."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the function; another answer where it asks for a dtype."""
        answer = func(*args, **(kwargs or {}))
        return self.dtype if func == _DTYPE and answer == torch.float64 else answer


_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
CONVOLUTIONS = frozenset(getattr(torch, f"conv{kind}{rank}d") for kind in ("", "_transpose") for rank in (1, 2, 3))
"""They compare the dtypes of their arguments before the operation itself is seen."""


class _WideConvolutions(TorchFunctionMode):
    """Convolutions with every argument in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, on wider arguments where it is a convolution."""
        if func in CONVOLUTIONS:
            args, kwargs = tree_map(_wide, (args, kwargs))
        return func(*args, **(kwargs or {}))


@contextmanager
def in_double(claims: torch.dtype | None = None) -> Iterator[None]:
    """Run whatever is called inside in float64, new tensors included. claims: the dtype that they say they have."""
    claiming = Claiming(claims) if claims else nullcontext()
    with warnings.catch_warnings(), InDouble(), _WideConvolutions(), double_by_default(), claiming:
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield


@contextmanager
def double_by_default() -> Iterator[None]:
    """Make new tensors float64; run flex attention without torch.compile, as watching operations demands."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with eager_flex_attention():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def eager_flex_attention() -> Iterator[None]:
    """Run flex attention without torch.compile, which refuses to run inside a dispatch mode."""
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


def written(func: Any) -> set[int | str]:
    """Find the arguments that an operation writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return set()
    places = [place for place, item in enumerate(schema.arguments) if item.alias_info and item.alias_info.is_write]
    return {*places, *(schema.arguments[place].name for place in places)}


def _wide(value: Any) -> Any:
    return value.to(WIDE[value.dtype]) if isinstance(value, Tensor) and value.dtype in WIDE else value
