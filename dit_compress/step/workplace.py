"""A place for work, in a run or without one: the processes, a folder, a seed, and the one to notify."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.step.world import World

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(kw_only=True)
class Workplace:
    """The surroundings of pruning, and of a search that needs no data.

    name: of the step. seed: of everything drawn. folder: the step's own. notes: lines printed so far.
    """

    name: str
    seed: int
    folder: Path
    world: World = field(default_factory=World)
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print a line for whoever runs this, and keep it in the step's record."""
        if not self.world.rank:
            self.notes.append(text)
            sys.stderr.write(f"{self.name}: {text}\n")


class Stopped(Exception):  # noqa: N818 - not an error: the step saved itself and can be continued
    """SIGTERM or SIGUSR1 came; the checkpoint is written."""


@dataclass
class Stopping:
    """The request to stop. saves_itself: a training loop is at work, which writes a checkpoint first."""

    asked: bool = False
    saves_itself: bool = False

    def catch_signals(self) -> None:
        """Let SIGTERM and SIGUSR1 stop the step: a training loop saves itself first, anything else just ends."""

        def ask(_number: int, _frame: Any) -> None:
            self.asked = True
            if not self.saves_itself:
                raise Stopped

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGUSR1, ask)

    def leave_if_asked(self) -> None:
        """Raise :class:`Stopped` after a checkpoint, where a signal asked for it."""
        if self.asked:
            raise Stopped
