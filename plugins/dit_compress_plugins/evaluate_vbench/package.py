"""Run the package ``vbench`` beside us, on weights that are there already."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Set for the processes that drew together; VBench's is alone."""

INSTALL = "Install vbench beside an older torch, measure the videos there, and give 'results'"


def need_package() -> None:
    """Raise a UserError where the package, its weights or a GPU are not there: nothing is downloaded here."""
    if find_spec("vbench") is None:
        raise UserError("'measure' needs the package vbench", mend=INSTALL)
    if not any(weights().glob("*")):
        mend = "Fetch them as VBench's pretrained/ says, or set VBENCH_CACHE_DIR"
        raise UserError("VBench's weights are not there", where=str(weights()), mend=mend)
    if not torch.cuda.is_available():
        raise UserError("VBench measures on a GPU, and none is here", mend=INSTALL)


def weights() -> Path:
    """Return the folder in which VBench looks for its models."""
    return Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")


def measure(videos: Path, results: Path, dimensions: Sequence[str]) -> None:
    """Measure each dimension that has no result file yet, in a process of its own without the network."""
    own = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    offline = {**own, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for dimension in dimensions:
        place = results / dimension
        if any(place.glob("*_eval_results.json")):
            continue
        command = [sys.executable, "-m", "vbench.launch.evaluate", "--dimension", dimension]
        command += ["--videos_path", str(videos), "--output_path", str(place), "--load_ckpt_from_local", "True"]
        place.mkdir(parents=True, exist_ok=True)
        ended = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)  # noqa: S603 - our own words and paths
        if ended.returncode or not any(place.glob("*_eval_results.json")):
            last = (ended.stderr.strip().splitlines() or ["it wrote no result"])[-1]
            raise UserError(f"VBench ended without {dimension}: {last}", where=str(place), mend=INSTALL)
