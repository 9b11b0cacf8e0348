"""A step in a fork of the command that runs it, which has its imports behind it.

Where steps take seconds, as on a twin, a process of their own spends most of them on importing torch and diffusers.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dit_compress.run.torchrun import environment, pass_signals_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def forking() -> Iterator[bool]:
    """Tell whether steps can be forks of this process, which has one thread meanwhile: a pool's are not in a fork.

    They can on Linux without a GPU: CUDA does not work in a fork once it was asked for.
    """
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        yield False
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield True
    finally:
        torch.set_num_threads(threads)


def fork(folder: Path, threads: int) -> int:
    """Run the worker of a step's folder; a signal to us goes on to it. Return its exit status."""
    process = multiprocessing.get_context("fork").Process(target=_work, args=(folder, threads))
    process.start()
    restore = pass_signals_to(lambda number: os.kill(process.pid or 0, number))
    try:
        process.join()
    except KeyboardInterrupt:
        process.terminate()
        process.join()
        raise
    finally:
        restore()
    return process.exitcode or 0


def _work(folder: Path, threads: int) -> None:
    from dit_compress.run.worker import main

    os.environ.update(environment(threads, alone=True))
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # what a test or a notebook put there is not a worker's
    sys.exit(main(folder))
