"""Low-rank updates of linears (LoRA, by peft): put on, counted, written as stock pipelines read them, folded.

``W + alpha/rank·B·A``: A of ``[rank, columns]`` begins as noise, B of ``[rows, rank]`` as zero, so that nothing changes
at first. A file holds ``alpha/rank·B`` in B's place: its scale is 1 for every reader.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.files import whole_file
from dit_compress.model.denoiser import Denoiser
from dit_compress.structure.files.lora import BASE
from dit_compress.train.held import hold
from dit_compress.train.targets import targets_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from dit_compress.train.objective import Role
    from dit_compress.train.options import Lora

ADAPTERS = ("*.lora_[AB].*",)
"""Names of their parameters."""
FILE = "pytorch_lora_weights.safetensors"
"""As ``pipeline.load_lora_weights(folder)`` looks for it."""
_PREFIX = "transformer."


def adapt(roles: Mapping[str, Role], lora: Lora, seed: int) -> None:
    """Put LoRA on the denoisers that roles train, and let these train it in their weights' place.

    A role that trains a part of its denoiser (``only``) trains that part besides.
    """
    done: set[int] = set()
    for role in roles.values():
        denoiser = role.module
        if role.lr is None or not isinstance(denoiser, Denoiser):
            continue
        role.only = (*role.only, *ADAPTERS)
        if id(denoiser.module) not in done:
            names = targets_of(denoiser, lora)
            add_lora(hold(denoiser, lora.base).module, names, lora.rank, seed, lora.alpha or 2 * lora.rank)
            done.add(id(denoiser.module))


def add_lora(module: nn.Module, names: Sequence[str], rank: int, seed: int, alpha: float | None = None) -> None:
    """Put LoRA on linears, by path; only it requires gradients. ``alpha`` over the rank scales it, 1 where absent."""
    import peft

    module.requires_grad_(requires_grad=False)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module)


def take_off(module: Any) -> list[Any]:
    """Put every linear back in its place, with the weights it has; return the layers that stood there."""
    found = _layers(module)
    for name, layer in found.items():
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, layer.get_base_layer())
    del module.peft_config  # else peft takes the next adapter for a second one
    return [*found.values()]


@contextmanager
def adapted(module: nn.Module, names: Sequence[str], rank: int, seed: int) -> Iterator[list[Any]]:
    """Put LoRA on linears for as long as the context is open; at the end each is the module it was.

    The layers that are given hold the updates after that, for :func:`fold`.
    """
    add_lora(module, names, rank, seed)
    layers: list[Any] = [module.get_submodule(name) for name in names]
    try:
        yield layers
    finally:
        take_off(module)


def fold(layers: Sequence[Any]) -> None:
    """Add updates to the weights of their linears, wherever these lie by now."""
    for layer in layers:
        layer.to(layer.get_base_layer().weight.device).merge()


@contextmanager
def without(module: nn.Module) -> Iterator[None]:
    """Let the module compute without its updates for as long as the context is open; any other as it does."""
    layers = _layers(module)
    trained = [value for layer in layers.values() for value in layer.parameters() if value.requires_grad]
    for layer in layers.values():
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(enabled=True)
        for value in trained:  # peft freezes what it turns off
            value.requires_grad_(requires_grad=True)


def write_lora(module: nn.Module, path: Path, base: str) -> None:
    """Write the module's updates as ``save_lora_weights`` does: ``transformer.<module>.lora_A.weight``, ``lora_B``.

    base: digest of the weights below it; alone in the metadata, of which safetensors writes several in any order.
    """
    from safetensors.torch import save_file

    state = {}
    for name, layer in _layers(module).items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        state[f"{_PREFIX}{name}.lora_A.weight"] = down.detach().cpu().contiguous()
        state[f"{_PREFIX}{name}.lora_B.weight"] = (up.detach() * layer.scaling["default"]).cpu().contiguous()
    with whole_file(path) as partial:
        save_file(state, partial, metadata={BASE: base})


def _layers(module: nn.Module) -> dict[str, Any]:
    """Return the layers that stand in linears' places, by path."""
    if "peft_config" not in vars(module):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
