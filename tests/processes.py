"""A function on several processes that train together, as torchrun would start them: gloo, on this machine."""

from __future__ import annotations

import gc
import os
import traceback
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import TCPStore
from warm import forkserver, share_structures

from dit_compress.step.world import Done, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


Job = tuple[Any, ...]
"""A function, the folder for what it writes, which may not be there yet, and further arguments."""


def together(function: Callable[..., None], folder: Path, size: int = 2, *arguments: Any) -> None:
    """``function(world, folder, *arguments)`` on ``size`` processes; AssertionError with the trace of one that fails."""
    one_after_another([(function, folder, *arguments)], size)


def one_after_another(jobs: Sequence[Job], size: int = 2) -> None:
    """Several of them by the same processes, which meet anew for each: what is imported, traced or found stays."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [forkserver().Process(target=_run, args=(jobs, rank, size, store.port)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(900)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    notes = "\n".join(path.read_text() for job in jobs for path in sorted(job[1].glob("trace-*.txt")))
    assert codes == [0] * size, f"{codes}\n{notes}"


def _run(jobs: Sequence[Job], rank: int, size: int, port: int) -> None:
    gc.freeze()  # as in command
    gc.set_threshold(10_000, 20, 20)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    share_structures()
    for number, (function, folder, *arguments) in enumerate(jobs):
        folder.mkdir(exist_ok=True)
        world = World.join(f"test/{number}")
        try:
            function(world, folder, *arguments)
        except Done:
            pass
        except BaseException:  # noqa: BLE001 - told by the parent
            (folder / f"trace-{rank}.txt").write_text(traceback.format_exc())
            os._exit(1)
        if number + 1 < len(jobs):
            world.leave()
    os._exit(0)
