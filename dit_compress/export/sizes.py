"""Components that take inputs of several shapes: one size of video each, the weights in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.model.spec import latent_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dit_compress.model.protocols import Codec
    from dit_compress.model.spec import Spec

MAIN = "main"
"""Name of a component's own size in manifests and files."""
Video = tuple[int, int, int]


def size_name(video: Video) -> str:
    """Return ``video_9x64x96`` for 9 frames of 64 × 96 pixels."""
    return "video_" + "x".join(map(str, video))


def input_shapes(inputs: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return shapes by name."""
    return {name: list(value.shape) for name, value in inputs.items()}


def further(videos: Sequence[Video], own: Video | None) -> list[Video]:
    """Return the sizes that are not the recipe's own, each once."""
    return [video for video in dict.fromkeys(videos) if video != own]


def need_fitting(videos: Sequence[Video], spec: Spec) -> None:
    """Raise a UserError that names every video whose size does not fit the VAE."""
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
