"""Progress bars with rate and remaining time, silent in a pipe; and lines on stderr that say what long work is at."""

from __future__ import annotations

import io
import logging
import sys
import time
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CHATTER = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Loggers that warn, at every import, of kernels that a CPU has no use for (ExecuTorch brings torchao)."""


HEARTBEAT_S = 30.0
"""Between lines where there is no terminal."""

_WORK = logging.getLogger("dit_compress.work")


def speak() -> None:
    """Let a command say on stderr what it is at; in Python it is logged, and shown where somebody asks for it."""
    _WORK.handlers = [logging.StreamHandler(sys.stderr)]
    _WORK.setLevel(logging.INFO)
    _WORK.propagate = False


def say(what: str) -> None:
    """Say in one line what is begun: work of seconds to minutes that has no steps to count."""
    _WORK.info(what)


def hush() -> None:
    """Let libraries log errors only: warnings would stand between the lines of a command."""
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence a library's progress bars, logs below critical ones, warnings and prints; its errors are exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class Heartbeat:
    """Call once per unit: writes ``title: 120/400, 0.8/s, 0:05:50 left`` on stderr each half minute."""

    def __init__(self, title: str, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.title, self.total, self.done, self.clock = title, total, done, clock
        self.first, self.began = done, clock()
        self.said = self.began

    def __call__(self, values: Mapping[str, float] | None = None) -> None:
        """Count a unit, and say so where it is time."""
        self.done += 1
        now = self.clock()
        if now - self.said >= HEARTBEAT_S and self.done < self.total:
            self.said, rate = now, (self.done - self.first) / (now - self.began)
            left = timedelta(seconds=round((self.total - self.done) / rate))
            parts = [f"{self.done}/{self.total}", f"{rate:.2g}/s", f"{left} left", *_losses(values)]
            sys.stderr.write(f"{self.title}: {', '.join(parts)}\n")


@contextmanager
def progress(title: str, total: int, done: int = 0, *, silent: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr; call the given function once per unit, optionally with values to show.

    Where there is no terminal, a line tells of it each half minute. silent: show none, as where another process does.
    """
    if silent:
        yield lambda *_: None
        return
    if not sys.stderr.isatty():
        yield Heartbeat(title, total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}")]
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(title, total=total, completed=done, rate="", shown="")

        def advance(values: Mapping[str, float] | None = None) -> None:
            current = bars.tasks[0]
            rate = f"{current.speed:.1f}/s" if current.speed else ""
            bars.update(task, advance=1, rate=rate, shown=" ".join(_losses(values)))

        yield advance


def _losses(values: Mapping[str, float] | None) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in (values or {}).items() if name.endswith("loss")]
