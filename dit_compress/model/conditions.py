"""Conditions by name: what each is, what to say where one is missing, and those that no caption gives.

A :class:`~dit_compress.model.denoiser.Cond` holds them all. A text encoder gives ``embedding`` and ``mask``, some
``pooled``, ``embedding_2`` and ``mask_2``; the data gives what stands in ``BEYOND_TEXT``. Both travel in a batch's
``tokens`` to every role. What no caption gives stays where a caption is dropped.

Shapes: B batch, C channels, T H W latent frames, height, width, Y X height and width in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_compress.core.errors import UserError
from dit_compress.plugin import defaults

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.protocols import Codec, TextEncoder

FIRST, FIRST_PADDED, IMAGE = "first", "first_padded", "image"
BEYOND_TEXT = (FIRST, FIRST_PADDED, IMAGE)
"""``first [B,C,1,H,W]``: the latent of the first frame alone; ``first_padded [B,C,T,H,W]``: of the first frame and
grey ones after it, encoded as one video; ``image [B,N,D]``: what an image encoder makes of it."""

_TEXT = "Take a 'text' that gives it, as all encoders of the model's own pipeline together do"
_FIRST = "Say 'first_frame: true' in 'data', or give the first frame (dit-compress generate --first)"
ABOUT = {
    "pooled": ("a pooled vector of each caption", _TEXT),
    "embedding_2": ("the embeddings of a second text encoder", _TEXT),
    "mask_2": ("the mask of a second text encoder", _TEXT),
    "guidance": ("the guidance that it was distilled with", "Set 'guidance' in 'model', as its pipeline has it"),
    FIRST: ("the latents of a first frame", _FIRST),
    FIRST_PADDED: ("the latents of a first frame", _FIRST),
    IMAGE: ("the embeddings of an image", f"{_FIRST}; take the 'text' of the whole pipeline (use: {defaults.TEXT})"),
}
"""What a condition is, and the mend where it is missing."""


def need_conditions(denoiser: Denoiser, given: Collection[str], within: Collection[str] | None = None) -> None:
    """Raise a UserError where the denoiser can't be called without a condition that is not given.

    within: look at these only.
    """
    name = type(denoiser.module).__name__
    for condition, needed in denoiser.conditions.items():
        if needed and condition not in given and (within is None or condition in within):
            what, mend = ABOUT.get(condition, ("what nobody gives", "Write a 'text' plugin that gives it"))
            raise UserError(f"{name} takes {what} ({condition!r}), and none is given", mend=mend)


def first_condition(denoiser: Denoiser) -> str:
    """Return which latents of a first frame the denoiser takes; raise a UserError where it takes none."""
    found = next((name for name in (FIRST, FIRST_PADDED) if name in denoiser.conditions), None)
    if found is None:
        raise UserError(
            f"{type(denoiser.module).__name__} takes no first frame",
            mend="Take 'first_frame' out of 'data', or take a model that is made for one",
        )
    return found


def first_conditions(denoiser: Denoiser) -> tuple[str, ...]:
    """Return all that the denoiser takes of a first frame; raise a UserError where it takes no latents of one."""
    return (first_condition(denoiser), *({IMAGE} & denoiser.conditions.keys()))


def encode_firsts(
    denoiser: Denoiser, codec: Codec, encoder: TextEncoder, first_BCYX: Tensor, frames: int
) -> dict[str, Tensor]:
    """Encode first frames as the denoiser takes them. frames: of the whole video."""
    return {
        name: encode_image(encoder, first_BCYX) if name == IMAGE else encode_first(codec, first_BCYX, name, frames)
        for name in first_conditions(denoiser)
    }


def encode_image(encoder: TextEncoder, first_BCYX: Tensor) -> Tensor:
    """Encode first frames as ``image [B,N,D]``; raise a UserError where the text encoder does not see."""
    if encoder.sees is None:
        what, mend = ABOUT[IMAGE]
        raise UserError(f"the model takes {what} ({IMAGE!r}), and {type(encoder).__name__} gives none", mend=mend)
    return encoder.encode_image(first_BCYX)


def encode_first(codec: Codec, first_BCYX: Tensor, name: str, frames: int) -> Tensor:
    """Encode first frames as the condition ``name``. frames: of the whole video."""
    video = first_BCYX[:, :, None]
    if name == FIRST_PADDED:
        video = torch.cat([video, video.new_zeros((*video.shape[:2], frames - 1, *video.shape[3:]))], 2)
    return codec.encode(video)


def beyond_text(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take what no caption gives."""
    return {name: value for name, value in tensors.items() if name in BEYOND_TEXT}


def with_typical(denoiser: Denoiser, cond: Cond, size_THW: tuple[int, int, int]) -> Cond:
    """Fill in drawn ones of what the denoiser needs, where captions alone were encoded: for shapes and timings."""
    lacking = {name for name, needed in denoiser.conditions.items() if needed and name in BEYOND_TEXT} - cond.keys()
    if not lacking:
        return cond
    drawn = denoiser.example(len(next(iter(cond.values()))), size_THW)[2]
    return cond.beside({name: drawn[name] for name in sorted(lacking)})
