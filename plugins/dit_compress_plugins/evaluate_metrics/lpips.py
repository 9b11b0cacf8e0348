"""LPIPS (Zhang et al. 2018, Eq. 1) from safetensors of the package lpips' state, AlexNet or VGG16.

torchmetrics' own needs torchvision, and fetches the weights.

Shapes: F frames of Y × X pixels.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MIN_SIDE = 32
"""Pixels a side, of which the last layer still sees one."""
WRITE = "Save the state_dict of lpips.LPIPS(net='alex') as safetensors: README of evaluate_metrics"
_LAYER = re.compile(r"net\.slice(\d)\.(\d+)\.weight")
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS:
    """The distance of two videos of frames, a mean over frames."""

    def __init__(self, path: Path) -> None:
        try:
            self.weights = {name: value.float() for name, value in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"no safetensors ({error})", where=str(path), mend=WRITE) from error
        found = [(int(match[1]), int(match[2])) for name in self.weights if (match := _LAYER.fullmatch(name))]
        self.slices = [sorted(index for at, index in found if at == one) for one in range(1, 6)]
        heads = [f"lin{place}.model.1.weight" for place in range(5)]
        if missing := [name for name in heads if name not in self.weights] or [""] * (not all(self.slices)):
            lacking = missing[0] or "a slice of 'net'"
            raise UserError(f"the weights lack {lacking}", where=str(path), mend=WRITE)
        self.heads = [self.weights[name] for name in heads]
        self.alex = self.weights[f"net.slice1.{self.slices[0][0]}.weight"].shape[-1] == 11

    @torch.no_grad()
    def __call__(self, ours_F3YX: Tensor, theirs_F3YX: Tensor) -> float:
        """Compare videos of values in [-1, 1]."""
        pairs = zip(self.features(ours_F3YX), self.features(theirs_F3YX), self.heads, strict=True)
        return sum(float(functional.conv2d((ours - theirs) ** 2, head).mean()) for ours, theirs, head in pairs)

    def features(self, video_F3YX: Tensor) -> list[Tensor]:
        """Return the unit features of the five layers."""
        shift, scale = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        x, found = (video_F3YX - shift) / scale, []
        for at, indices in enumerate(self.slices, 1):
            if at > 1 and (at <= 3 or not self.alex):
                x = functional.max_pool2d(x, 3 if self.alex else 2, 2)
            for index in indices:
                name = f"net.slice{at}.{index}"
                weight, first = self.weights[f"{name}.weight"], self.alex and at == 1
                stride, padding = (4, 2) if first else (1, weight.shape[-1] // 2)
                x = functional.conv2d(x, weight, self.weights[f"{name}.bias"], stride, padding).relu()
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found
