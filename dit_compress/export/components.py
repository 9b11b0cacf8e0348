"""The networks of a bundle as components: plain modules from tensors to a tensor.

Shapes: B batch, C channels, T H W latent frames, height, width, L text length, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.export.component import Component
from dit_compress.model.denoiser import Cond, Denoiser

if TYPE_CHECKING:
    from collections.abc import Mapping

DIT_STEP = "dit_step"
"""Name of the component of one step."""
TYPICAL_SIGMA = 0.7
WIDE_RANK = 3
"""Conditions of this rank carry values (embeddings); those below are masks, rates, flags."""


class DitStep(nn.Module):
    """One velocity: ``(latent, sigma, *cond) → velocity``, the conditions in the order of their names."""

    def __init__(self, denoiser: Denoiser, names: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser, self.names = denoiser, names

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, *cond: Tensor) -> Tensor:
        """Map ``[B,C,T,H,W]`` to the same shape."""
        return self.denoiser(latent_BCTHW, sigma_B, Cond(dict(zip(self.names, cond, strict=True)), {}))


class VaeDecoder(nn.Module):
    """``normalised latent → video`` in one piece: a codec's ``forward`` decodes without tiles."""

    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Map ``[B,C,T,H,W]`` to ``[B,3,F,Y,X]``."""
        return self.codec(latent_BCTHW)


class TextStep(nn.Module):
    """``tokens → (text, text_mask)``: whole numbers as int32 (no target wants int64), in the order of their names."""

    def __init__(self, encoder: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, *tokens: Tensor) -> tuple[Tensor, ...]:
        """Map ``[B,L]`` each to the encoder's tensors."""
        given = {name: value.long() for name, value in zip(self.names, tokens, strict=True)}
        return tuple(self.encoder(given).values())


def text_encoder(encoder: Any, captions: Mapping[str, str]) -> Component:
    """Wrap the caption encoder as component ``text_encoder``: its tokens in, ``text`` and ``text_mask`` out.

    Args:
        encoder: follows ``hooks.TextEncoder``.
        captions: by name of the input set; the first is the typical one.
    """
    tokens = {
        name: {key: value.to(torch.int32) for key, value in encoder.tokenize([caption]).items()}
        for name, caption in captions.items()
    }
    typical, *others = tokens
    with torch.no_grad():
        outputs = tuple(encoder({key: value.long() for key, value in tokens[typical].items()}))
    component = text_component(encoder, tokens[typical], tuple(INPUT_NAMES.get(name, name) for name in outputs))
    return replace(component, more={name: tokens[name] for name in others})


def text_component(encoder: Any, tokens: dict[str, Tensor], outputs: tuple[str, ...]) -> Component:
    """Wrap it with one caption's tokens (int32) as example inputs, the outputs named."""
    return Component(
        name="text_encoder",
        module=TextStep(encoder, tuple(tokens)).eval(),
        inputs=tokens,
        outputs=outputs,
        varied=(),
    )


def dit_step(denoiser: Denoiser, latent_BCTHW: Tensor, cond: Mapping[str, Tensor]) -> Component:
    """Wrap the denoiser as component ``dit_step``: inputs ``latent, sigma`` and the conditions, output ``velocity``.

    Args:
        denoiser: any denoiser; batch 1 is what phones run.
        latent_BCTHW: a typical latent.
        cond: what a typical caption gives; ``embedding`` becomes ``text``, ``mask`` becomes ``text_mask``.
    """
    names = tuple(cond)
    sigma_B = denoiser.possible(torch.full((latent_BCTHW.shape[0],), TYPICAL_SIGMA))
    texts = {INPUT_NAMES.get(name, name): value for name, value in cond.items()}
    wide = [name for name, value in texts.items() if value.is_floating_point() and value.ndim >= WIDE_RANK]
    return Component(
        name=DIT_STEP,
        module=DitStep(denoiser, names).eval(),
        inputs={"latent": latent_BCTHW, "sigma": sigma_B, **texts},
        outputs=("velocity",),
        varied=("latent", *wide),
        precise=("sigma",),
        mask="text_mask" if "mask" in cond else None,
    )


def vae_decoder(codec: nn.Module, latent_BCTHW: Tensor) -> Component:
    """Wrap the codec's decoder as component ``vae_decoder``: input ``latent``, output ``video``."""
    return Component(
        name="vae_decoder",
        module=VaeDecoder(codec).eval(),
        inputs={"latent": latent_BCTHW},
        outputs=("video",),
        varied=("latent",),
    )


INPUT_NAMES = {"embedding": "text", "mask": "text_mask"}
"""Names of conditions in the exported files."""
