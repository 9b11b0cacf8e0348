"""Checkpoints of a training step: tensors in safetensors, scalars in JSON, whole or not at all.

checkpoints/step-00000100/
  shard-00001-model-00001-of-00001.safetensors    one per process: what DCP's safetensors writer gives
  state.json                                      step, key, names and shapes, size and sha256 of every file, its own

Any number of processes reads what any other number wrote.
"""

from __future__ import annotations

import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import SEAL, is_whole, read_json, sealed, sha256_file, whole_folder, write_json
from dit_compress.core.version import REVISION
from dit_compress.train.parallel import is_sharded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from dit_compress.step.world import World

FORMAT = 3
"""Raised when checkpoints are written in another way."""
STATE = "state.json"
_DIGEST = 32


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint, not yet read."""

    place: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """The next step to run."""
        return self.state["step"]

    @property
    def names(self) -> set[str]:
        """Every tensor in it."""
        return set(self.state["tensors"])


def save(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], world: World, keep: set[int]
) -> None:
    """Write the checkpoint of ``step`` (the next step to run); then only those of the steps ``keep`` stay, and it."""
    place = folder / f"step-{step:08d}"
    with _together(place, world) as partial:
        ready = {name: value.detach() for name, value in tensors.items()}
        file = partial / _file_of(world.rank)
        _write(partial, file, ready, world)
        files = _records(file, world)
        if not world.rank:
            head = {"step": step, "format": FORMAT, "engine": REVISION, "processes": world.size}
            shapes = {name: list(value.shape) for name, value in tensors.items()}
            write_state(partial, {**head, **state, "tensors": shapes, "files": files})
    if not world.rank:
        for old in _checkpoints(folder):
            if old != place and step_of(old) not in keep:
                shutil.rmtree(old)


def write_state(place: Path, state: dict[str, Any]) -> None:
    """Write the scalars of a checkpoint and their sha256."""
    write_json(place / STATE, sealed(state))


def steps_in(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, in order."""
    return [step_of(place) for place in _checkpoints(folder)]


def step_of(place: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(place.name.rpartition("-")[2])


def newest(folder: Path, key: str | None, world: World, say: Callable[[str], None]) -> Saved | None:
    """Open the newest whole checkpoint; pass a damaged one over for the one before it, and say so.

    UserError where checkpoints are there and none is whole (a silent fresh start would be a lie), or where
    they are of another recipe or version.
    """
    found = _checkpoints(folder)
    for place in reversed(found):
        saved, problem = opened(place, key, world)
        if saved is not None:
            return saved
        say(f"checkpoint {place.name} is damaged ({problem}); looking for the one before it")
    if found:
        raise UserError(
            "no checkpoint here is whole", where=str(folder), mend=f"Delete {folder} to start the step afresh"
        )
    return None


def opened(place: Path, key: str | None, world: World) -> tuple[Saved | None, str]:
    """Open a checkpoint, or say what is damaged in it; every process checks its share of the files."""
    try:
        state = read_json(place / STATE)
    except UserError as error:
        return None, str(error.problems[0][1])
    if not isinstance(state, dict) or not is_whole(state):
        return None, f"the checksum of {STATE} differs"
    state.pop(SEAL, None)
    if state.get("format") != FORMAT or state.get("engine") != REVISION:
        theirs = f"format {state.get('format', 1)}, engine {state.get('engine', 'unknown')}"
        raise UserError(
            f"written by another version of dit-compress ({theirs}; this is format {FORMAT}, engine {REVISION})",
            where=str(place),
            mend=f"Continue with the version that wrote it, or delete {place.parent} to start the step afresh",
        )
    if state.get("key") != key:
        raise UserError(
            "the checkpoint belongs to another recipe: other options, data or inputs",
            where=str(place),
            mend=f"Delete {place.parent} to start the step afresh",
        )
    problem = ""
    for name in sorted(state["files"])[world.rank :: world.size]:
        problem = problem or _damage(place / name, state["files"][name])
    if world.any(bool(problem)):
        return None, problem or "a file another process looked at"
    return Saved(place, state), ""


def read(saved: Saved, tensors: dict[str, Tensor], world: World) -> None:
    """Fill the tensors from a checkpoint; UserError where a part is missing, left over or of another shape."""
    import torch.distributed.checkpoint as dcp

    shapes = saved.state["tensors"]
    errors = [
        UserError(
            f"the checkpoint's {_words(name)} is missing or of another shape", where=str(saved.place), mend=_AFRESH
        )
        for name, value in tensors.items()
        if shapes.get(name) != list(value.shape)
    ]
    errors += [
        UserError(f"the checkpoint has {_words(name)}, which the step does not", where=str(saved.place), mend=_AFRESH)
        for name in shapes.keys() - tensors.keys()
    ]
    if errors:
        raise UserError.join(errors[:5])
    with _plain_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is not a mistake
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(saved.place)), no_dist=world.size == 1)


_AFRESH = "Delete the folder of checkpoints to start the step afresh"


def _words(name: str) -> str:
    role, slot, key = name.split("/", 2)
    return f"{slot} of {role}.{key}"


def _file_of(rank: int) -> str:
    """Name a file as DCP's safetensors writer names what one process writes."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def _write(partial: Path, file: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Write with DCP's writer, a shard per process; one process writes the same file without DCP's copy in memory."""
    if world.size == 1:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in tensors.items()}, file)
        return
    import torch.distributed.checkpoint as dcp

    # With save_distributed False every process would write the same file, and half of the tensors be gone.
    writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
    ready = {name: value if is_sharded(value) else value.contiguous() for name, value in tensors.items()}
    with _plain_errors():
        dcp.save(ready, storage_writer=writer)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise one process' error on all: DCP wraps it into a BaseException that nobody takes for a full disk."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def _records(file: Path, world: World) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of everyone's file; a process that holds nothing wrote none."""
    row = torch.zeros(1 + _DIGEST, dtype=torch.int64)
    if file.is_file():
        row[0] = file.stat().st_size
        row[1:] = torch.tensor(list(bytes.fromhex(sha256_file(file))))
    rows = world.gather(row).tolist()
    return {
        _file_of(rank): {"bytes": size, "sha256": bytes(digest).hex()}
        for rank, (size, *digest) in enumerate(rows)
        if size
    }


def _damage(path: Path, record: dict[str, Any]) -> str:
    """Say what is wrong with a file, or nothing."""
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != record["bytes"]:
        return f"{path.name} has {path.stat().st_size} bytes, {record['bytes']} were written"
    return "" if sha256_file(path) == record["sha256"] else f"the checksum of {path.name} differs"


@contextmanager
def _together(place: Path, world: World) -> Iterator[Path]:
    """Give a folder that all processes write into, and that appears when each has."""
    if world.rank:
        world.barrier()
        yield place.with_name(f"{place.name}.partial")
        world.barrier()
    else:
        with whole_folder(place) as partial:
            world.barrier()
            yield partial
            world.barrier()
    world.barrier()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.suffix != ".partial")
