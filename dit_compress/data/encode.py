"""What training reads: pixels, latents and captions, encoded once and cached by content.

The name of a cache is a digest of everything it depends on (the codec's weights, the data manifest),
so a stale one is never read: another digest is another name. Latents and embeddings lie in shards
(``dit_compress.data.shards``); pixels in one array, or they are decoded as they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dit_compress.core.files import disk_errors
from dit_compress.data.prefetch import ClipStream
from dit_compress.data.shard_writer import Writing, count_bytes
from dit_compress.model.denoiser import Cond
from dit_compress.model.spec import latent_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dit_compress.data.clips import Clip
    from dit_compress.hooks import Codec

ENCODE_BATCH = 8
CPU = torch.device("cpu")


class Rows(Protocol):
    """Samples' tensors by index: an array, a tensor, a stream of clips, a column of shards."""

    def __getitem__(self, index: Any, /) -> Any:
        """Rows ``[B, …]``."""


class Samples:
    """Training samples by index: clean tensors, captions, and the captions' tokens."""

    def __init__(self, x0: Rows, captions: Sequence[str], tokens: Mapping[str, Rows], *, pixels: bool) -> None:
        self._x0, self._captions, self._tokens, self._pixels = x0, list(captions), dict(tokens), pixels

    def __len__(self) -> int:
        return len(self._captions)

    @property
    def streamed(self) -> bool:
        """Whether clips are decoded as they are asked for."""
        return isinstance(self._x0, ClipStream)

    def prefetch(self, index: Sequence[int]) -> None:
        """Begin to decode clips that will be asked for, where they are streamed."""
        if isinstance(self._x0, ClipStream):
            self._x0.prefetch(index)

    def x0(self, index: Sequence[int]) -> Tensor:
        """Latents ``[B,C,T,H,W]``, or video ``[B,3,F,Y,X]`` in [-1, 1]."""
        taken = _rows(self._x0, index)
        return to_video(taken) if self._pixels else taken

    def captions(self, index: Sequence[int]) -> list[str]:
        """The captions."""
        return [self._captions[i] for i in index]

    def tokens(self, index: Sequence[int]) -> dict[str, Tensor]:
        """The text encoder's tokens (or cached embeddings), leading B."""
        return {name: _rows(value, index) for name, value in self._tokens.items()}


def _rows(source: Rows, index: Sequence[int]) -> Tensor:
    taken = source[np.asarray(index)]
    return torch.from_numpy(taken) if isinstance(taken, np.ndarray) else taken


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


def encode_latents(
    folder: Path,
    clips: Sequence[Clip],
    codec: Codec,
    made_by: Mapping[str, Any],
    workers: int = 1,
    device: torch.device = CPU,
) -> Writing:
    """What it takes to encode clips once: float32 ``latent [C,T,H,W]`` each; ``workers`` threads decode ahead.

    device: where ``codec`` is.
    """
    stream = ClipStream(clips, workers)

    def encode(first: int, last: int) -> dict[str, np.ndarray]:
        stream.prefetch(range(first, min(last + ENCODE_BATCH, len(clips))))
        with torch.no_grad():
            pixels = torch.from_numpy(stream[range(first, last)])
            return {"latent": codec.encode(to_video(pixels.to(device))).float().cpu().numpy()}

    first = clips[0]
    size = latent_size((first.frames, *first.size), codec.ratio, getattr(codec, "frame_rule", None))
    return Writing(
        folder=folder,
        made_by=made_by,
        samples=[clip.record() for clip in clips],
        identities=[clip.identity() for clip in clips],
        encode=encode,
        batch=ENCODE_BATCH,
        bytes_per_sample=count_bytes([(codec.channels, *size)]),
    )


def encode_captions(
    folder: Path, captions: Sequence[str], text: Captions, made_by: Mapping[str, Any], device: torch.device = CPU
) -> Writing:
    """What it takes to encode captions once by a frozen encoder: ``embedding [L,D]`` and ``mask [L]`` each.

    device: where ``text`` is; an encoder without parameters of its own computes where its tokens are.
    """

    def encode(first: int, last: int) -> dict[str, np.ndarray]:
        tokens = {name: value.to(device) for name, value in text.encoder.tokenize(captions[first:last]).items()}
        with torch.no_grad():
            encoded = text.encoder(tokens)
        return {name: encoded[name].float().cpu().numpy() for name in ("embedding", "mask")}

    length, width = next(iter(text.encoder.tokenize([""]).values())).shape[1], text.encoder.width
    return Writing(
        folder=folder,
        made_by=made_by,
        samples=[{"caption": caption} for caption in captions],
        identities=list(captions),
        encode=encode,
        batch=ENCODE_BATCH,
        bytes_per_sample=count_bytes([(length, width), (length,)]),
    )


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
