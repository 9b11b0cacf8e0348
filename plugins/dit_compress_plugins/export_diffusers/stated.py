"""A pruned module of diffusers whose config states its shape, where a config can: fewer blocks, one FFN width."""

from __future__ import annotations

import copy
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.structure.compact import LOG_NAME
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.load_pruned import ATTRIBUTE
from dit_compress.structure.files.pruned import shapes_of
from dit_compress.structure.files.whole import made, own_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dit_compress.model.denoiser import Denoiser

MOST = 64
"""Configs that are tried."""


def stated(denoiser: Denoiser) -> Any:
    """Return a denoiser's module as an ordinary one of its class; the module itself where no config states its shape.

    The weights are shared. A config counts where shapes are those of the module and one call gives the same bits.
    """
    module: Any = denoiser.module
    if is_ordinary(module) or (config := config_of(module)) is None:
        return module
    with empty_weights():
        ordinary = made(type(module), config, type(module).__name__)
    ordinary.load_state_dict(module.state_dict(), strict=True, assign=True)
    return ordinary.eval() if _same(denoiser, ordinary) else module


def is_ordinary(module: Any) -> bool:
    """Tell whether a module's own config states its shape."""
    record = getattr(module, ATTRIBUTE, {}).get("record")
    return record is None or record["base"] == shapes_of(module)


def config_of(module: Any) -> dict[str, Any] | None:
    """Return a config that states a pruned module's shape; None where there is none, or more than units was changed."""
    record = getattr(module, ATTRIBUTE)["record"]
    if not hasattr(type(module), "from_config") or any(entry["name"] != LOG_NAME for entry in record["log"]):
        return None
    for config in _configs(module):
        with empty_weights():
            ordinary = made(type(module), config, type(module).__name__)
        if shapes_of(ordinary) == shapes_of(module):
            return config
    return None


def need_stated(module: Any) -> None:
    """Raise UserError where a single file would have a shape that its readers can't tell."""
    if not is_ordinary(module) and config_of(module) is None:
        raise UserError(
            f"a single file holds no config: what reads it can't tell this shape of {type(module).__name__}",
            mend="Prune blocks, or FFNs to one width; or leave 'single_file' out",
        )


def _configs(module: Any) -> Iterator[dict[str, Any]]:
    """Yield configs in which lengths and widths of the whole model may be those of this one."""
    config = own_config(type(module), module.config)
    with empty_weights():
        whole = made(type(module), config, type(module).__name__)
    now: dict[int, set[int]] = {}
    lengths = _lengths(module)
    for name, length in _lengths(whole).items():
        now.setdefault(length, set()).add(lengths.get(name, length))
    shapes = shapes_of(module)
    for name, before in shapes_of(whole).items():
        for old, new in zip(before, shapes.get(name, before), strict=False):
            now.setdefault(old, set()).add(new)
    choices = {
        name: sorted({value, *now.get(value, ())})
        for name, value in config.items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
    choices = {name: found for name, found in choices.items() if len(found) > 1}
    for place, values in enumerate(product(*choices.values())):
        if place == MOST:
            return
        yield config | dict(zip(choices, values, strict=True))


def _lengths(module: nn.Module) -> dict[str, int]:
    return {name: len(found) for name, found in module.named_modules() if isinstance(found, nn.ModuleList)}


@torch.no_grad()
def _same(denoiser: Denoiser, module: nn.Module) -> bool:
    """Tell whether a module gives the bits of the denoiser's own on one call."""
    other = copy.copy(denoiser)
    other.__dict__["_modules"] = {**other.__dict__["_modules"], "module": module}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        example = denoiser.typical(1, denoiser.example_size)
    return torch.equal(denoiser(*example), other(*example))
