"""Fill a module's forward arguments by their names: which are understood, and where each comes from.

Shapes: B batch, T H W latent frames, height, width, S tokens, L text length, D text width.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dit_compress.core.errors import UserError
from dit_compress.model.conditions import FIRST, IMAGE
from dit_compress_plugins.model_diffusers import sound
from dit_compress_plugins.model_diffusers.first_frame import channels_way, takes_tokens, with_channels
from dit_compress_plugins.model_diffusers.layouts import folds_frames, pack
from dit_compress_plugins.model_diffusers.rope import video_rope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from dit_compress_plugins.model_diffusers.layouts import Patch

TEXT_WIDTHS = ("caption_channels", "text_embed_dim", "text_dim", "joint_attention_dim", "cross_attention_dim")
ROPE_TABLES = ("image_rotary_emb", "rotary_embedding")
NUM_VISION_TOKENS = 729
"""Tokens of the image encoder of HunyuanVideo 1.5."""
NUM_WORDS = 512
"""Where words stand behind an image (Wan 2.1 I2V) the module takes the last 512 for words, however many there are."""
OFFSET = 2.0
"""What the pipeline of CogVideoX 1.5 gives its image-to-video model as ``ofs``."""
PIXELS_PER_CELL = 8
"""Pixels per latent of the image VAEs whose models take sizes in pixels (PixArt, CogView)."""


@dataclass(frozen=True)
class Call:
    """One call of the module, before its arguments are named. Frames are already in the batch where they fold."""

    module: Any
    latent_BCTHW: Tensor
    timestep_B: Tensor
    cond: Mapping[str, Tensor]
    layout: str
    patch: Patch
    rope_scale: tuple[float, float, float]
    timestep_scale: float = 1.0
    guidance: float | None = None

    @property
    def config(self) -> Any:
        """The module's own config."""
        return self.module.config

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along T (1 where frames fold), H and W."""
        t, h, w = self.latent_BCTHW.shape[2:]
        pt, ph, pw = self.patch
        return (1 if folds_frames(self.layout) else t // pt), h // ph, w // pw

    @property
    def batch(self) -> int:
        """Rows that the module sees."""
        return self.timestep_B.shape[0]

    def zeros(self, *shape: int) -> Tensor:
        """Make zeros like the latent."""
        return self.latent_BCTHW.new_zeros(shape)


def _text(call: Call) -> Tensor:
    """Zero the embeddings at the padding, so that modules without a mask (Wan) see none."""
    text_BLD = call.cond["embedding"] * call.cond["mask"][..., None].to(call.cond["embedding"].dtype)
    if not _sees(call.module) or "encoder_hidden_states_image" not in parameters(call.module):
        return text_BLD
    if text_BLD.shape[1] > NUM_WORDS:
        raise UserError(
            f"{type(call.module).__name__} with an image takes {NUM_WORDS} words, and these are {text_BLD.shape[1]}",
            mend=f"Set 'length' of 'text' to {NUM_WORDS}, or leave it out",
        )
    return functional.pad(text_BLD, (0, 0, 0, NUM_WORDS - text_BLD.shape[1]))


def _mask(call: Call) -> Tensor:
    return call.cond["mask"].long()


def _second_text(call: Call) -> Tensor:
    """Zero the second encoder's embeddings at their padding, too."""
    return call.cond["embedding_2"] * call.cond["mask_2"][..., None].to(call.cond["embedding_2"].dtype)


def _guidance(call: Call) -> Tensor | None:
    """Tell a guidance-distilled model the cond's guidance, else the convention's; on the clock's scale."""
    if not call.config.get("guidance_embeds"):
        return None
    given = call.cond.get("guidance")
    scale = call.config.get("guidance_embeds_scale") or call.timestep_scale
    return (call.zeros(call.batch) + (call.guidance or 0.0) if given is None else given) * scale


def _image(call: Call) -> Tensor | None:
    """Return the embeddings of an image; zeros for a T2V model of HunyuanVideo 1.5, as its own pipeline gives."""
    width = call.config.get("image_embed_dim")
    if width and call.config.get("task_type") == "t2v":
        return call.zeros(call.batch, NUM_VISION_TOKENS, width)
    return call.cond.get("image")


def _latent(call: Call) -> Tensor:
    """Lay the latent out, with the channels of a first frame where the module was built for them."""
    way = channels_way(call.module)
    latent = with_channels(call.latent_BCTHW, call.cond.get(way.name), way) if way else call.latent_BCTHW
    return pack(latent, call.layout, call.patch)


def _image_ids(call: Call) -> Tensor:
    """Return the positions ``[S,A]`` of the tokens: row and column in places 1 and 2; floats, as Core ML asks."""
    _, rows, columns = call.grid
    ids = call.zeros(rows, columns, _num_axes(call))
    ids[..., 1] = torch.arange(rows, device=ids.device).to(ids.dtype)[:, None]
    ids[..., 2] = torch.arange(columns, device=ids.device).to(ids.dtype)
    return ids.flatten(0, 1)


def _text_ids(call: Call) -> Tensor:
    """Make zeros ``[L,A]``; where there is a fourth place, it counts the words (Flux2)."""
    ids = call.zeros(call.cond["embedding"].shape[1], _num_axes(call))
    if ids.shape[1] > 3:
        ids[:, 3] = torch.arange(ids.shape[0], device=ids.device).to(ids.dtype)
    return ids


