"""The start: the linear map of a latent cell that comes closest to what is to be decoded.

Shapes: latent ``[B,C,T,H,W]``, video ``[B,3,F,Y,X]``; N cells, D values of a cell's pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from dit_compress_plugins.latent_decoder.network import SmallDecoder, Video

RIDGE = 1e-4
"""Share of the latents' mean square that every direction has at least."""


@torch.no_grad()
def fit_linear(decoder: SmallDecoder, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Fit the decoder's linear map to batches of (latent, video), by least squares in float64."""
    video = decoder.linear
    sums: dict[str, list[Tensor]] = {}
    for latent_BCTHW, video_BCFYX in pairs:
        for name, cells, pixels in _cells(video, latent_BCTHW, video_BCFYX):
            given = functional.pad(cells.double(), (0, 1), value=1.0)
            parts = [given.T @ given, given.T @ pixels.double()]
            sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts
    for name, (square, product) in sums.items():
        ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
        ridge[-1, -1] = 0  # the mean is known
        _write(getattr(video, name), torch.linalg.solve(square + ridge, product))


def _cells(video: Video, latent_BCTHW: Tensor, video_BCFYX: Tensor) -> Iterable[tuple[str, Tensor, Tensor]]:
    """Cut latent cells ``[N,C]`` and their pixels ``[N,D]``, of the first latent frame and of the later ones."""
    lead, rest = video_BCFYX.tensor_split([video.lead], 2)
    yield "first", _flat(latent_BCTHW[:, :, :1]), _patches(lead, 1, video.cell)
    if later := latent_BCTHW.shape[2] - 1:
        yield "rest", _flat(latent_BCTHW[:, :, 1:]), _patches(rest, later, video.cell)


def _flat(latent_BCTHW: Tensor) -> Tensor:
    return latent_BCTHW.permute(0, 2, 3, 4, 1).flatten(0, 3)


def _patches(video_BCFYX: Tensor, latent_frames: int, cell: int) -> Tensor:
    """Cut pixels in the order in which a convolution's channels become frames."""
    frames = video_BCFYX.transpose(1, 2).unflatten(1, (latent_frames, -1)).flatten(2, 3).flatten(0, 1)
    return functional.pixel_unshuffle(frames, cell).permute(0, 2, 3, 1).flatten(0, 2)


def _write(conv: nn.Module, solution: Tensor) -> None:
    conv.get_parameter("weight").copy_(solution[:-1].T[:, :, None, None])
    conv.get_parameter("bias").copy_(solution[-1])
