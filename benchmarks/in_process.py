"""Steps of a recipe in this process, one by one: for benchmarks whose steps are shorter than starting a process."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from dit_compress.core.files import read_json, write_json
from dit_compress.data.source import data_folder
from dit_compress.model.bundle import Bundle
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.context import Context

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.plugin.options import Part


def prepared(cache: Path, data: Part) -> None:
    """Make the clips."""
    folder = data_folder(cache, data)
    folder.mkdir(parents=True, exist_ok=True)
    data.build().prepare(folder)


def step(
    folder: Path, cache: Path, entry: tuple[str, dict[str, Any]], data: Part, seed: int = 0, **bundles: Bundle
) -> tuple[Bundle, dict[str, Any]]:
    """Run one step in a folder, unless its result is there, of the same options, clips, seed and inputs.

    Args:
        folder: the step's own. cache: of clips and latents.
        entry: kind and options.
        data: the clips. seed: of everything drawn.
        bundles: by slot.
    """
    kind, options = entry
    inputs = {slot: bundle.digest() for slot, bundle in bundles.items()}
    about = {"entry": entry, "clips": data.as_data(), "inputs": inputs} | ({"seed": seed} if seed else {})
    made_of = json.loads(json.dumps(about))
    if not (folder / "made_of.json").is_file() or read_json(folder / "made_of.json") != made_of:
        shutil.rmtree(folder, ignore_errors=True)  # checkpoints of something else, too
        folder.mkdir(parents=True)
        write_json(folder / "made_of.json", made_of)
    if not (folder / "figures.json").is_file():
        context = context_of(folder, cache, data, seed, **bundles)
        context.record = {"kind": kind}
        result = make_part(kind, options, installed()).build().run(context)
        write_json(folder / "figures.json", result.metrics)
    return Bundle.open(folder / "bundle"), read_json(folder / "figures.json")


def context_of(folder: Path, cache: Path, data: Part, seed: int = 0, **bundles: Bundle) -> Context:
    """Return the inputs of a step, or of a measurement."""
    options: Any = data.options
    return Context(
        name=folder.name, seed=seed, folder=folder, cache=cache, bundles=bundles, parts={"data": data},
        video=(options.frames, *options.size),
    )  # fmt: skip
