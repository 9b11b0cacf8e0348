"""The data that training reads: pixels, latents and captions, encoded once and cached by content.

The name of a cache is a digest of everything it depends on (the codec's weights, the data manifest),
so a stale one is never read: another digest is another name. Latents and embeddings lie in shards
(``dit_compress.data.shards``); pixels in one array, or they are decoded as they are needed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.core.files import need_space, whole_file
from dit_compress.data.prefetch import ClipStream
from dit_compress.data.samples import to_video
from dit_compress.data.shard_writer import SMALLER, Writing, count_bytes
from dit_compress.model.conditions import IMAGE, encode_first, encode_image
from dit_compress.model.spec import latent_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from dit_compress.data.clips import Clip
    from dit_compress.model.protocols import Codec, TextEncoder
    from dit_compress.model.text import Captions

ENCODE_BATCH = 8
LATENT = "latent"
CPU = torch.device("cpu")


def pixel_cache(path: Path, clips: Sequence[Clip], advance: Callable[[], Any]) -> np.ndarray:
    """Decode all clips once: uint8 ``[N,F,Y,X,3]``, memory-mapped; raise a UserError where the disk is too small."""
    if not path.is_file():
        each = 3 * clips[0].frames * math.prod(clips[0].size)
        need_space(path, len(clips) * each, f"the pixels of {len(clips)} clips", SMALLER)
        _fill(path, len(clips), np.uint8, (clip.pixels()[None] for clip in clips), advance)
    return np.load(path, mmap_mode="r")


def encode_latents(
    folder: Path,
    clips: Sequence[Clip],
    codec: Codec,
    made_by: Mapping[str, Any],
    workers: int = 1,
    device: torch.device = CPU,
    names: Sequence[str] = (LATENT,),
    text: TextEncoder | None = None,
) -> Writing:
    """Prepare to encode clips of one size once: float32 ``latent [C,T,H,W]`` each; ``workers`` threads decode ahead.

    device: where ``codec`` is. names: ``latent``, and conditions that are made of a first frame
    (:mod:`dit_compress.model.conditions`). text: the encoder that sees, for ``image``.
    """
    stream = ClipStream(clips, workers)

    def encode(first: int, last: int) -> dict[str, Tensor]:
        stream.prefetch(range(first, min(last + ENCODE_BATCH, len(clips))))
        with torch.no_grad():
            video = to_video(torch.from_numpy(stream[range(first, last)]).to(device))
            return {name: encoded(name, video).float().cpu() for name in names}

    def encoded(name: str, video: Tensor) -> Tensor:
        if name == LATENT:
            return codec.encode(video)
        if name == IMAGE:
            assert text is not None
            return encode_image(text, video[:, :, 0])
        return encode_first(codec, video[:, :, 0], name, video.shape[2])

    size = (codec.channels, *latent_size(clips[0].shape, codec.ratio, codec.frame_rule))
    sight = text.sees if text and text.sees else size
    return Writing(
        folder=folder,
        made_by=made_by,
        samples=[clip.record() for clip in clips],
        identities=[clip.identity() for clip in clips],
        encode=encode,
        batch=ENCODE_BATCH,
        bytes_per_sample=count_bytes([sight if name == IMAGE else size for name in names]),
    )


def encode_captions(
    folder: Path, captions: Sequence[str], text: Captions, made_by: Mapping[str, Any], device: torch.device = CPU
) -> Writing:
    """Prepare to encode captions once by a frozen encoder: what it gives, ``embedding [L,D]`` of its type.

    device: where ``text`` is; an encoder without parameters of its own computes where its tokens are.
    """
    kept = {"float32": torch.float32, "bfloat16": torch.bfloat16}[text.encoder.embeddings]

    def encode(first: int, last: int) -> dict[str, Tensor]:
        tokens = {name: value.to(device) for name, value in text.encoder.tokenize(captions[first:last]).items()}
        with torch.no_grad():
            encoded = text.encoder(tokens)
        return {
            name: value.to(kept if name.startswith("embedding") else torch.float32).cpu()
            for name, value in encoded.items()
        }

    length, width = next(iter(text.encoder.tokenize([""]).values())).shape[1], text.encoder.width
    return Writing(
        folder=folder,
        made_by=made_by,
        samples=[{"caption": caption} for caption in captions],
        identities=list(captions),
        encode=encode,
        batch=ENCODE_BATCH,
        bytes_per_sample=count_bytes([(length, width)], kept.itemsize) + count_bytes([(length,)]),
    )


def _fill(path: Path, total: int, dtype: Any, parts: Any, advance: Callable[[], Any]) -> None:
    """Write consecutive parts into one .npy file that appears when it is whole.

    Written, not mapped: a full disk kills a process that writes through a map.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as handle:
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
