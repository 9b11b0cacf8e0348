"""Networks that lie on this machine: CLIP, and what sees frames or videos for a Fréchet distance. No pickle is read.

Shapes: F frames of Y × X pixels; K rows (1, or the frames) of D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dit_compress.core.errors import UserError
from dit_compress.core.progress import quiet
from dit_compress.data.samples import to_video
from dit_compress.data.video import evenly

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

EXPORT = "Export the whole model with save_pretrained: safetensors and its processor"
OTHERWISE = "Give a folder in transformers' layout with safetensors, or an ONNX file (torch.onnx.export)"


def need_judge(path: str | None, *, files: tuple[str, ...] = ()) -> None:
    """Raise a UserError unless there is a folder, or a file of such an ending; reads nothing."""
    if path is None:
        return
    place = Path(path)
    if not place.exists():
        raise UserError("there is no such file or folder", where=path, mend="Give one that lies on this machine")
    if place.is_file() and place.suffix.lower() not in files:
        what = "TorchScript and checkpoints hold pickled code, which is not read"
        raise UserError(what if files else "a file where a folder is wanted", where=path, mend=OTHERWISE)


def read_folder(path: str, maker: str, processor: str) -> tuple[Any, Any]:
    """Read a model in eval mode and its processor from a folder; nothing is fetched."""
    try:
        import transformers

        with quiet():
            model, about = getattr(transformers, maker).from_pretrained(
                path, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            made = getattr(transformers, processor).from_pretrained(path, local_files_only=True)
    except ImportError as error:
        raise UserError(f"a package is missing ({error})", where=path, mend="Install dit-compress[metrics]") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"the model can't be read ({line})", where=path, mend=EXPORT) from error
    if lacking := sorted(about["missing_keys"]):
        raise UserError(f"the weights lack {lacking[0]}", where=path, mend=EXPORT)
    return model.eval(), made


def tensor_of(found: Any) -> Tensor:
    """Return the features of a model's answer: pooled, else a mean over places."""
    if isinstance(found, Tensor):
        return found
    pooled = getattr(found, "pooler_output", None)
    return found.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)


# ------------------------------------------------------------------ CLIPScore


class CLIP:
    """A folder of CLIP as torchmetrics' CLIPScore takes it: a model that gives tensors, and a processor."""

    def __init__(self, path: str) -> None:
        self.model, self.processor = read_folder(path, "AutoModel", "AutoProcessor")
        if not all(hasattr(self.model, name) for name in ("get_image_features", "get_text_features")):
            what = f"{type(self.model).__name__} compares no images with texts"
            raise UserError(what, where=path, mend="Name the folder of a CLIP")
        self.config = self.model.config

    def to(self, device: Any) -> CLIP:
        """Move the model."""
        self.model.to(device)
        return self

    def get_image_features(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images."""
        return tensor_of(self.model.get_image_features(pixel_values=pixels))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the embeddings of texts."""
        return tensor_of(self.model.get_text_features(input_ids=ids, attention_mask=mask))

    def process(self, **given: Any) -> Any:
        """Make inputs of images or texts; texts that are too long end where the model's do."""
        if "images" in given:
            images = [image.permute(1, 2, 0).numpy() for image in given["images"]]
            return self.processor.image_processor(images, return_tensors="pt")
        length = self.config.text_config.max_position_embeddings
        return self.processor.tokenizer(given["text"], padding=True, truncation=True, max_length=length,
                                        return_tensors="pt")  # fmt: skip

    @torch.no_grad()
    def __call__(self, frames_FYX3: np.ndarray, caption: str) -> float:
        """Return CLIPScore of a video: ``100·cos``, a mean over frames, at least 0 (Hessel et al. 2021)."""
        from torchmetrics.functional.multimodal import clip_score

        images = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames_FYX3]
        return float(clip_score(images, [caption] * len(images), lambda: (self, self.process)))


# ------------------------------------------------------------------ features for a Fréchet distance


class Backbone:
    """What makes features ``[K,D]`` of a video ``[F,Y,X,3]`` uint8.

    videos: whether it sees the whole video, K = 1; else so many ``frames``, each by itself.
    """

    def __init__(self, path: str, *, videos: bool, frames: int = 1) -> None:
        self.path, self.videos, self.frames = path, videos, frames
        self.see = self._onnx() if Path(path).is_file() else self._folder()

    @torch.no_grad()
    def __call__(self, video_FYX3: np.ndarray) -> Tensor:
        """Return the features."""
        found = self.see(video_FYX3 if self.videos else video_FYX3[evenly(self.frames, len(video_FYX3))])
        if found.ndim != 2 or found.shape[0] != (1 if self.videos else self.frames):
            mend = "Give a network that ends in one row of features for each"
            raise UserError(f"features of shape {list(found.shape)}", where=self.path, mend=mend)
        return found.float()

    def _folder(self) -> Callable[[np.ndarray], Tensor]:
        model, processor = read_folder(self.path, "AutoModel", "AutoImageProcessor")
        call = getattr(model, "get_image_features", model)
        wanted: int | None = getattr(model.config, "num_frames", None)
        if self.videos and wanted is None:
            what, mend = f"{type(model).__name__} sees no videos", "Name the folder of a VideoMAE, a ViViT, …"
            raise UserError(what, where=self.path, mend=mend)

        def see(video_FYX3: np.ndarray) -> Tensor:
            given = [list(video_FYX3[evenly(wanted, len(video_FYX3))])] if self.videos and wanted else list(video_FYX3)
            return tensor_of(call(pixel_values=processor(given, return_tensors="pt")["pixel_values"]))

        return see

    def _onnx(self) -> Callable[[np.ndarray], Tensor]:
        """Take float32 in [-1, 1], ``[K,3,Y,X]`` or ``[1,3,F,Y,X]``; sizes that the file states are scaled to."""
        session = _session(self.path)
        given = session.get_inputs()[0]
        if len(session.get_inputs()) != 1 or len(given.shape) != (5 if self.videos else 4):
            wanted = "[N,3,F,Y,X]" if self.videos else "[N,3,Y,X]"
            raise UserError(
                f"the file takes {given.shape}", where=self.path, mend=f"Export it with one input, {wanted}"
            )
        size = given.shape[-2:]

        def see(video_FYX3: np.ndarray) -> Tensor:
            frames = given.shape[2] if self.videos and isinstance(given.shape[2], int) else len(video_FYX3)
            chosen = torch.from_numpy(video_FYX3[evenly(frames, len(video_FYX3))])
            x = to_video(chosen[None])[0].transpose(0, 1)
            if all(isinstance(side, int) for side in size) and tuple(size) != tuple(x.shape[-2:]):
                x = interpolate(x, size=size, mode="bilinear", antialias=True)
            x = x.transpose(0, 1)[None] if self.videos else x
            return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0]).flatten(1)

        return see


def _session(path: str) -> Any:
    """Open an ONNX file."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("an ONNX file needs onnxruntime", where=path, mend="Install dit-compress[onnx]") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"no ONNX that runs here ({line})", where=path, mend=OTHERWISE) from error
