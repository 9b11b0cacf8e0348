"""Measurement: parameters, FLOPs, memory, latency. Sizes come from the meta device, no weights are read."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError, root_cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec

BYTES_BF16 = 2
BYTES_FP32 = 4
_DENOISERS: dict[tuple[Any, ...], dict[str, Any]] = {}
"""Figures by class and config of a denoiser and size of its latents: steps that only train leave all three alone."""


class UncountableError(UserError):
    """The FLOPs of a network that does not run without values."""


def count_parameters(module: nn.Module) -> int:
    """Count the parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def describe(spec: Spec) -> dict[str, Any]:
    """Describe a bundle without its weights: parameters, tokens, FLOPs of one denoiser call, memory.

    ``flops`` counts multiply and add as two, attention included, for one sample. ``memory_bytes`` is
    what weights (bf16) and the largest activations of one call need. ``flops`` is missing for a network that looks at
    the values of its tensors.
    """
    figures: dict[str, Any] = {}
    if spec.text is not None:
        figures["text_params"] = count_parameters(spec.text.outline)
    if spec.latent is not None:
        figures["latent_params"] = count_parameters(spec.latent.outline)
    if spec.denoiser is None:
        return figures
    size = spec.latent_size() if spec.latent is not None and spec.video is not None else None
    key = spec.denoiser.loader(), repr(spec.denoiser), size
    if key not in _DENOISERS:
        _DENOISERS[key] = _describe_denoiser(spec, size)
    return figures | deepcopy(_DENOISERS[key])


def _describe_denoiser(spec: Spec, size_THW: tuple[int, int, int] | None) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    structure = spec.outline().structure()
    denoiser = spec.build_denoiser().to("meta")
    figures["params"] = count_parameters(denoiser)
    figures["blocks"] = structure.main.length
    figures["heads"] = [attention.heads for attention in structure.attentions]
    figures["ffn"] = [feed_forward.width for feed_forward in structure.feed_forwards]
    if size_THW is not None:
        from dit_compress.model.one_of_each import shorten

        figures["tokens"] = denoiser.tokens(size_THW)
        with suppress(UncountableError):
            figures["flops"] = count_flops(denoiser, size_THW, each=shorten(denoiser))
        widest = max([*figures["ffn"], *(attention.heads * attention.width for attention in structure.attentions)])
        figures["memory_bytes"] = BYTES_BF16 * (figures["params"] + 4 * figures["tokens"] * widest)
    return figures


def count_flops(
    denoiser: Denoiser,
    size_THW: tuple[int, int, int],
    text_length: int = 32,
    each: Mapping[str, int] | None = None,
) -> int:
    """Count FLOPs of one call for one sample, attention included, on the meta device.

    each: what ``shorten`` returned of this denoiser: a block that stands for several counts so often.

    Raises:
        UncountableError: the network does not run there: it looks at the values of its tensors.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    denoiser = denoiser.to("meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            denoiser(*denoiser.typical(1, size_THW, text_length=text_length))
    except RuntimeError as error:
        raise UncountableError(
            f"its FLOPs can't be counted without weights: {root_cause(error)}",
            mend="Make control flow and shapes independent of values, or count parameters instead",
        ) from error
    counts, root = counter.get_flop_counts(), f"{type(denoiser).__name__}.module"
    others = ((number - 1) * sum(counts.get(f"{root}.{path}", {}).values()) for path, number in (each or {}).items())
    return counter.get_total_flops() + sum(others)
