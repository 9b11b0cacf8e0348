"""Any transformer of diffusers behind the engine's convention.

Shapes: B batch, C channels, T H W latent frames, height, width, L text length.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.model.conditions import FIRST, need_conditions
from dit_compress.model.denoiser import Cond, Denoiser
from dit_compress.model.flow import expand
from dit_compress.model.licence import licence_of
from dit_compress.model.protocols import Model
from dit_compress.structure.files.whole import own_config
from dit_compress_plugins.model_diffusers import load
from dit_compress_plugins.model_diffusers.convention import (
    Convention,
    channels_of,
    example_beside,
    example_text,
    observe,
    patch_of,
)
from dit_compress_plugins.model_diffusers.first_frame import in_place, known_velocity, per_token, takes_tokens
from dit_compress_plugins.model_diffusers.layouts import folds_frames, unpack
from dit_compress_plugins.model_diffusers.prediction import Schedule, from_noise, from_v, from_x0, norm_of
from dit_compress_plugins.model_diffusers.signature import Call, arguments, conditions
from dit_compress_plugins.model_diffusers.sound import without_sound
from dit_compress_plugins.model_diffusers.traced import has_own_order, in_order, need_own_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dit_compress.model.flow import Flow
    from dit_compress.structure.facts import Structure
    from dit_compress_plugins.model_diffusers import DiffusersOptions

_FROM = {"noise": from_noise, "x0": from_x0, "v": from_v}


class DiffusersDenoiser(Denoiser):
    """``cond`` holds ``embedding [B,L,D]`` and ``mask [B,L]``, and what ``conditions`` names besides."""

    module: Any

    def __init__(self, module: nn.Module, convention: Convention) -> None:
        super().__init__(module)
        self.convention = convention
        with torch.device("cpu"):  # numbers, wherever the module's weights are
            self.schedule = _schedule(convention)

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        """Return the velocity; at a first frame that stands in the latent, the one that ends in what is known."""
        if torch.compiler.is_exporting():
            need_own_size(self.module, latent_BCTHW)
            if has_own_order(self.module):
                _, given = self.call(latent_BCTHW, sigma_B, cond)
                return self.velocity(in_order(self.module, given), latent_BCTHW, sigma_B)
        velocity = super().forward(latent_BCTHW, sigma_B, cond)
        if (first := self._standing(cond)) is None:
            return velocity
        return known_velocity(velocity, latent_BCTHW, first, sigma_B)

    def call(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return every argument by name; raise a UserError where a condition is missing."""
        known = self.convention
        need_conditions(self, cond if known.guidance is None else {*cond, "guidance"})
        frames = latent_BCTHW.shape[2] if folds_frames(self.layout) else 1
        timestep_B = self._timestep(sigma_B).repeat_interleave(frames, 0)
        rows = {name: value.repeat_interleave(frames, 0) for name, value in cond.items()}
        latent = latent_BCTHW
        if self.schedule is not None:
            latent = latent / norm_of(expand(self.schedule.clamp(sigma_B), latent))
        if (first := self._standing(cond)) is not None:
            latent = in_place(latent, first)
            clean_B = self._timestep(torch.zeros_like(sigma_B))
            timestep_B = per_token(timestep_B, clean_B, self._grid(latent))
        if FIRST in rows and known.first_scale != 1:
            rows[FIRST] = rows[FIRST] * known.first_scale
        call = Call(
            self.module,
            latent,
            timestep_B,
            rows,
            self.layout,
            self.patch,
            known.rope_scale,
            timestep_scale=known.timestep_scale or 1.0,
            guidance=known.guidance,
        )
        return (), arguments(call)

    def velocity(self, output: Any, latent_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:
        """Turn whatever the module predicts into ``noise - x0``; a learned variance is left out."""
        b, c, t, h, w = latent_BCTHW.shape
        predicted = unpack(output[0], self.layout, self.patch, (b, t, h, w))[:, :c]
        if self.convention.prediction == "velocity":
            return predicted
        if self.convention.prediction == "reversed":
            return -predicted
        assert self.schedule is not None
        return _FROM[self.convention.prediction](predicted, latent_BCTHW, self.schedule.clamp(sigma_B))

    def example(
        self, batch: int, size_THW: tuple[int, int, int], *, text_length: int = 8
    ) -> tuple[Tensor, Tensor, Cond]:
        """Draw random inputs; the second half of every text is padding."""
        weight = next(self.module.parameters())
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        tensors = example_text(self.module, batch, text_length)
        null = {name: torch.zeros_like(value[:1]) for name, value in tensors.items()}
        for name in {"mask", "mask_2"} & null.keys():
            null[name][:, 0] = 1
        latent = torch.randn(batch, self.channels, *size_THW, **like)
        sigma_B = torch.rand(batch, **like)
        beside = example_beside(self.module, latent)
        if "guidance" in self.conditions and self.convention.guidance is None:
            beside["guidance"] = torch.ones(batch, **like)
        return latent, sigma_B, Cond(tensors, null).beside(beside)

    def structure(self) -> Structure:
        """Return what observation found, without what this plugin never looks at."""
        return without_sound(self.module, super().structure())

    @property
    def conditions(self) -> Mapping[str, bool]:
        """The conditions that the module takes, by name; True for those that it can't be called without."""
        return conditions(self.module)

    @property
    def layout(self) -> str:
        """The layout in which the module takes its latent."""
        return self.convention.layout or ""

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return channels_of(self.module, self.layout)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent cells per token along T, H, W."""
        return patch_of(self.module.config, self.layout)

    def _standing(self, cond: Cond) -> Tensor | None:
        """Return the first frame, where it is given and stands in the latent."""
        return cond.tensors.get(FIRST) if takes_tokens(self.module) else None

    def _grid(self, latent_BCTHW: Tensor) -> tuple[int, int, int]:
        t, h, w = (size // step for size, step in zip(latent_BCTHW.shape[2:], self.patch, strict=True))
        return t, h, w

    def _timestep(self, sigma_B: Tensor) -> Tensor:
        if self.schedule is not None:
            return self.schedule.timestep(sigma_B)
        clock = 1 - sigma_B if self.convention.reversed_time else sigma_B
        return clock * (self.convention.timestep_scale or 1.0)


def _schedule(known: Convention) -> Schedule | None:
    """Return the noise levels of a variance-preserving model; None for a flow model."""
    return Schedule.from_alphas(load.alphas_cumprod(known.scheduler)) if known.prediction in _FROM else None


class DiffusersModel(Model):
    """The part ``model: {use: diffusers}``. The convention travels on the module."""

    def __init__(self, options: DiffusersOptions) -> None:
        self.options = options

    def create(self) -> nn.Module:
        """Load the weights of the folder, or random ones; call it once to see how it wants to be called."""
        module = load.load_module(self.options)
        if self.options.guidance is not None and "guidance" not in conditions(module):
            raise UserError(
                f"{type(module).__name__} was built without an input for guidance",
                where="model.guidance",
                mend="Take 'guidance' out of 'model'; a training step's 'guidance' is that of its sampler",
            )
        load.attach(module, observe(module, load.convention(self.options)))
        return module

    def licence(self) -> str | None:
        """Return the licence that the folder's model card states."""
        return licence_of(Path(self.options.path)) if self.options.path is not None else None

    def flow(self) -> Flow:
        """Return the flow that the pipeline's scheduler states."""
        return load.flow(self.options)

    @staticmethod
    def config_of(module: Any) -> dict[str, Any]:
        """Return the class, its own config as it was built, and the convention."""
        own = load.as_json(own_config(type(module), module.config))
        return {"class_name": type(module).__name__, "config": own, "convention": asdict(load.of(module))}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make a module without its weights; call it on the meta device."""
        module = load.made_of(config["class_name"], config["config"])
        load.attach(module, load.convention_from_data(config["convention"]))
        return module

    @staticmethod
    def denoiser(module: nn.Module) -> DiffusersDenoiser:
        """Put the module behind the engine's convention."""
        return DiffusersDenoiser(module, load.of(module))
