"""The videos that a sampler makes, for samplers that look at what they draw."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dit_compress.model.protocols import Codec
    from dit_compress.model.text import Captions


@dataclass(frozen=True)
class Scene:
    """What is known of the videos of one call of a sampler.

    codec: decodes their latents. captions: one each. text: what their conditions were made with.
    notes: what the sampler says of each video, by name; whoever made the scene shows them.
    """

    codec: Codec
    captions: Sequence[str]
    text: Captions
    notes: list[dict[str, float]] = field(default_factory=list)


def shown(sample: Callable[..., Tensor], scene: Scene) -> Callable[..., Tensor]:
    """Return a sampler's ``sample`` that sees the scene, where it has a parameter of that name; else as it is."""
    given: dict[str, Any] = {"scene": scene} if "scene" in inspect.signature(sample).parameters else {}
    return partial(sample, **given)


def summed_up(notes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average notes over the videos that have them, by name."""
    names = dict.fromkeys(name for note in notes for name in note)
    values = {name: [note[name] for note in notes if name in note] for name in names}
    return {name: sum(some) / len(some) for name, some in values.items()}
