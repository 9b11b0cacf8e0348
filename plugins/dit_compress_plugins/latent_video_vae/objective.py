"""The training of the VAE: one role, one phase; and its starting point, PCA.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1], latent ``[B,C,T,H,W]``; N patches, D values of a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch.nn import functional

from dit_compress.train.objective import Batch, Phase, Role
from dit_compress_plugins.latent_video_vae import losses
from dit_compress_plugins.latent_video_vae.coders import rows_of
from dit_compress_plugins.latent_video_vae.pca import (
    Basis,
    alignment,
    condition,
    principal_components,
    rotate,
)
from dit_compress_plugins.latent_video_vae.vae import VideoVAE, channel_statistics

ALIGNER_LR = 1e-3
"""Peak rate of the maps between the streams of student and teacher."""

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from dit_compress_plugins.latent_video_vae import VideoVAEOptions
    from dit_compress_plugins.latent_video_vae.likeness import Likeness


class VideoVAEObjective:
    """Reconstruction + KL of a posterior whose std is drawn per sample up to ``options.noise``.

    With a ``likeness`` the decoder's streams also follow those of a larger VAE on the same clips.
    """

    def __init__(self, vae: VideoVAE, options: VideoVAEOptions, likeness: Likeness | None = None) -> None:
        self.vae, self.options, self.likeness = vae, options, likeness
        self.roles = {
            "vae": Role(
                vae,
                lr=options.lr,
                betas=(0.9, 0.99),
                weight_decay=options.weight_decay,
                ema=options.ema or None,
            )
        }
        if likeness is not None:
            self.roles |= {"teacher": Role(likeness.teacher), "aligner": Role(likeness.aligner, lr=ALIGNER_LR)}
        self.phases = (Phase("reconstruct", tuple(name for name, role in self.roles.items() if role.lr is not None)),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - there is one phase
        """Return the weighted sum of ``losses``, and its terms for the log."""
        video = batch.x0
        mean = self.vae.encoder(video)
        features: list[Tensor] | None = None if self.likeness is None else []
        decoded = self.vae.decoder(mean + self._noise(batch, mean), features=features)
        terms = self._terms(decoded.float(), video, mean.float())
        if self.likeness is not None and features is not None:
            terms["features"] = self.likeness(features, video)
        total = torch.stack([getattr(self.options.losses, name) * value for name, value in terms.items()]).sum()
        logged = {name: value.detach() for name, value in terms.items()}
        return {"loss": total, **logged, "psnr": losses.psnr(decoded.detach().float(), video).mean()}

    def _noise(self, batch: Batch, mean: Tensor) -> Tensor:
        noise = batch.streams.normal("posterior", mean.shape[1:]).to(mean)
        std_B = batch.streams.uniform("posterior_std").to(mean) * self.options.noise
        return noise * std_B.reshape(-1, 1, 1, 1, 1)

    def _terms(self, decoded: Tensor, video: Tensor, mean: Tensor) -> dict[str, Tensor]:
        weights = self.options.losses
        epsilon, levels = weights.epsilon, weights.levels
        terms = {
            "pixel": losses.pixel(decoded, video, epsilon),
            "temporal": losses.temporal_difference(decoded, video, epsilon),
            "haar": losses.haar(decoded, video, epsilon, levels) if weights.haar else video.new_zeros(()),
            "kl": losses.kl(mean, self.options.noise),
        }
        if weights.multiscale:
            terms["multiscale"] = losses.multiscale(decoded, video, epsilon, levels)
        return terms


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


@torch.no_grad()
def measure_statistics(vae: VideoVAE, videos: Iterable[Tensor]) -> None:
    """Write the raw latents' mean and std per channel into the VAE's config."""
    raw = torch.cat([vae.encoder(video) for video in videos])
    mean_C, std_C = channel_statistics(raw)
    vae.set_statistics(mean_C.tolist(), std_C.tolist())
