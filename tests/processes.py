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
    from collections.abc import Callable
    from pathlib import Path


def together(function: Callable[..., None], folder: Path, size: int = 2, *arguments: Any) -> None:
    """``function(world, folder, *arguments)`` on ``size`` processes; AssertionError with the trace of one that fails."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = [(function, folder, rank, size, store.port, arguments) for rank in range(size)]
    started = [forkserver().Process(target=_run, args=one) for one in given]
    for process in started:
        process.start()
    for process in started:
        process.join(900)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    notes = "\n".join(path.read_text() for path in sorted(folder.glob("trace-*.txt")))
    assert codes == [0] * size, f"{codes}\n{notes}"


def _run(function: Any, folder: Path, rank: int, size: int, port: int, arguments: tuple[Any, ...]) -> None:
    gc.freeze()  # as in command
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    share_structures()
    world = World.join("test")
    try:
        function(world, folder, *arguments)
    except Done:
        pass
    except BaseException:  # noqa: BLE001 - told by the parent
        (folder / f"trace-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
