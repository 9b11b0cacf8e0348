"""``dit-compress encode``: a recipe's clips as latents in shards, on one machine or many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dit_compress.cli.options import PluginFiles, load_recipe
from dit_compress.core.errors import UserError
from dit_compress.core.files import disk_errors, need_place
from dit_compress.core.progress import progress
from dit_compress.plugin import defaults

if TYPE_CHECKING:
    from dit_compress.model.bundle import Bundle
    from dit_compress.recipe.model import Recipe


def encode(
    recipe: Annotated[Path, typer.Argument(help="A recipe; its data is encoded.")],
    vae: Annotated[Path, typer.Option(help="A bundle with the VAE, or a run folder (its last bundle).")],
    out: Annotated[Path, typer.Option(help=f"The folder for the shards; data: {{use: {defaults.ENCODED}}} reads it.")],
    rank: Annotated[int, typer.Option(min=0, help="Which share of the shards to write …")] = 0,
    world: Annotated[int, typer.Option(min=1, help="… of how many; one machine each.")] = 1,
    plugin: PluginFiles = None,
) -> None:
    """Encode a recipe's clips once, into shards that other runs read; goes on where it was broken off."""
    typer.echo(encode_data(load_recipe(recipe, plugin), vae, out, rank=rank, world=world))


def encode_data(recipe: Recipe, vae: Path, out: Path, *, rank: int = 0, world: int = 1) -> str:
    """Encode the clips of both splits by a bundle's VAE into ``out``.

    Args:
        recipe: its ``data`` says which clips.
        vae: a bundle, or a run folder.
        out: the folder; what is whole in it is kept. Machines that share it write different shards. Clips of several
            sizes get a folder below for each size.
        rank: which machine this is.
        world: how many there are.

    Returns:
        What was done, in a sentence.
    """
    from filelock import FileLock

    from dit_compress.data.buckets import buckets_of, folder_of
    from dit_compress.data.encode import LATENT, encode_latents
    from dit_compress.data.shard_writer import write_shards
    from dit_compress.data.shards import INDEX, Shards
    from dit_compress.data.source import data_folder
    from dit_compress.model.bundle import Bundle
    from dit_compress.model.conditions import IMAGE
    from dit_compress.step.world import World

    need_place(out, "folder")
    if rank >= world:
        raise UserError(f"rank {rank} of {world}", mend=f"Give a rank from 0 to {world - 1}")
    if recipe.data is None:
        raise UserError("the recipe has no data", where=recipe.path, mend="Name a 'data' source in the recipe")
    bundle = Bundle.open(vae)
    source, cache = recipe.data.build(), data_folder(out / "source", recipe.data)
    with disk_errors(out):
        cache.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "source" / ".lock"):
        source.prepare(cache)
    clips = [*source.clips(cache, "train"), *source.clips(cache, "test")]
    names = [LATENT, *_firsts(recipe, bundle)]
    text = cast("Any", bundle.text()) if IMAGE in names else None
    made_by = {"vae": bundle.latents, **({"names": names} if names != [LATENT] else {})}
    made_by |= {"weights": text.digest()} if text else {}
    buckets = buckets_of(clips)
    folders = {folder_of(out, shape, len(buckets)): places for shape, places in buckets.items()}
    for folder in folders:
        if (folder / INDEX).is_file():
            Shards(folder).need(made_by)
    device, codec = World.alone().device, cast("Any", bundle.codec())
    whole = []
    with progress("encoding", len(clips)) as advance:
        for folder, places in folders.items():
            some = [clips[place] for place in places]
            writing = encode_latents(folder, some, codec.to(device), made_by, source.workers, device, names, text)
            whole.append(write_shards(writing, advance, rank=rank, world=world))
    if all(whole):
        return f"{sum(len(Shards(folder)) for folder in folders)} samples in {out}"
    return f"the share of rank {rank} is in {out}; others are still missing"


def _firsts(recipe: Recipe, bundle: Bundle) -> tuple[str, ...]:
    """Return what the data asks for of first frames: what the bundle's model takes; without one both latents."""
    from dit_compress.model.conditions import FIRST, FIRST_PADDED, first_conditions
    from dit_compress.plugin.options import VideoOptions

    options = recipe.data.options if recipe.data else None
    if not (isinstance(options, VideoOptions) and options.first_frame):
        return ()
    return (FIRST, FIRST_PADDED) if bundle.spec.denoiser is None else first_conditions(bundle.spec.outline())
