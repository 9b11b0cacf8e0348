"""Locks of a run folder: one command at a time, and one worker, which may outlive a killed command."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WORKER = ".worker.lock"


@contextmanager
def one_command(run: Path) -> Iterator[None]:
    """Hold a run for a command; UserError where another has it."""
    with _held(run, ".lock", "another run is at work here", "Wait for it or stop it"):
        yield


@contextmanager
def one_worker(run: Path) -> Iterator[None]:
    """Hold a run for whoever writes or deletes a step's folder; UserError where a worker has it."""
    with _held(run, _WORKER, "a step of an earlier run is still at work here", "Wait for it"):
        yield


def need_no_worker(run: Path) -> None:
    """UserError where a worker of a killed command is left: nothing may be written or deleted under its hands."""
    if (run / _WORKER).exists():
        with one_worker(run):
            pass


@contextmanager
def _held(run: Path, name: str, what: str, mend: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(run / name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(what, where=str(run), mend=mend) from error
    try:
        yield
    finally:
        lock.release()
