"""Checkpoints of a training step: tensors in safetensors, scalars in JSON, whole or not at all."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from dit_compress.errors import UserError
from dit_compress.files import read_json, sha256_file, whole_folder, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

KEEP = 2
"""How many checkpoints stay; older ones go after a new one is safely written."""


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write the checkpoint of ``step`` (the next step to run), then prune old ones."""
    with whole_folder(folder / f"step-{step:08d}") as place:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, place / "tensors.safetensors")
        digest = sha256_file(place / "tensors.safetensors")
        write_json(place / "state.json", {"step": step, "sha256": digest, **state})
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def load_latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole checkpoint; a damaged one is passed over for the one before it.

    UserError where checkpoints are there and none is whole: a silent fresh start would be a lie.
    """
    found = _checkpoints(folder)
    for place in reversed(found):
        try:
            state = read_json(place / "state.json")
            if sha256_file(place / "tensors.safetensors") == state["sha256"]:
                return state["step"], load_file(place / "tensors.safetensors"), state
        except (UserError, OSError):
            continue
    if found:
        raise UserError(
            "no checkpoint here is whole", where=str(folder), mend=f"Delete {folder} to start the step afresh"
        )
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.suffix != ".partial")
