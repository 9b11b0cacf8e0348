"""Frames and texts → embeddings of one space; their scaled cosine as the logit of an aspect.

Shapes: B batch, N frames that are looked at, A aspects; video ``[B,3,F,Y,X]`` in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.core.progress import quiet
from dit_compress.data.video import evenly

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.step.context import Context
    from dit_compress_plugins.reward_transformers import TransformersRewardOptions

NEEDED = ("config.json", "preprocessor_config.json")
_EXPORT = "Export the whole model with save_pretrained: weights, tokenizer and image processor"


class Likeness(nn.Module):
    """The reward: ``scale·(cos(frame, text) - margin)``, or the model's own bias, averaged over frames."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self, model: Any, tokenizer: Any, pixels: Mapping[str, Any], options: TransformersRewardOptions
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.aspects = tuple(options.aspects)
        self.side: int = model.config.vision_config.image_size
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.tensor(pixels[name]).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, video_BCFYX: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the logits ``[B,A]``."""
        images = self.images(video_BCFYX)
        seen = normalize(_embedding(self.model.get_image_features(pixel_values=images)).float(), dim=-1)
        seen_BND = seen.unflatten(0, (len(captions), -1))
        read_BAD = self.read(captions, video_BCFYX.device)
        cosine_BA = torch.einsum("bnd,bad->ba", seen_BND, read_BAD) / seen_BND.shape[1]
        scale = self.model.logit_scale.float().exp()
        bias = getattr(self.model, "logit_bias", None)
        return scale * (cosine_BA - self.options.margin) if bias is None else scale * cosine_BA + bias.float()

    def images(self, video_BCFYX: Tensor) -> Tensor:
        """Take frames, scale their short side to the model's, cut out the middle, normalise; nothing is clipped."""
        total, (high, wide) = video_BCFYX.shape[2], video_BCFYX.shape[3:]
        count = min(self.options.frames, total)
        chosen = evenly(count, total)
        frames = video_BCFYX[:, :, chosen].transpose(1, 2).flatten(0, 1)
        size = [max(self.side, round(side * self.side / min(high, wide))) for side in (high, wide)]
        scaled = interpolate(frames.float(), size=size, mode="bilinear", antialias=True)
        top, left = ((side - self.side) // 2 for side in size)
        cut = scaled[:, :, top : top + self.side, left : left + self.side]
        return ((cut + 1) / 2 - self.image_mean) / self.image_std

    @torch.no_grad()
    def read(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """Return the embeddings ``[B,A,D]`` of what each video is compared with."""
        texts = [text.replace("{caption}", caption) for caption in captions for text in self.options.aspects.values()]
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        given = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask") if name in tokens}
        found = normalize(_embedding(self.model.get_text_features(**given)).float(), dim=-1)
        return found.unflatten(0, (len(captions), len(self.aspects)))


def _embedding(found: Any) -> Tensor:
    """Return the embedding of a model's answer: since transformers 5 it stands in an output object."""
    return found if isinstance(found, Tensor) else found.pooler_output


class TransformersReward:
    """Part ``reward: {use: transformers}``."""

    def __init__(self, options: TransformersRewardOptions) -> None:
        self.options = options

    def check(self) -> None:
        """Raise a UserError where the folder lacks what every such folder has."""
        if missing := [name for name in NEEDED if not (Path(self.options.path) / name).is_file()]:
            raise UserError(f"no {missing[0]} there", where=self.options.path, mend=_EXPORT)

    def create(self, context: Context) -> Likeness:  # noqa: ARG002 - the folder has all it needs
        """Read the folder; nothing is downloaded. Raises a UserError where something is missing."""
        from transformers import AutoModel, AutoTokenizer

        self.check()
        folder = Path(self.options.path)
        try:
            with quiet():
                model, about = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            line = str(error).strip().partition("\n")[0]
            raise UserError(f"the critic can't be read ({line})", where=self.options.path, mend=_EXPORT) from error
        if lacking := sorted(about["missing_keys"]):
            raise UserError(f"the weights lack {lacking[0]}", where=self.options.path, mend=_EXPORT)
        if not all(hasattr(model, name) for name in ("get_image_features", "get_text_features", "logit_scale")):
            raise UserError(
                f"{type(model).__name__} compares no images with texts",
                where=self.options.path,
                mend="Name the folder of a model such as CLIP or SigLIP",
            )
        return Likeness(model, tokenizer, read_json(folder / "preprocessor_config.json"), self.options)
