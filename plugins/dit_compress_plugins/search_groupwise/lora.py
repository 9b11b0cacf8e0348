"""Low-rank updates while the masks are learned: what remains can recover as it will in the training after."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from dit_compress.train.healing import add_lora

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dit_compress.structure.facts import Stack


@contextmanager
def adapted(module: nn.Module, stacks: Sequence[Stack], rank: int, seed: int) -> Iterator[list[Any]]:
    """Put LoRA on every linear inside the blocks for as long as the context is open; only it requires gradients.

    Masks act on what a projection and its update give together. At the end every linear is the module it was, with
    the weights it had; the layers that are given hold the updates, for :func:`merge`.
    """
    names = [
        f"{block}.{path}".rstrip(".")
        for stack in stacks
        for block in stack.blocks
        for path, item in module.get_submodule(block).named_modules()
        if isinstance(item, nn.Linear)
    ]
    add_lora(module, names, rank, seed)
    layers: list[Any] = [module.get_submodule(name) for name in names]
    try:
        yield layers
    finally:
        for name, layer in zip(names, layers, strict=True):
            path, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(path), leaf, layer.get_base_layer())
        del module.peft_config  # else peft takes the next adapter for a second one


def merge(layers: Sequence[Any]) -> None:
    """Add the updates to the weights of the linears, wherever these lie by now."""
    for layer in layers:
        layer.to(layer.get_base_layer().weight.device).merge()
