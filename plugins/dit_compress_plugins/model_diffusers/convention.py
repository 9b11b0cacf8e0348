"""The convention by which one module is called: layout, clock and prediction. Observed once, then kept as data.

Shapes: B batch, C channels, T H W latent frames, height, width.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.embeddings import Timesteps

from dit_compress.core.errors import UserError
from dit_compress.core.pipeline import DENOISERS
from dit_compress.model.conditions import FIRST, FIRST_PADDED, IMAGE
from dit_compress.structure.modulation import timetable_of
from dit_compress.structure.observe.weightless import run_weightless
from dit_compress_plugins.model_diffusers import LAYOUTS, LTX_ROPE_SCALE
from dit_compress_plugins.model_diffusers.first_frame import channels_way, latent_channels
from dit_compress_plugins.model_diffusers.layouts import folds_frames, pack
from dit_compress_plugins.model_diffusers.signature import (
    TEXT_WIDTHS,
    Call,
    arguments,
    conditions,
    parameters,
    text_width,
    unknown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from dit_compress_plugins.model_diffusers.layouts import Patch

WRITE_A_PLUGIN = "Write a 'model' plugin for this class (docs/adding-a-model.md)"
EXAMPLE_IMAGE = 257
"""Embeddings of an image, as CLIP gives them to Wan 2.1."""
FULL_CLOCK = 1000.0
"""The number that reaches the sinusoids of a flow model at sigma 1."""


@dataclass(frozen=True)
class Convention:
    """See ``DiffusersOptions``; None where it is not yet known. pipeline, part: where the module came from."""

    prediction: str = "velocity"
    reversed_time: bool = False
    timestep_scale: float | None = None
    layout: str | None = None
    scheduler: dict[str, Any] | None = None
    rope_scale: tuple[float, float, float] = LTX_ROPE_SCALE
    pipeline: str | None = None
    part: str = DENOISERS[0]
    guidance: float | None = None
    first_scale: float = 1.0
    """By which the latents of a first frame are multiplied: CogVideoX 1.5 takes them otherwise scaled than the rest."""


def patch_of(config: Mapping[str, Any], layout: str) -> Patch:
    """Return the latent cells per token along T, H, W."""
    if layout == "packed_image":
        return (1, 2, 2)
    size = config.get("patch_size") or 1
    if not isinstance(size, int):
        t, h, w = size if len(size) == 3 else (1, *size)
        return int(t), int(h), int(w)
    along_time = config.get("patch_size_t") or config.get("temporal_patch_size") or 1
    return int(along_time), size, size


def channels_of(module: Any, layout: str) -> int:
    """Return the latent channels, without those of a first frame; a packed module counts those of a whole patch."""
    config = module.config
    if channels_way(module):
        return latent_channels(config)
    t, h, w = patch_of(config, layout) if layout.startswith("packed") else (1, 1, 1)
    return int(config["in_channels"]) // (t * h * w)


def candidates(module: nn.Module) -> tuple[str, ...]:
    """Return the layouts that the signature allows."""
    names = set(parameters(module))
    if {"num_frames", "height", "width"} <= names:
        return ("packed_video",)
    if names & {"img_ids", "img_shapes"}:
        return ("packed_image",)
    return tuple(name for name in LAYOUTS if not name.startswith("packed"))


def example_text(module: Any, batch: int, length: int, device: torch.device | None = None) -> dict[str, Tensor]:
    """Draw random captions of the widths that the config asks for; the second half is padding."""
    weight, needed = next(module.parameters()), conditions(module)
    like: dict[str, Any] = {"device": device or weight.device, "dtype": weight.dtype}
    length = module.config.get("max_text_seq_length") or length
    mask = (torch.arange(length, device=like["device"]) < (length + 1) // 2).to(weight.dtype).expand(batch, -1)
    width = text_width(module.config)
    assert width is not None
    drawn = {"embedding": torch.randn(batch, length, width, **like) * mask[..., None], "mask": mask}
    if "pooled" in needed:
        drawn["pooled"] = torch.randn(batch, module.config["pooled_projection_dim"], **like)
    if "embedding_2" in needed:
        second = torch.randn(batch, length, module.config["text_embed_2_dim"], **like)
        drawn |= {"embedding_2": second * mask[..., None], "mask_2": mask.clone()}
    return drawn


def example_beside(module: Any, latent_BCTHW: Tensor) -> dict[str, Tensor]:
    """Draw what no caption gives, and the module needs: latents of a first frame, embeddings of an image."""
    needed = conditions(module)
    found = {}
    if needed.get(FIRST) or needed.get(FIRST_PADDED):
        name, frames = (FIRST, 1) if FIRST in needed else (FIRST_PADDED, latent_BCTHW.shape[2])
        found[name] = torch.randn_like(latent_BCTHW[:, :, :frames])
    if needed.get(IMAGE):
        width = module.config.get("image_dim") or module.config["image_embed_dim"]
        found[IMAGE] = torch.randn(latent_BCTHW.shape[0], EXAMPLE_IMAGE, width).to(latent_BCTHW)
    return found


def observe(module: Any, convention: Convention) -> Convention:
    """Fill in what the convention leaves open, by trying the layouts on a tiny latent.

    Raises UserError where the signature asks for something unknown or no layout gives the latent back.
    """
    name = type(module).__name__
    if missing := unknown(module):
        raise UserError(f"{name} asks for arguments that are not understood: {missing}", mend=WRITE_A_PLUGIN)
    if text_width(module.config) is None:
        raise UserError(f"the config of {name} names no caption width {list(TEXT_WIDTHS)}", mend=WRITE_A_PLUGIN)
    failures = []
    for layout in [convention.layout] if convention.layout else candidates(module):
        try:
            clock = _try(module, replace(convention, layout=layout))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError) as error:
            failures.append(f"{layout}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        scale = convention.timestep_scale or (1.0 if clock > 1.5 * FULL_CLOCK else FULL_CLOCK * _own_scale(module))
        guidance = convention.guidance if "guidance" in conditions(module) else None
        return replace(convention, layout=layout, timestep_scale=scale, guidance=guidance)
    raise UserError(f"{name} could not be called with any layout ({'; '.join(failures)})", mend=WRITE_A_PLUGIN)


def _own_scale(module: Any) -> float:
    """Return the factor by which the pipeline multiplies timesteps (Sana)."""
    return float(module.config.get("timestep_scale") or 1)


def _try(module: Any, convention: Convention) -> float:
    """Call the module once; what its sinusoids saw of the full clock. Raises where the output is of another shape.

    A module whose modulation is a table is called at one of its timesteps, as it can be called at no other.
    """
    layout = convention.layout or ""
    weight, patch = next(module.parameters()), patch_of(module.config, layout)
    frames, height, width = 2 * patch[0], 2 * patch[1], 4 * patch[2]
    channels = channels_of(module, layout)
    # Frames and channels must differ, or the two five-dimensional layouts look alike.
    frames = 3 * patch[0] if frames == channels else frames
    # The clock can't be seen on the meta device: a module without weights is called with real numbers all the same.
    device = torch.device("cpu") if weight.is_meta else weight.device
    latent = torch.randn(1, channels, frames, height, width, device=device, dtype=weight.dtype)
    rows = frames if folds_frames(layout) else 1
    text = {name: value.expand(rows, *value.shape[1:]) for name, value in example_text(module, 1, 8, device).items()}
    text |= example_beside(module, latent)
    table = timetable_of(module)
    time = FULL_CLOCK if table is None else max(table.times)
    clock = torch.full((rows,), time, device=device, dtype=weight.dtype)
    call = Call(module, latent, clock, text, layout, patch, convention.rope_scale)
    given = arguments(call)
    with torch.no_grad(), _evaluating(module), _clock_seen(module) as seen:
        output = run_weightless(module, given)[0] if weight.is_meta else module(**given)[0]
    wanted = pack(latent, layout, patch).shape
    axis = {"BCTHW": 1, "BCHW": 1}.get(layout, 2)
    with_variance = (*wanted[:axis], 2 * wanted[axis], *wanted[axis + 1 :])
    if tuple(output.shape) not in (tuple(wanted), with_variance):
        raise ValueError(f"gave {list(output.shape)} for {list(wanted)}")
    return FULL_CLOCK * max(seen) / time if seen and time else FULL_CLOCK


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def _clock_seen(module: nn.Module) -> Iterator[list[float]]:
    """Collect the numbers that reach sinusoidal embeddings."""
    seen: list[float] = []

    def note(owner: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(float(args[0].max()) * float(getattr(owner, "scale", 1)))

    handles = [item.register_forward_pre_hook(note) for item in module.modules() if isinstance(item, Timesteps)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
