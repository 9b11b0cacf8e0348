"""The two halves of a codec, found by watching which of its tensors encoding and decoding read.

Shapes: video ``[B,3,F,Y,X]``, latent ``[B,C,T,H,W]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.structure.copies import meta_copy
from dit_compress.structure.reads import tensors_read

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dit_compress.model.protocols import Codec

CELLS = 2
"""Latent cells a side of the clip that is watched: a convolution that reflects its edges needs two."""


@dataclass(frozen=True)
class Halves:
    """Names of the tensors that ``encode`` reads, and of those that ``forward`` reads."""

    encoding: frozenset[str]
    decoding: frozenset[str]

    @property
    def decoder(self) -> frozenset[str]:
        """Those that decoding reads and encoding does not: they can change, and every latent stays as it is."""
        return self.decoding - self.encoding


def frame_rule(codec: Codec) -> tuple[int, int]:
    """Return (lead, step) of the videos that a codec takes."""
    return codec.frame_rule or (1, codec.ratio[0])


def latent_frames(codec: Codec, steps: int) -> int:
    """Return the latent frames of a video of ``lead + step·steps`` frames."""
    return 1 + frame_rule(codec)[1] * steps // codec.ratio[0]


@torch.no_grad()
def halves(codec: Any) -> Halves:
    """Watch a codec encode and decode a tiny clip without weights; raise a UserError where it does not run so."""
    probe: Any = meta_copy(codec)
    (lead, step), (_, y, x) = frame_rule(codec), codec.ratio
    video = torch.empty(1, 3, lead + step, CELLS * y, CELLS * x, device="meta")
    latent = torch.empty(1, codec.channels, latent_frames(codec, 1), CELLS, CELLS, device="meta")
    try:
        encoding = tensors_read(probe, lambda: probe.encode(video))
        decoding = tensors_read(probe, lambda: probe(latent))
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise UserError(
            f"{type(codec).__name__} does not run without weights: {str(error).splitlines()[0]}",
            mend="Let its encode and forward compute by tensors alone, without looking at their values",
        ) from error
    return Halves(frozenset(encoding), frozenset(decoding))


def unread(module: nn.Module, read: Iterable[str]) -> list[str]:
    """Return paths of the largest parts of a module that hold tensors, none of which is ``read``."""
    read, found = set(read), list[str]()
    for path, part in module.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        names = [f"{path}.{name}" for name in part.state_dict()]
        if path and names and not inside and not read.intersection(names):
            found.append(path)
    return found


def leave_out(module: nn.Module, paths: Iterable[str]) -> None:
    """Put parts that hold nothing in the place of some parts of a module."""
    for path in paths:
        owner, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Identity())
