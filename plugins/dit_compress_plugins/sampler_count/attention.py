"""Where the model looks for a word, and how that is made less or more.

Shapes: B batch, N heads, S tokens, L text length; T H W the tokens' grid.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.model.denoiser import Denoiser


def cross_attentions(denoiser: Denoiser, at: Sequence[int | str] | None) -> list[int | str]:
    """Return the module paths of the attentions, of those asked for, whose keys are the caption's words.

    They are told by their number of keys, in one call of the smallest latent with more words than tokens.

    Raises:
        UserError: there is none, as in models whose text and video attend jointly.
    """
    asked = [item.path for item in denoiser.structure().attentions] if at is None else at
    length = denoiser.tokens(denoiser.example_size) + 5
    with torch.no_grad(), torch.random.fork_rng(devices=[]), denoiser.attention(asked) as taken:
        denoiser(*denoiser.typical(1, denoiser.example_size, text_length=length))
    found: list[int | str] = [path for path, value in taken.items() if value.shape[-1] == length]
    if not found:
        raise UserError(
            "no attention of the model looks at the caption's words alone, so nothing shows where it draws what",
            mend="Sample it without 'count', or name cross-attentions in 'at'",
        )
    return found


def word_maps(taken: Mapping[str, Tensor], mask_BL: Tensor) -> Tensor:
    """Return how each token divides its attention among the words, ``[B,S,L]``; 0 at padding.

    Mean over blocks and sum over heads, then softmax over words.
    """
    summed_BSL = torch.stack([value.sum(1) for value in taken.values()]).mean(0)
    return summed_BSL.masked_fill(mask_BL[:, None] == 0, -math.inf).softmax(-1)


def blurred(map_THW: Tensor, deviation: float) -> Tensor:
    """Blur each frame of a map by a Gaussian of this standard deviation; edges are repeated."""
    if not deviation:
        return map_THW
    reach = max(1, round(2 * deviation))
    places = torch.arange(-reach, reach + 1, dtype=map_THW.dtype, device=map_THW.device)
    kernel = torch.exp(-places.square() / (2 * deviation**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = torch.nn.functional.pad(map_THW[:, None], (reach,) * 4, mode="replicate")
    return torch.nn.functional.conv2d(padded, kernel[None, None])[:, 0]


def attention_loss(map_S: Tensor, mask_S: Tensor, top: float, weight: float) -> Tensor:
    """Return the mean of the largest ``top`` of a map inside a mask, times the weight: 1 to delete, -2 to add."""
    inside = map_S[mask_S]
    largest = inside.topk(max(1, int(top * len(inside) + 1e-9))).values
    return weight * largest.mean()


def normalised(gradient: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Scale a gradient so that its root mean square inside a mask is ``|weight|``; 0 outside, and where it is 0."""
    inside = torch.where(mask, gradient, 0)
    power = inside.square().sum() / mask.expand_as(gradient).sum()
    return inside * (abs(weight) * torch.where(power > 0, power, 1).rsqrt())