def _num_axes(call: Call) -> int:
    return len(call.config.get("axes_dims_rope") or (0, 0, 0))


def _sizes(call: Call) -> dict[str, Tensor] | None:
    """Make PixArt's micro-conditions, where it was built with them."""
    if not getattr(call.module, "use_additional_conditions", False):
        return None
    size = _pixels(call)
    return {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}


def _pixels(call: Call) -> Tensor:
    """Return the height and width in pixels, ``[B,2]``."""
    height, width = call.latent_BCTHW.shape[3:]
    return call.zeros(call.batch, 2) + call.latent_BCTHW.new_tensor([height, width]) * PIXELS_PER_CELL


SOURCES: dict[str, Callable[[Call], Any]] = {
    "hidden_states": _latent,
    "timestep": lambda call: call.timestep_B,
    "encoder_hidden_states": _text,
    "encoder_attention_mask": _mask,
    "encoder_hidden_states_mask": _mask,
    "encoder_hidden_states_2": _second_text,
    "encoder_attention_mask_2": lambda call: call.cond["mask_2"].long(),
    "pooled_projections": lambda call: call.cond["pooled"],
    "guidance": _guidance,
    "img_ids": _image_ids,
    "txt_ids": _text_ids,
    "img_shapes": lambda call: [[call.grid]] * call.batch,
    "num_frames": lambda call: call.grid[0],
    "height": lambda call: call.grid[1],
    "width": lambda call: call.grid[2],
    "rope_interpolation_scale": lambda call: call.rope_scale,
    "added_cond_kwargs": _sizes,
    "original_size": _pixels,
    "target_size": _pixels,
    "crop_coords": lambda call: call.zeros(call.batch, 2),
    "return_dict": lambda _call: False,
    "audio_hidden_states": sound.silence,
    "audio_encoder_hidden_states": sound.no_words,
    "audio_num_frames": lambda _call: sound.TOKENS,
    "isolate_modalities": lambda _call: True,
}
"""Argument name → where its value comes from. Anything else must have a default."""

OPTIONAL: dict[str, Callable[[Call], Any]] = {
    "encoder_hidden_states_image": _image,
    "image_embeds": _image,
    "sigma": lambda call: call.timestep_B if sound.has_sound(call.module) else None,
    "ofs": lambda call: call.zeros(1) + OFFSET if call.config.get("ofs_embed_dim") else None,
}
"""The same, of arguments that are left out where their value is None."""
NEEDED = {"pooled_projections": ("pooled",), "encoder_hidden_states_2": ("embedding_2", "mask_2")}
"""Argument name → the conditions that it needs."""


def parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of the module's forward."""
    return inspect.signature(type(module).forward).parameters


def unknown(module: nn.Module) -> list[str]:
    """List arguments that must be given and that nothing here knows."""
    tables = [] if _makes_its_own_rope(module) else [name for name in ROPE_TABLES if name in parameters(module)]
    return tables + [
        name
        for name, parameter in list(parameters(module).items())[1:]
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and name not in (*SOURCES, *tables)
    ]


def conditions(module: Any) -> dict[str, bool]:
    """Return the conditions that the module takes, by name; True for those that it can't be called without."""
    names, config = parameters(module), module.config
    found = {"embedding": True, "mask": True}
    found |= {condition: True for name, needed in NEEDED.items() if name in names for condition in needed}
    if config.get("guidance_embeds") and "guidance" in names:
        found["guidance"] = True
    silent = config.get("task_type") == "t2v"
    if way := channels_way(module):
        found[way.name] = not silent
    elif takes_tokens(module):
        found[FIRST] = False
    if _sees(module):
        found[IMAGE] = True
    return found


def _sees(module: Any) -> bool:
    """Tell whether the module can't be called without the embeddings of an image."""
    names, config = parameters(module), module.config
    return bool(config.get("image_dim") and "encoder_hidden_states_image" in names) or bool(
        config.get("image_embed_dim") and "image_embeds" in names and config.get("task_type") != "t2v"
    )


def _makes_its_own_rope(module: Any) -> bool:
    """Tell whether positions need no argument: tables that are None by default would be missing."""
    used = module.config.get("use_rotary_positional_embeddings")
    return hasattr(module, "rope") if used is None else not used or _has_video_rope(module.config)


def _has_video_rope(config: Mapping[str, Any]) -> bool:
    """Tell whether the pipeline makes tables out of these sizes, as CogVideoX's does."""
    return bool(config.get("use_rotary_positional_embeddings")) and {"sample_height", "sample_width"} <= config.keys()


def arguments(call: Call) -> dict[str, Any]:
    """Make every understood argument of the module's forward."""
    names = parameters(call.module)
    given = {name: SOURCES[name](call) for name in names if name in SOURCES}
    optional = {name: OPTIONAL[name](call) for name in names if name in OPTIONAL}
    given |= {name: value for name, value in optional.items() if value is not None}
    return (
        {**given, "image_rotary_emb": video_rope(call.config, call.grid, call.latent_BCTHW.device)}
        if _has_video_rope(call.config)
        else given
    )


def text_width(config: Mapping[str, Any]) -> int | None:
    """Return the width of the caption embeddings that a config asks for."""
    return next((config[name] for name in TEXT_WIDTHS if isinstance(config.get(name), int)), None)
