"""What training reads: pixels, latents and captions, encoded once and cached by content.

A cache file's name is a digest of everything it depends on (the codec's weights, the data manifest),
so a stale one is never read: another digest is another file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_compress.denoiser import Cond
from dit_compress.files import disk_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dit_compress.clips import Clip
    from dit_compress.hooks import Codec

ENCODE_BATCH = 8


class Samples:
    """Training samples by index: clean tensors, captions, and the captions' tokens."""

    def __init__(self, x0: np.ndarray, captions: Sequence[str], tokens: Mapping[str, Tensor], *, pixels: bool) -> None:
        self._x0, self._captions, self._tokens, self._pixels = x0, list(captions), dict(tokens), pixels

    def __len__(self) -> int:
        return len(self._captions)

    def x0(self, index: Sequence[int]) -> Tensor:
        """Latents ``[B,C,T,H,W]``, or video ``[B,3,F,Y,X]`` in [-1, 1]."""
        taken = torch.from_numpy(self._x0[np.asarray(index)])
        return to_video(taken) if self._pixels else taken

    def captions(self, index: Sequence[int]) -> list[str]:
        """The captions."""
        return [self._captions[i] for i in index]

    def tokens(self, index: Sequence[int]) -> dict[str, Tensor]:
        """The text encoder's tokens (or cached embeddings), leading B."""
        where = torch.as_tensor(list(index))
        return {name: value[where] for name, value in self._tokens.items()}


def to_video(pixels_BFYX3: Tensor) -> Tensor:
    """uint8 ``[B,F,Y,X,3]`` → float ``[B,3,F,Y,X]`` in [-1, 1]."""
    return pixels_BFYX3.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_pixels(video_BCFYX: Tensor) -> np.ndarray:
    """Float ``[B,3,F,Y,X]`` in [-1, 1] → uint8 ``[B,F,Y,X,3]``."""
    scaled = ((video_BCFYX.clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(0, 2, 3, 4, 1).to(torch.uint8).cpu().numpy()


def pixel_cache(path: Path, clips: Sequence[Clip], advance: Callable[[], Any]) -> np.ndarray:
    """All clips decoded once: uint8 ``[N,F,Y,X,3]``, memory-mapped."""
    if not path.is_file():
        _fill(path, len(clips), np.uint8, (clip.pixels()[None] for clip in clips), advance)
    return np.load(path, mmap_mode="r")


def latent_cache(path: Path, clips: Sequence[Clip], codec: Codec, advance: Callable[[], Any]) -> np.ndarray:
    """All clips encoded once: float32 ``[N,C,T,H,W]``."""
    if not path.is_file():

        def encoded() -> Any:
            for first in range(0, len(clips), ENCODE_BATCH):
                pixels = np.stack([clip.pixels() for clip in clips[first : first + ENCODE_BATCH]])
                with torch.no_grad():
                    yield codec.encode(to_video(torch.from_numpy(pixels))).float().numpy()

        _fill(path, len(clips), np.float32, encoded(), advance)
    return np.load(path, mmap_mode="r")


def caption_cache(folder: Path, captions: Sequence[str], text: Captions) -> dict[str, Tensor]:
    """All captions encoded once by a frozen encoder: ``embedding [N,L,D]`` and ``mask [N,L]``, memory-mapped."""

    def encoded(name: str) -> Any:
        for first in range(0, len(captions), ENCODE_BATCH):
            with torch.no_grad():
                tokens = text.encoder.tokenize(captions[first : first + ENCODE_BATCH])
                yield text.encoder(tokens)[name].float().numpy()

    found = {}
    for name in ("embedding", "mask"):
        path = folder / f"{name}.npy"
        if not path.is_file():
            _fill(path, len(captions), np.float32, encoded(name), lambda: None)
        found[name] = torch.from_numpy(np.load(path, mmap_mode="r+"))
    return found


def _fill(path: Path, total: int, dtype: Any, parts: Any, advance: Callable[[], Any]) -> None:
    """Write consecutive parts into one .npy file that appears when it is whole.

    Written, not mapped: a full disk kills whoever writes through a map.
    """
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(path), partial.open("wb") as handle:
            done = 0
            for part in parts:
                if not done:
                    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (total, *part.shape[1:])}
                    np.lib.format.write_array_header_1_0(handle, header)
                handle.write(np.ascontiguousarray(part, dtype).data)
                done += len(part)
                for _ in range(len(part)):
                    advance()
            if not done:
                raise ValueError("nothing to cache")
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


class Captions(nn.Module):
    """A text encoder as the trainer sees it: tokens in, :class:`Cond` out, the null caption included."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self._null: dict[str, Tensor] | None = None

    @property
    def frozen(self) -> bool:
        """Whether nothing in the encoder is being trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def forward(self, tokens: Mapping[str, Tensor]) -> Cond:
        """Tokens (or cached embeddings) → conditions."""
        encoded = tokens if "embedding" in tokens else self.encoder(self._placed(tokens))
        return Cond(dict(encoded), self.null())

    def null(self) -> dict[str, Tensor]:
        """The empty caption, leading 1; computed once while the encoder is frozen."""
        if not self.frozen:
            return self.encoder(self._placed(self.encoder.tokenize([""])))
        if self._null is None:
            with torch.no_grad():
                self._null = self.encoder(self._placed(self.encoder.tokenize([""])))
        self._null = self._placed(self._null)
        return self._null

    def cond(self, captions: Sequence[str]) -> Cond:
        """Captions → conditions."""
        return self(self._placed(self.encoder.tokenize(captions)))

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where the encoder is."""
        device = next((parameter.device for parameter in self.encoder.parameters()), None)
        return {name: value if device is None else value.to(device) for name, value in tensors.items()}
