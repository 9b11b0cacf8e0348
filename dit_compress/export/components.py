"""The networks of a bundle as components: plain modules from tensors to a tensor.

Shapes: B batch, C channels, T H W latent frames, height, width, L text length, D width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.export.component import Component
from dit_compress.model.denoiser import Cond, Denoiser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dit_compress.model.flow import Fixed, Flow

DIT_STEP, DIT_WALK = "dit_step", "dit_walk"
"""Names of the component of one step, and of one of all steps."""
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


class DitWalk(nn.Module):
    """All steps of a sampling: ``(noise, *cond, *null) → latent``, its sigmas and guidance inside.

    The latent between steps stays in the noise's dtype, whatever the denoiser's: steps would add up its rounding.
    """

    def __init__(
        self, denoiser: Denoiser, names: tuple[str, ...], null: tuple[str, ...], sample: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.denoiser, self.names, self.null, self.sample = denoiser, names, null, sample

    def forward(self, noise_BCTHW: Tensor, *given: Tensor) -> Tensor:
        """Map ``[B,C,T,H,W]`` to the same shape."""
        here = len(self.names)
        cond = Cond(dict(zip(self.names, given[:here], strict=True)), dict(zip(self.null, given[here:], strict=True)))
        return self.sample(_Within(self.denoiser), noise_BCTHW, cond)


class _Within:
    """A denoiser as a sampler calls it, which takes and gives latents of any dtype, and computes in its own."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.module = denoiser, denoiser.module
        self.dtype = next(each.dtype for each in denoiser.parameters() if each.is_floating_point())

    def __call__(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        return self.denoiser(latent_BCTHW.to(self.dtype), sigma_B, cond).to(latent_BCTHW.dtype)


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
    return Component(
        name=DIT_STEP,
        module=DitStep(denoiser, names).eval(),
        inputs={"latent": latent_BCTHW, "sigma": sigma_B, **texts},
        outputs=("velocity",),
        varied=("latent", *_wide(texts)),
        precise=("sigma",),
        mask="text_mask" if "mask" in cond else None,
    )


def dit_walk(
    denoiser: Denoiser, noise_BCTHW: Tensor, cond: Cond, fixed: Fixed, sigmas: Sequence[float], guidance: float
) -> Component:
    """Wrap a whole sampling as component ``dit_walk``: inputs ``noise`` and the conditions, output ``latent``.

    With guidance those of no caption come after them, as ``null_<name>``.

    Args:
        denoiser: any denoiser.
        noise_BCTHW: a typical noise.
        cond: what a typical caption gives, and the empty one.
        fixed: the sampling.
        sigmas: of its steps, with the final 0.
        guidance: 1 for none.
    """
    names, null = tuple(cond), tuple(cond.null) if guidance != 1 else ()
    texts = {INPUT_NAMES.get(name, name): cond[name] for name in names}
    texts |= {f"null_{INPUT_NAMES.get(name, name)}": cond.null[name] for name in null}
    return Component(
        name=DIT_WALK,
        module=DitWalk(denoiser, names, null, partial(fixed.sample, sigmas=sigmas, guidance=guidance)).eval(),
        inputs={"noise": noise_BCTHW, **texts},
        outputs=("latent",),
        varied=("noise", *_wide(texts)),
        precise=("noise",),
        mask="text_mask" if "mask" in cond else None,
        steps=len(sigmas) - 1,
    )


def _wide(texts: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in texts.items() if value.is_floating_point() and value.ndim >= WIDE_RANK]


def dit_component(
    denoiser: Denoiser, latent_BCTHW: Tensor, cond: Cond, flow: Flow, fixed: Fixed | None, most: int | None = None
) -> Component:
    """Wrap the denoiser as it is sampled (``Flow.fixed``): one step where a loop of them does it, else all.

    most: steps that are traced, where operators alone are looked at.
    """
    if fixed is None:
        return dit_step(denoiser, latent_BCTHW, dict(cond))
    sigmas = flow.sigmas()
    return dit_walk(denoiser, latent_BCTHW, cond, fixed, sigmas if most is None else sigmas[: most + 1], flow.guidance)


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
