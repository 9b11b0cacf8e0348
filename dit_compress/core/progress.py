"""Progress bars with rate and remaining time, silent in a pipe; and lines on stderr that say what long work is at."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CHATTER = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Loggers that warn, at every import, of kernels that a CPU has no use for (ExecuTorch brings torchao)."""


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


@contextmanager
def progress(title: str, total: int, done: int = 0, *, silent: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr; call the given function once per unit, optionally with values to show.

    silent: show none, as where another process does.
    """
    if silent or not sys.stderr.isatty():
        yield lambda *_: None
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
            shown = "" if values is None else " ".join(f"{k} {v:.4g}" for k, v in values.items() if k.endswith("loss"))
            bars.update(task, advance=1, rate=rate, shown=shown)

        yield advance
