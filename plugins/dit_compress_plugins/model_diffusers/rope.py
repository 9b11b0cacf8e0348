"""Tables of rotary embeddings that a pipeline makes, and its module takes as an argument.

Shapes: T H W tokens along time, height, width; S their product; K head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers.models.embeddings import get_3d_rotary_pos_embed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor


def video_rope(
    config: Mapping[str, Any], grid_THW: tuple[int, int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ``cos`` and ``sin [S,K]`` in float32, as CogVideoX's ``_prepare_rotary_positional_embeddings`` does.

    Version 1.0 stretches positions to the size it was trained at; 1.5, which has patches along time, counts them.
    """
    frames, rows, columns = grid_THW
    patch = config["patch_size"]
    trained = config["sample_height"] // patch, config["sample_width"] // patch
    way: dict[str, Any] = {"crops_coords": _region((rows, columns), trained)}
    if config.get("patch_size_t") is not None:
        way = {"crops_coords": None, "grid_type": "slice", "max_size": trained}
    width = config["attention_head_dim"]
    return get_3d_rotary_pos_embed(width, grid_size=(rows, columns), temporal_size=frames, device=device, **way)


def _region(grid_HW: tuple[int, int], trained_HW: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return corners (top, left), (bottom, right) of the grid scaled into the trained one, in its middle.

    As ``get_resize_crop_region_for_grid``.
    """
    (height, width), (rows, columns) = trained_HW, grid_HW
    if rows / columns > height / width:
        size = height, round(height / rows * columns)
    else:
        size = round(width / columns * rows), width
    top, left = (round((whole - part) / 2) for whole, part in zip(trained_HW, size, strict=True))
    return (top, left), (top + size[0], left + size[1])
