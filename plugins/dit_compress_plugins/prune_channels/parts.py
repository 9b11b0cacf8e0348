"""The blocks of a decoder that hold several layers, and a call of each.

Torch-Pruning's graph of a whole video decoder is of no use: on Wan it divides by zero, on LTX and ``video_vae`` it
follows reshapes without end. Of one block it is right, and there the channels are that cost most.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.structure.record import Call, map_tensors

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that have channels in the graph."""
MOST = 12
"""Layers of one block at most."""


def layers_of(codec: nn.Module, tensors: Collection[str]) -> list[str]:
    """Return paths of the layers whose weights are among ``tensors``."""
    return [path for path, part in codec.named_modules() if isinstance(part, LAYERS) and f"{path}.weight" in tensors]


def blocks_of(layers: Sequence[str]) -> dict[str, list[str]]:
    """Return the smallest parts that hold several layers and no such part inside: path → its layers."""
    inside: dict[str, list[str]] = {}
    for layer in layers:
        names = layer.split(".")
        for depth in range(1, len(names)):
            inside.setdefault(".".join(names[:depth]), []).append(layer)
    several = {path: held for path, held in inside.items() if len(held) > 1}
    return {
        path: held
        for path, held in several.items()
        if len(held) <= MOST and not any(other.startswith(f"{path}.") for other in several)
    }


@torch.no_grad()
def calls_of(codec: nn.Module, latent: Tensor, paths: Collection[str]) -> Mapping[str, Call]:
    """Decode, and return the first call of each part; a part that is not called itself has none."""
    found: dict[str, Call] = {}
    with ExitStack() as stack:
        for path in paths:

            def note(_module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                if path not in found:
                    args, kwargs = map_tensors(Tensor.clone, (args, kwargs))
                    found[path] = Call(args, kwargs, recorded=True)

            hook = codec.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(hook.remove)
        codec(latent)
    return found
