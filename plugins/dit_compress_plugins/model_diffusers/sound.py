"""Models of video and sound (LTX-2), taken as models of video: the two towers apart, and silence in the second.

``isolate_modalities`` is the model's own way to do without sound: its pipeline guides by it. What the tower of sound
gives is not looked at, so nothing of it can be chosen, or trained: its widths stay; only whole blocks take it along.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_compress.structure.facts import Structure

TOKENS = 1
"""Of the sound: the class can't be called without any."""
_TOWER = "audio_"
"""Begins the names of the second tower's parts in each block."""


def has_sound(module: Any) -> bool:
    """Tell whether a module has a tower of sound."""
    return "audio_in_channels" in module.config


def silence(call: Any) -> Tensor:
    """Make the latent of no sound, ``[B,1,C]``."""
    return call.zeros(call.batch, TOKENS, call.config.audio_in_channels)


def no_words(call: Any) -> Tensor:
    """Make embeddings of no words, ``[B,1,D]``, for the tower of sound."""
    return call.zeros(call.batch, TOKENS, call.cond["embedding"].shape[-1])


def without_sound(module: nn.Module, found: Structure) -> Structure:
    """Leave the widths of the tower of sound out of what can be removed, where there is one."""
    if not has_sound(module):
        return found
    attentions = tuple(part for part in found.attentions if not _of_sound(part.path))
    feed_forwards = tuple(part for part in found.feed_forwards if not _of_sound(part.path))
    return replace(found, attentions=attentions, feed_forwards=feed_forwards)


def _of_sound(path: str) -> bool:
    return any(name.startswith(_TOWER) for name in path.split("."))
