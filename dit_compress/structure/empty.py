"""Modules without weights: their parameters on the meta device, their buffers as they always are."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def empty_weights() -> Iterator[None]:
    """Put the parameters of modules that are made inside on the meta device.

    Buffers stay real, since modules compute tables from them that no file holds. Each parameter is made first and
    dropped at once, so the largest one must fit into memory. As ``accelerate.init_empty_weights`` does.
    """
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:  # one that is empty already has another name: it stays the same
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
