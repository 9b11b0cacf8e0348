"""Components that take inputs of several shapes: one size of video each, the weights in common."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dit_compress.core.errors import UserError
from dit_compress.model.spec import latent_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dit_compress.export.types import Component
    from dit_compress.model.protocols import Codec
    from dit_compress.model.spec import Spec

OWN = ""
"""Name of the size that a component's ``inputs`` have."""
MAIN = "main"
"""The same in manifests and files."""
Video = tuple[int, int, int]
_KNOWN: WeakKeyDictionary[Component, dict[str, Component]] = WeakKeyDictionary()


def size_name(video: Video) -> str:
    """``video_9x64x96`` for 9 frames of 64 × 96 pixels."""
    return "video_" + "x".join(map(str, video))


def by_size(component: Component) -> dict[str, Component]:
    """A component of one size for each; its own, named ``""``, comes first.

    The same objects at every call: each is traced once.
    """
    if component not in _KNOWN:
        _KNOWN[component] = {
            name: replace(component, inputs=inputs, more={}, sizes={}) for name, inputs in component.sizes.items()
        }
    return {OWN: component, **_KNOWN[component]}


def with_sizes(component: Component, latents: Mapping[str, Tensor]) -> Component:
    """The component with further latents ``[1,C,T,H,W]``, all other inputs as they are."""
    sizes = {name: {**component.inputs, "latent": latent} for name, latent in latents.items()}
    return replace(component, sizes=sizes)


def shapes_of(inputs: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Shapes by name."""
    return {name: list(value.shape) for name, value in inputs.items()}


def further(videos: Sequence[Video], own: Video | None) -> list[Video]:
    """The sizes that are not the recipe's own, each once."""
    return [video for video in dict.fromkeys(videos) if video != own]


def need_fitting(videos: Sequence[Video], spec: Spec) -> None:
    """UserError that names every video whose size does not fit the VAE."""
    if not videos:
        return
    codec: Codec = spec.codec()
    problems = []
    for video in videos:
        try:
            latent_size(video, codec.ratio, codec.frame_rule)
        except UserError as error:
            _, what, mend = error.problems[0]
            problems.append(UserError(what, where=f"sizes: {list(video)}", mend=mend))
    if problems:
        raise UserError.join(problems)
