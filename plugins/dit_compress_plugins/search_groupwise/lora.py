"""Low-rank updates while the masks are learned: what remains can recover as it will in the training after."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from dit_compress.train.healing import add_lora

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dit_compress.structure.facts import Stack
    from dit_compress_plugins.search_groupwise import Lora


@contextmanager
def adapted(module: nn.Module, stacks: Sequence[Stack], lora: Lora, seed: int) -> Iterator[None]:
    """Put LoRA on every linear inside the blocks for as long as the context is open; only it requires gradients.

    Masks act on what a projection and its update give together. At the end the updates are added to the
    weights (``after: merge``) or thrown away, and every linear is the module it was.
    """
    names = [
        f"{block}.{path}".rstrip(".")
        for stack in stacks
        for block in stack.blocks
        for path, item in module.get_submodule(block).named_modules()
        if isinstance(item, nn.Linear)
    ]
    add_lora(module, names, lora.rank, seed)
    try:
        yield
    finally:
        for name in names:
            _unwrap(module, name, merge=lora.after == "merge")
        del module.peft_config  # else peft takes the next adapter for a second one


def _unwrap(module: nn.Module, name: str, *, merge: bool) -> None:
    layer: Any = module.get_submodule(name)
    if merge:
        layer.merge()
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, layer.get_base_layer())
