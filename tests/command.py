"""``dit-compress`` as a process of its own that starts in milliseconds, and can be told where to die.

A command is a fork of the fork server (``warm``) in a new process group, and each worker that the command starts a
fork of that. None of them reaches another machine (``network``). ``real`` runs the installed script instead; ``torchrun``
has torch's launcher start two commands.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import network
from warm import forkserver, share_structures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.context import ForkServerProcess

    import pytest

SMOKE = Path(__file__).parent / "recipes" / "smoke.yaml"
BEGINNING = SMOKE.read_text("utf-8").partition("  - evaluate: {use: reconstruction")[0]
"""Its first steps, base and VAE: planned in a moment, as no structure is looked for."""
SCRIPT = Path(sys.executable).with_name("dit-compress")


@dataclass(frozen=True)
class Die:
    """Where a step's worker ends: at the ``nth`` call of ``function``, ``after`` it or before.

    ``by``: SIGKILL takes the whole process group at once; SIGTERM goes to the command, as a scheduler sends it.
    ``rank``: of the processes of torchrun that one alone, and SIGKILL takes the worker alone.
    """

    step: str
    function: str
    nth: int = 1
    after: bool = True
    by: signal.Signals = signal.SIGKILL
    rank: int | None = None


@dataclass(frozen=True)
class Done:
    """How a command ended: exit status (negative: the signal) and everything printed."""

    status: int
    printed: str


@dataclass(frozen=True)
class Started:
    """A command at work."""

    process: ForkServerProcess
    log: Path


def start(
    *arguments: str | Path,
    log: Path,
    die: Die | None = None,
    site: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Started:
    """Start ``dit-compress ARGUMENTS``; its output goes into ``log``.

    site: comes first on the module path. env: beyond this process' environment.
    """
    given = [str(argument) for argument in arguments]
    more = (str(site) if site else None, dict(env or {}))
    log.unlink(missing_ok=True)
    process = forkserver().Process(target=_command, args=(given, str(log), die, *more))
    process.start()
    return Started(process, log)


def torchrun(*arguments: str | Path, log: Path, die: Die | None = None) -> Started:
    """Start ``torchrun --nproc-per-node 2 -m dit_compress ARGUMENTS``; torch's own launcher, whose processes are forks."""
    process = forkserver().Process(target=_torchrun, args=([str(argument) for argument in arguments], str(log), die))
    process.start()
    return Started(process, log)


def finish(started: Started, timeout_s: float = 900) -> Done:
    """Wait for a command."""
    started.process.join(timeout_s)
    printed = started.log.read_text()
    assert started.process.exitcode is not None, f"still at work after {timeout_s} s: {printed}"
    assert network.SAID not in printed, printed
    return Done(started.process.exitcode, printed)


def real(*arguments: str | Path, **more: Any) -> Done:
    """Run the installed script."""
    made = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=900, **more)
    return Done(made.returncode, made.stdout + made.stderr)


PROGRESS = ("reading ", "observing ", "pruning ", "proving ", "writing ")


def quiet(printed: str) -> str:
    """Without the lines that say what a command is at."""
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith(PROGRESS))


def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: Any) -> tuple[int, str, str]:
    """The command in this process: exit status, output, errors."""
    from dit_compress.cli import app as cli

    monkeypatch.setattr(sys, "argv", ["dit-compress", *map(str, words)])
    try:
        cli.main()
        status: Any = 0
    except SystemExit as left:
        status = left.code
    return status, *capsys.readouterr()


def _command(arguments: list[str], log: str, die: Die | None, site: str | None, env: dict[str, str]) -> None:
    """In the fork: become the command."""
    os.environ.update(env)
    _become(log)
    if site is not None:
        sys.path.insert(0, site)
    _fork_workers(die)
    from dit_compress.cli import app as cli

    sys.argv = ["dit-compress", *arguments]
    cli.main()


def _torchrun(arguments: list[str], log: str, die: Die | None) -> None:
    """In the fork: become the launcher."""
    _become(log)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess_handler.Popen = lambda args, env, **_: _Fork(lambda: _rank(args, env, log, die))
    sys.argv = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "dit_compress", *arguments]
    run.main()


def _become(log: str) -> None:
    """Begin a session of one's own that writes into ``log``."""
    gc.freeze()  # what the server imported is looked through, and with that copied, by no fork
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it, and a shell may have before
    network.shut()
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


def _fork_workers(die: Die | None) -> None:
    """Make a worker a fork of this process."""
    from dit_compress.run import pipeline, torchrun

    share_structures()
    pipeline.subprocess = torchrun.subprocess = forks(die)


def forks(die: Die | None = None) -> Any:
    """In place of the module ``subprocess``: each worker is a fork of the process that starts it."""
    return SimpleNamespace(Popen=lambda command, env: _Fork(lambda: _work(Path(command[-1]), env, die)))


class _Fork:
    """What ``subprocess.Popen`` would be, as a fork."""

    def __init__(self, become: Callable[[], int]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(become())

    def wait(self, _timeout: float | None = None) -> int | None:
        return self._look(0)

    def poll(self) -> int | None:
        return self._look(os.WNOHANG)

    def _look(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _rank(words: tuple[str, ...], env: dict[str, str], log: str, die: Die | None) -> int:
    """In the fork of the launcher: run the module that it names, with its environment."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(env)
    _become(log)
    _fork_workers(die if die is not None and str(die.rank) == env["RANK"] else None)
    module = words.index("-m") + 1
    sys.argv = list(words[module:])
    try:
        runpy.run_module(words[module], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        return int(left.code or 0)
    except BaseException:  # noqa: BLE001 - as in ``_work``
        traceback.print_exc()
        return 1
    return 0


def _work(folder: Path, env: dict[str, str], die: Die | None) -> int:
    """In the fork of the fork: become a worker."""
    import torch

    from dit_compress.run import worker

    gc.freeze()  # as in ``_command``
    torch.set_num_threads(1)
    torch.set_num_threads = lambda _count: None  # a pool's threads do not go through a fork: a second is waited for forever
    os.environ.update(env)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    if die is not None and folder.name == f"{die.step}.partial":
        _arm(die)
    try:
        return worker.main(folder)
    except BaseException:  # noqa: BLE001 - a fork must not go on with its parent's work
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _arm(die: Die) -> None:
    """Wrap the function so that its nth call ends the process."""
    path, _, name = die.function.rpartition(".")
    module, _, owner_name = path.partition(":")
    owner = getattr(import_module(module), owner_name) if owner_name else import_module(module)
    inner, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == die.nth and not die.after:
            _end(die)
        made = inner(*args, **kwargs)
        if calls[0] == die.nth and die.after:
            _end(die)
        return made

    setattr(owner, name, wrapped)


def _end(die: Die) -> None:
    by = die.by
    if by == signal.SIGKILL:
        os.killpg(0, by) if die.rank is None else os.kill(os.getpid(), by)
    came: list[int] = []
    before: Any = signal.getsignal(by)
    signal.signal(by, lambda number, frame: (before(number, frame), came.append(number)))
    os.kill(os.getppid(), by)
    while not came:
        time.sleep(0.01)
