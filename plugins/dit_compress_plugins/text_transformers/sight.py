"""What a stock pipeline makes of an image: its own ``encode_image`` over its own image encoder, nothing else loaded.

Shapes: B batch, N embeddings of an image, D width, Y X height and width in pixels.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.data.samples import to_pixels
from dit_compress_plugins.text_transformers import IMAGE_PARTS
from dit_compress_plugins.text_transformers.folder import (
    DTYPES,
    components,
    config_of,
    is_pipeline,
    load_encoder,
    load_part,
)
from dit_compress_plugins.text_transformers.piped import bare_pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ENCODER = IMAGE_PARTS[0]


class Sight:
    """The image side of a pipeline's folder. Nothing is read before it is asked for."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder, self.dtype = folder, dtype

    @cached_property
    def parts(self) -> dict[str, str]:
        """The image encoder and what prepares images for it, by name, and their classes; empty where there is none."""
        found = components(self.folder, IMAGE_PARTS) if is_pipeline(self.folder) else {}
        return found if ENCODER in found else {}

    @property
    def shape(self) -> tuple[int, int] | None:
        """Number and width of an image's embeddings, as the encoder's config has them; CLIP has one for the whole."""
        if not self.parts:
            return None
        own = config_of(self.folder / ENCODER)
        whole = int("clip" in str(own.get("model_type")).split("_"))
        return (own["image_size"] // own["patch_size"]) ** 2 + whole, own["hidden_size"]

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline with its image encoder, and without all that has weights besides."""
        return bare_pipeline(self.folder, {
            name: load_encoder(self.folder / name, kind, self.dtype)
            if name == ENCODER
            else load_part(self.folder / name, kind)
            for name, kind in self.parts.items()
        })  # fmt: skip

    @torch.no_grad()
    def encode(self, first_BCYX: Tensor) -> Tensor:
        """Return what ``encode_image`` gives for images in [-1, 1], ``[B,N,D]``: one at a time, as pipelines do."""
        from PIL import Image

        pixels_BYX3 = to_pixels(first_BCYX[:, :, None])[:, 0]
        device = first_BCYX.device
        self.pipeline.image_encoder.to(device)
        given = {"device": device, "batch_size": 1, "dtype": DTYPES[self.dtype]}
        asked = inspect.signature(self.pipeline.encode_image).parameters
        known = {name: value for name, value in given.items() if name in asked}
        rows = [self.pipeline.encode_image(image=Image.fromarray(pixels), **known) for pixels in pixels_BYX3]
        return torch.cat(rows).float()

    def release(self) -> bool:
        """Give the encoder's memory back; return whether it was read. Another image reads it again."""
        return vars(self).pop("pipeline", None) is not None
