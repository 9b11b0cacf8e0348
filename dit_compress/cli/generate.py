"""``dit-compress generate``: one mp4 from a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_compress.cli.options import PluginFiles, Seed, finite, registry
from dit_compress.core.errors import UserError
from dit_compress.core.files import need_place
from dit_compress.core.limits import MAX_FPS, MAX_PIXELS
from dit_compress.core.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


def generate(
    caption: Annotated[str, typer.Argument(help="What the video shows.")],
    model: Annotated[Path, typer.Option(help="A bundle, or a run folder (its last bundle).")],
    out: Annotated[Path, typer.Option(help="The mp4 to write.")] = Path("video.mp4"),
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; the bundle's if absent.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1, callback=finite, help="Guidance; the bundle's if absent.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_PIXELS, help="Frames, as the VAE takes them (1 + ratio·k, mostly); the bundle's if absent."
        ),
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(min=1, max=MAX_PIXELS, help="Height and width; the bundle's if absent."),
    ] = None,
    fps: Annotated[float, typer.Option(min=1, max=MAX_FPS, callback=finite)] = 8.0,
    seed: Seed = 0,
    sampler: Annotated[
        str | None, typer.Option(help="A sampler as a recipe names it, {use: …} with options; the bundle's if absent.")
    ] = None,
    first: Annotated[
        Path | None, typer.Option(help="An image (or video) that it begins with, for models that take one.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Make a video from a caption."""
    from dit_compress.model.scene import summed_up
    from dit_compress.recipe import make_part

    need_place(out, "file")
    found = registry(plugin)
    sample = make_part("sampler", named(sampler), found, "--sampler").build().sample if sampler else None
    notes = generate_file(
        caption,
        model,
        out,
        sample,
        num_steps=steps,
        guidance=guidance,
        frames=frames,
        size=size,
        fps=fps,
        seed=seed,
        first=first,
    )
    for name, value in summed_up(notes).items():
        typer.echo(f"{name}: {value:g}")
    typer.echo(out)


def named(sampler: str) -> Any:
    """Return a sampler as a recipe has it: a name, or YAML of a mapping with its options."""
    from dit_compress.recipe.document import parse

    document = parse(f"sampler: {sampler}", "--sampler")
    for error in document.errors.values():
        raise error
    return document.data["sampler"]


def write_made(out: Path, pixels_FYX3: np.ndarray, fps: float) -> None:
    """Write a finished video, into a folder that is made where there is none."""
    from dit_compress.data.video import write_video

    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, pixels_FYX3, fps)


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
    first: Path | None = None,
) -> list[dict[str, float]]:
    """Write one caption's mp4; return what the sampler noted. first: an image that it begins with."""
    from dit_compress.data.clips import Clip
    from dit_compress.data.samples import first_frames
    from dit_compress.model.bundle import Bundle
    from dit_compress.step.sampling import Generator

    bundle = Bundle.open(model)
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
        shown = None if first is None else first_frames([Clip(first, caption, frames=1, size=video[1:])])
        pixels = generator([caption], seed=seed, index=[0], num_steps=num_steps, guidance=guidance, first_BCYX=shown)
        advance()
    write_made(out, pixels[0], fps)
    return generator.notes
