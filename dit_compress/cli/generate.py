"""``dit-compress generate``: one mp4 from a bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.progress import progress
from dit_compress.data.video import write_video
from dit_compress.model.bundle import Bundle
from dit_compress.run import keys as graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

from dit_compress.step.sampling import Generator


def generate_file(
    caption: str,
    model: Path,
    out: Path,
    sample: Callable[..., Any] | None,
    *,
    num_steps: int | None,
    guidance: float | None,
    frames: int | None,
    size: tuple[int, int] | None,
    fps: float,
    seed: int,
) -> None:
    """One caption, one mp4."""
    bundle = Bundle.open(graph.resolve_bundle(model))
    video = bundle.spec.video
    if frames or size:
        base = video or (17, 0, 0)
        video = (frames or base[0], *(size or base[1:]))
    if video is None:
        raise UserError(
            "the bundle does not say its video size", where=str(bundle.path), mend="Give --frames and --size"
        )
    spec = replace(bundle.spec, video=video)
    channels = spec.codec().channels
    with progress("sampling", 1) as advance:
        generator = Generator(bundle, (channels, *spec.latent_size()), sample)
        pixels = generator([caption], seed=seed, index=[0], num_steps=num_steps, guidance=guidance)
        advance()
    write_video(out, pixels[0], fps)
