"""The VAE's starting point, PCA.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1]; N patches, D values of a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch.nn import functional

from dit_compress.model.codec.rows import rows_of
from dit_compress_plugins.latent_video_vae.pca import (
    Basis,
    alignment,
    condition,
    principal_components,
    rotate,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from dit_compress_plugins.latent_video_vae.vae import VideoVAE


@torch.no_grad()
def initialise(vae: VideoVAE, videos: Iterable[Tensor], whitening: float) -> None:
    """Make the VAE the PCA of some clips: its linear parts from PCA, its residual networks at zero.

    Args:
        vae: as constructed.
        videos: batches ``[B,3,F,Y,X]`` in [-1, 1]; enough that there are some thousand patches.
        whitening: see :func:`pca.condition`.
    """
    first, rest, follows = _patches(videos, vae.ratio[0], vae.ratio[1])
    rest_basis = first_basis = condition(principal_components(first, vae.channels), whitening)
    if len(rest):
        rest_basis = condition(principal_components(rest, vae.channels), whitening)
        rotation = alignment(first_basis.encode(first), rest_basis.encode(rest[follows]))
        first_basis = rotate(first_basis, rotation)
        _write(rest_basis, vae.encoder.patch.rest, vae.decoder.patch.rest)
    _write(first_basis, vae.encoder.patch.first, vae.decoder.patch.first)


def _patches(videos: Iterable[Tensor], group: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut patches of first frames and of groups; return with them which group follows each first patch in its cell."""
    first, rest, follows, count = [], [], [], 0
    for video in videos:
        first_row, rest_row = rows_of(video.float(), group)
        assert first_row is not None
        first.append(_cut(first_row, size))
        if rest_row is None:
            continue
        rest.append(_cut(rest_row, size))
        batch, cells = len(first_row), len(first[-1]) // len(first_row)
        index = torch.arange(len(rest[-1])).reshape(batch, -1, cells)[:, 0].flatten()
        follows.append(index + count)
        count += len(rest[-1])
    if not rest:
        return torch.cat(first), torch.empty(0), torch.empty(0, dtype=torch.long)
    return torch.cat(first), torch.cat(rest), torch.cat(follows)


def _cut(row_NCYX: Tensor, size: int) -> Tensor:
    """Cut rows of pixels into patches ``[N·H·W, D]``, in the order of a convolution's weight."""
    return rearrange(functional.pixel_unshuffle(row_NCYX, size), "N D H W -> (N H W) D")


def _write(basis: Basis, analysis: nn.Module, synthesis: nn.Module) -> None:
    """Put a linear code of patches into the two linear maps."""
    analysis.get_buffer("linear.weight").copy_(basis.analysis[:, :, None, None])
    analysis.get_buffer("linear.bias").copy_(-(basis.analysis @ basis.mean))
    synthesis.get_buffer("linear.weight").copy_(basis.synthesis.T[:, :, None, None])
    synthesis.get_buffer("linear.bias").copy_(basis.mean)
