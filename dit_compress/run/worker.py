"""The process of one step: ``python -m dit_compress.run.worker FOLDER`` with a job.json in it."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.ending import keep_garbage
from dit_compress.core.errors import UserError
from dit_compress.core.files import full_disk, publish, read_json, write_json
from dit_compress.core.progress import hush
from dit_compress.model.bundle import Bundle
from dit_compress.model.paths import bundle_of
from dit_compress.plugin import defaults
from dit_compress.plugin.registry import installed, use
from dit_compress.recipe import load, make_part
from dit_compress.recipe.model import PARTIAL
from dit_compress.run.keys import lineage_entry, nodes
from dit_compress.run.locks import one_worker
from dit_compress.run.torchrun import ABANDONED, STOPPED

if TYPE_CHECKING:
    from dit_compress.recipe.model import Recipe
    from dit_compress.run.keys import Node
    from dit_compress.step.context import Context, Result
    from dit_compress.step.world import World


def main(folder: Path) -> int:
    """Run the job; exit status 0 done, 2 a user's mistake, 75 stopped and resumable, 76 another process ended.

    130 where the command was interrupted, too, and says so.
    """
    try:
        return _run(folder)
    except KeyboardInterrupt:
        return 130


def _run(folder: Path) -> int:
    from dit_compress.step.workplace import Stopped
    from dit_compress.step.world import Done, World

    hush()
    keep_garbage()
    job = read_json(folder / "job.json")
    world = World.join(job["group"]) if job.get("group") else World.alone()
    try:
        registry = use(job["plugin_files"])
        recipe = load(Path(job["run"]) / "recipe.yaml", registry)
        node = next(node for node in nodes(recipe) if node.name == job["name"])
        with one_worker(Path(job["run"])) if not world.rank else nullcontext(), full_disk(folder):
            started = time.perf_counter()
            context = _context(job, recipe, node, folder, world)
            result = node.build().run(context)
            # Here the first process is alone: a step that did not train had nothing for the others to do.
            if not world.rank:
                _finish(folder, job, node, context, result, time.perf_counter() - started)
    except Stopped:
        return STOPPED
    except Done:
        return 0
    except UserError as error:
        world.tell(str(error)) if world.size > 1 else sys.stderr.write(f"{error}\n")
        return 2
    except RuntimeError as error:
        if not world.broke(error):
            raise
        return ABANDONED
    return 0


def _context(job: dict[str, Any], recipe: Recipe, node: Node, folder: Path, world: World) -> Context:
    import torch

    from dit_compress.step.context import Context

    torch.set_num_threads(job["threads"])
    run = Path(job["run"])
    record = lineage_entry(
        node,
        key=job["key"],
        inputs=job["input_keys"],
        sources=job["sources"],
        seed=recipe.seed,
        device=world.device_name(),
    )
    context = Context(
        name=node.name,
        seed=recipe.seed,
        folder=folder,
        cache=run / "cache",
        bundles={slot: Bundle.open(bundle_of(run, source)) for slot, source in node.inputs.items()},
        names=dict(node.inputs),
        parts=dict(recipe.shared),
        record=record,
        video=recipe.video,
        manifest_digest=job["manifest"],
        licence=recipe.licence,
        trackers=recipe.trackers or (make_part("tracker", defaults.TRACKER, installed()),),
        world=world,
    )
    context.stopping.catch_signals()
    torch.manual_seed(recipe.seed)  # for the first weights of new modules; all else draws from the streams
    return context


def _finish(folder: Path, job: dict[str, Any], node: Node, context: Context, result: Result, seconds: float) -> None:
    from dit_compress.model.figures import describe

    record = {
        "key": job["key"],
        "name": node.name,
        "kind": node.kind,
        "parts": node.describe(),
        "inputs": dict(node.inputs),
        "read": {slot: bundle.digest() for slot, bundle in context.bundles.items()},
        "sources": job["sources"],
        "metrics": result.metrics,
        "files": result.files,
        **_shown(node, context),
        "model": describe(result.bundle.spec) if result.bundle else None,
        "bundle": result.bundle.digest() if result.bundle else None,
        "seconds": round(seconds, 2),
        "notes": context.notes,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": context.record["threads"],
    }
    write_json(folder / "step.json", record)
    (folder / "job.json").unlink()
    publish(folder, folder.with_name(folder.name.removesuffix(PARTIAL)))


def _shown(node: Node, context: Context) -> dict[str, str | None]:
    """Return what the report looks for: the metrics that say how good, and the file of the curves."""
    step = node.parts.get("step")
    quality = step.plugin.quality if step else None
    return {
        "quality": quality,
        "headline": (step.plugin.headline if step else None) or quality,
        "curves": next((part.plugin.curves for part in context.trackers if part.plugin.curves), None),
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
