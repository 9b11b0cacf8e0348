"""The fork server of the tests: what commands and processes of their own need is imported in it once.

There is one in each process of pytest, and whoever asks first decides what it imports; so all ask here. Nothing is
computed in it: a fork is as good as a fresh process.
"""

from __future__ import annotations

import inspect
import multiprocessing
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerContext

RELEASED = {"dit_compress", "dit_compress_plugins", "diffusers", "torch", *sys.stdlib_module_names}
PLUGINS = Path(__file__).parents[1] / "plugins" / "dit_compress_plugins"
MODULES = (
    # libraries, and what they import when they are used first
    "torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.profiler", "torch.utils.flop_counter",
    "accelerate", "av", "diffusers.hooks", "diffusers.loaders.peft", "einops._torch_specific", "matplotlib.backends.backend_svg",
    "matplotlib.figure", "peft", "PIL.Image", "safetensors.numpy", "scipy.ndimage", "scipy.optimize", "scipy.sparse.csgraph",
    "torch.distributed.run", "torch.profiler._cupti_monitor",
    # commands and workers
    "dit_compress.cli.app", "dit_compress.export.check_early", "dit_compress.export.step", "dit_compress.report.page",
    "dit_compress.run.base", "dit_compress.run.changes", "dit_compress.run.costs", "dit_compress.run.pipeline",
    "dit_compress.run.plan", "dit_compress.run.worker", "dit_compress.structure.files.standalone", "dit_compress.testing.models", "dit_compress.testing.steps", "dit_compress.train.loop",
    # parts of the recipes
    "dit_compress_plugins.data_shapes.data", "dit_compress_plugins.discriminator_dit_block.discriminator",
    "dit_compress_plugins.distill_adversarial.distiller", "dit_compress_plugins.distill_affine.distiller",
    "dit_compress_plugins.distill_flow.distiller", "dit_compress_plugins.evaluate_latency.step",
    "dit_compress_plugins.evaluate_reconstruction.step", "dit_compress_plugins.evaluate_shapes.step",
    "dit_compress_plugins.export_diffusers.step", "dit_compress_plugins.latent_video_vae.step",
    "dit_compress_plugins.model_video_dit.adapter", "dit_compress_plugins.prune_trilevel.step",
    "dit_compress_plugins.search_groupwise.search", "dit_compress_plugins.search_taylor.search",
    "dit_compress_plugins.text_words.encoder",
    "dit_compress_plugins.tracker_jsonl.tracker",
    # every plugin, of which each command asks the options
    *(f"dit_compress_plugins.{path.parent.name}" for path in PLUGINS.glob("*/__init__.py")),
)  # fmt: skip


def forkserver() -> ForkServerContext:
    """Where processes are made; the server starts with the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES))
    return context


def share_structures(change: Callable[[object, str, object], None] = setattr) -> None:
    """Store what is observed of a class for every process of this run.

    Code does not change meanwhile, so what is loaded is no part of a name, as it is for users: here more and more is.
    Files of tests are named by what is in them: several may have one module's name.
    """
    from dit_compress.core.files import sha256_file
    from dit_compress.structure.observe import stored

    def sources(kinds: set[type]) -> list[list[str]]:
        own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in RELEASED]
        if any("<locals>" in kind.__qualname__ for kind in own):
            raise TypeError("a class that a function of a test makes depends on more than its name")
        files = sorted({inspect.getfile(kind) for kind in own})
        return [[file, sha256_file(Path(file))] for file in files]

    change(stored, "_sources", sources)
    change(stored, "WORTH_SECONDS", 0.02)
    change(stored, "MOST", 10_000)
