"""Runs that torchrun started: the first process leads, each other one lends a worker to steps that train.

    torchrun --nproc-per-node 8 -m dit_compress run recipe.yaml

Every process is a command line without torch work of its own. The first walks through the recipe as always. At
a step with ``world: all`` it names the step's folder in torchrun's key-value store, and every command line starts
the step's worker on its device; at any other step the rest wait. Where one worker ends badly all end: what each
came to is in the store, and the first says once what happened.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

STOPPED = 75
"""Exit status of a step that saved itself on SIGTERM or SIGUSR1 (EX_TEMPFAIL)."""
ABANDONED = 76
"""Exit status of a worker whose peer went away: the reason is the peer's."""
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_POLL_S = 0.1
_LONG = timedelta(days=1)


def processes() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if all(name in os.environ for name in TORCHRUN) else 1


def default_threads() -> int:
    """Return the CPU threads for each process of this machine."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def worker_command(folder: Path) -> list[str]:
    """Return the command that runs a step."""
    return [sys.executable, "-P", "-m", "dit_compress.run.worker", str(folder)]


def environment(threads: int, *, alone: bool) -> dict[str, str]:
    """Return a worker's environment; without torchrun's variables where it works alone."""
    kept = {name: value for name, value in os.environ.items() if not (alone and name in TORCHRUN)}
    numbers = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # cuBLAS is deterministic with a workspace of fixed size alone.
    return {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **kept,
        **numbers,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


class Crew:
    """The command lines that torchrun started, as one of them sees it."""

    def __init__(self) -> None:
        from torch.distributed import PrefixStore, TCPStore
        from torch.distributed.rendezvous import rendezvous

        # Where no torchrun holds the store, the first process does; then it lives as long as this object.
        self._met, self.rank, self.size = next(iter(rendezvous("env://", timeout=_LONG)))
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=_LONG)  # as workers see it, without torchrun's prefix
        # After a restart by torchrun nothing of the first attempt may be taken for an answer.
        self.attempt = f"dit_compress/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store: Any = PrefixStore(self.attempt, store)
        self.number = 0

    # -- the first

    def group(self) -> str:
        """Return a name for the messages of the next step."""
        return f"{self.attempt}/step/{self.number}"

    def lead(self, folder: Path, threads: int, step: str) -> int:
        """Run a step on every process; its exit status. UserError where a process ended badly."""
        number, self.number = self.number, self.number + 1
        self.store.set(f"order/{number}", json.dumps({"folder": str(folder), "threads": threads}))
        self._work(number, folder, threads)
        ends = [self._end(number, rank) for rank in range(self.size)]
        return _verdict(ends, step, folder)

    def dismiss(self, status: int) -> None:
        """Send the others home with an exit status."""
        self.store.set(f"order/{self.number}", json.dumps({"status": status}))
        for rank in range(1, self.size):  # torchrun's store may be ours: stay until everyone has read it
            _wait_for(self.store, f"gone/{rank}", most_s=10)

    # -- the others

    def follow(self) -> int:
        """Do what the first says until it ends; the exit status it gives."""
        for number in count():
            _wait_for(self.store, f"order/{number}")
            order = json.loads(self.store.get(f"order/{number}"))
            if "status" in order:
                self.store.set(f"gone/{self.rank}", "1")
                return order["status"]
            self._work(number, order["folder"], order["threads"])
        raise AssertionError

    # -- both

    def _work(self, number: int, folder: Any, threads: int) -> None:
        """Run a worker to its end, or to another's."""
        process = subprocess.Popen(worker_command(folder), env=environment(threads, alone=False))  # noqa: S603
        restore = pass_signals_to(process.send_signal)
        try:
            while process.poll() is None:
                if self.store.add(f"failed/{number}", 0):
                    process.kill()
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
            restore()
        status = process.returncode
        came_first = status not in (0, STOPPED) and self.store.add(f"failed/{number}", 1) == 1
        end = {"status": status, "rank": self.rank, "host": socket.gethostname(), "first": came_first}
        self.store.set(f"end/{number}/{self.rank}", json.dumps(end))

    def _end(self, number: int, rank: int) -> dict[str, Any]:
        _wait_for(self.store, f"end/{number}/{rank}")
        end = json.loads(self.store.get(f"end/{number}/{rank}"))
        message = f"step/{number}/error/{rank}"
        return {**end, "message": self.store.get(message).decode() if self.store.check([message]) else ""}


def _verdict(ends: Sequence[dict[str, Any]], step: str, folder: Path) -> int:
    explained = [end for end in ends if end["message"]]
    if explained:
        sys.stderr.write(f"{explained[0]['message']}\n")
        return 2
    failed = [end for end in ends if end["status"] not in (0, STOPPED, ABANDONED)]
    if failed:
        # One that was killed from outside came before those that this file killed for it.
        end = next((end for end in failed if end["first"]), failed[0])
        raise UserError(
            f"step {step!r}: process {end['rank']} of {len(ends)}, on {end['host']}, {how_it_ended(end['status'])}; "
            "all were stopped",
            where=str(folder),
            mend="The same command continues from the last checkpoint",
        )
    return max(end["status"] for end in ends)


def how_it_ended(status: int) -> str:
    """Put an exit status into words."""
    if status == -signal.SIGKILL:
        return "was killed (signal 9), as a machine does that runs out of memory"
    if status < 0:
        return f"was ended by signal {-status}"
    return f"ended with status {status}"


def pass_signals_to(send: Callable[[int], None]) -> Any:
    """Pass a SIGTERM or SIGUSR1 to us on to a worker; call the result to end that."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda n, _: send(n)) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def _wait_for(store: Any, key: str, most_s: float = float("inf")) -> None:
    end = time.monotonic() + most_s
    with suppress(TimeoutError):
        while not store.check([key]) and time.monotonic() < end:
            time.sleep(_POLL_S)
