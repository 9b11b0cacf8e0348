"""``dit-compress encode``: a recipe's clips as latents in shards, on one machine or many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dit_compress.core.errors import UserError
from dit_compress.core.files import disk_errors
from dit_compress.core.progress import progress
from dit_compress.data.encode import encode_latents
from dit_compress.data.shard_writer import write_shards
from dit_compress.data.shards import Shards
from dit_compress.data.source import data_folder
from dit_compress.model.bundle import Bundle
from dit_compress.model.paths import resolve_bundle
from dit_compress.step.world import World

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.recipe.model import Recipe


def encode_data(recipe: Recipe, vae: Path, out: Path, *, rank: int = 0, world: int = 1) -> str:
    """Encode the clips of both splits by a bundle's VAE into ``out``.

    Args:
        recipe: its ``data`` says which clips.
        vae: a bundle, or a run folder.
        out: the folder; what is whole in it is kept. Machines that share it write different shards.
        rank: which machine this is.
        world: how many there are.

    Returns:
        What was done, in a sentence.
    """
    from filelock import FileLock

    if rank >= world:
        raise UserError(f"rank {rank} of {world}", mend=f"Give a rank from 0 to {world - 1}")
    if recipe.data is None:
        raise UserError("the recipe has no data", where=recipe.path, mend="Name a 'data' source in the recipe")
    bundle = Bundle.open(resolve_bundle(vae))
    source, cache = recipe.data.build(), data_folder(out / "source", recipe.data)
    with disk_errors(out):
        cache.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "source" / ".lock"):
        source.prepare(cache)
    clips = [*source.clips(cache, "train"), *source.clips(cache, "test")]
    made_by = {"vae": bundle.digest("latent")}
    if (out / "index.json").is_file():
        Shards(out).need(made_by)
    device, codec = World.alone().device, cast("Any", bundle.codec())
    writing = encode_latents(out, clips, codec.to(device), made_by, workers=source.workers, device=device)
    with progress("encoding", len(writing.samples)) as advance:
        whole = write_shards(writing, advance, rank=rank, world=world)
    if whole:
        return f"{len(Shards(out))} samples in {out}"
    return f"the share of rank {rank} is in {out}; others are still missing"
