"""Networks that judge decoded frames: fixed random features, and a critic that is trained along.

Shapes: B batch, F frames, N = B·F rows, C channels, Y X pixels, S judged places.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dit_compress.model.codec.carried import delayed
from dit_compress.model.codec.layers import COLOURS, EqualConv, FromPatches, activate
from dit_compress.model.codec.rows import merge_time

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (16, 32, 64)


class RandomFeatures(nn.Module):
    """The distance of frames in features of a fixed random network, at three scales.

    LPIPS (Zhang et al. 2018, Eq. 1) with random weights and without its per-channel weights: untrained convolutions
    give much of its agreement with people, and nothing has to be downloaded. Its weights are the same for every run.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pairs = pairwise((COLOURS, *WIDTHS))
            self.layers = nn.ModuleList(EqualConv(below, above, 3) for below, above in pairs)
        self.requires_grad_(requires_grad=False)

    def forward(self, video_BCFYX: Tensor, target_BCFYX: Tensor) -> Tensor:
        """Return the mean over layers of the squared distance of features of length 1, per place."""
        terms, one, other = [], merge_time(video_BCFYX), merge_time(target_BCFYX)
        for layer in self.layers:
            one, other = activate(layer(one)), activate(layer(other))
            terms.append((_unit(one) - _unit(other)).square().sum(1).mean())
            if min(one.shape[-2:]) > 1:
                one, other = functional.avg_pool2d(one, 2), functional.avg_pool2d(other, 2)
        return torch.stack(terms).mean()


class FrameCritic(nn.Module):
    """``video → logits [B,S]``: patches of each frame beside the frame before, so that it sees motion, too.

    Differs from the engine's discriminators of latents: those are made of a denoiser, and here there is none.
    """

    def __init__(self, seed: int, width: int = 32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = FromPatches(EqualConv(2 * COLOURS * 4**2, width), 4)
            self.near, self.far = EqualConv(width, width, 3), EqualConv(width, width, 3)
            self.head = EqualConv(width, 1, size=0.1)

    def forward(self, video_BCFYX: Tensor) -> Tensor:
        """Judge every patch of 4 × 4 pixels; real ones should be low."""
        rows = torch.cat(delayed(merge_time(video_BCFYX), video_BCFYX.shape[2], 2, None, self), 1)
        x_NCHW = self.near(activate(self.patches(rows)))
        logits_NCHW = self.head(activate(x_NCHW + self.far(activate(x_NCHW))))
        return logits_NCHW.float().reshape(len(video_BCFYX), -1)


def _unit(x_NCHW: Tensor) -> Tensor:
    return functional.normalize(x_NCHW.float(), dim=1, eps=1e-3)
