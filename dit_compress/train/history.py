"""A training step's memory on disk: its checkpoints, those that stay, and the place it goes on from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.train import checkpoint

if TYPE_CHECKING:
    from dit_compress.step.context import Context
    from dit_compress.step.protocols import Tracker
    from dit_compress.train.checkpoint import Saved
    from dit_compress.train.trainee import Trainee


class History:
    """The checkpoints of one training step: the last ``keep`` of them, and the best.

    memory: what the guards have seen; a checkpoint holds it.
    """

    def __init__(self, context: Context, trainees: dict[str, Trainee], keep: int) -> None:
        self.context, self.trainees, self.keep = context, trainees, keep
        context.trainings += 1
        number = f"-{context.trainings}" if context.trainings > 1 else ""
        self.folder = context.folder / f"checkpoints{number}"
        self.best: tuple[float, int] | None = None
        self.memory: dict[str, Any] = {}

    def resume(self) -> int:
        """Take the newest whole checkpoint; the step to go on with, 0 where there is none.

        The loop goes on with the thread count it began with: sums are cut by threads, and their last bits differ.
        """
        saved = checkpoint.newest(self.folder, self._key(), self.context.world, self.context.say)
        if saved is None:
            return 0
        threads, now = saved.state["threads"], torch.get_num_threads()
        if threads != now:
            self.context.say(f"going on with {threads} threads, as the step began ({now} were asked for)")
            torch.set_num_threads(threads)
            self.context.record["threads"] = threads
        if saved.state["processes"] != self.context.world.size:
            self.context.say(
                f"going on in {self.context.world.size} processes; the checkpoint was written by "
                f"{saved.state['processes']}. Results differ from an uninterrupted run by rounding"
            )
        self.best = tuple(saved.state["best"]) if saved.state["best"] else None
        self.memory = saved.state.get("memory", {})
        self._take(saved)
        return saved.step

    def save(self, step: int, score: float | None = None) -> None:
        """Write the checkpoint of ``step``; ``score``: its held-out loss, where it was measured just now."""
        if score is not None and (self.best is None or score < self.best[0]):
            self.best = (score, step)
        tensors = {name: value for trainee in self.trainees.values() for name, value in trainee.tensors().items()}
        state: dict[str, Any] = {
            "key": self._key(),
            "roles": sorted(self.trainees),
            "threads": torch.get_num_threads(),
            "updates": {name: trainee.updates() for name, trainee in self.trainees.items()},
            "best": list(self.best) if self.best else None,
            "memory": self.memory,
        }
        earlier = [old for old in checkpoint.steps_in(self.folder) if old < step]
        stay = set(earlier[max(0, len(earlier) - (self.keep - 1)) :])
        if self.best:
            stay.add(self.best[1])
        checkpoint.save(self.folder, step, tensors, state, self.context.world, stay)

    def use_best(self) -> None:
        """Go back to the checkpoint with the lowest held-out loss."""
        if self.best is None:
            return
        place = self.folder / f"step-{self.best[1]:08d}"
        saved, problem = checkpoint.opened(place, self._key(), self.context.world)
        if saved is None:
            raise UserError(
                f"the best checkpoint, {place.name}, is damaged ({problem})",
                where=str(place),
                mend="Take 'result: last', or train the step again",
            )
        self._take(saved)

    def _key(self) -> str | None:
        return self.context.record.get("key")

    def _take(self, saved: Saved) -> None:
        if saved.state["roles"] != sorted(self.trainees):
            raise UserError(
                f"the checkpoint has roles {saved.state['roles']}, the step {sorted(self.trainees)}",
                where=str(saved.place),
                mend=f"Delete {self.folder} to start the step afresh",
            )
        tensors = {
            name: value for trainee in self.trainees.values() for name, value in trainee.blanks(saved.names).items()
        }
        checkpoint.read(saved, tensors, self.context.world)
        for name, trainee in self.trainees.items():
            trainee.adopt(tensors, saved.state["updates"][name])


def open_trackers(context: Context, resume_step: int) -> list[Tracker]:
    """Open the recipe's trackers in the step's folder; the first process alone has any."""
    if context.world.rank:
        return []
    opened = [part.build() for part in context.trackers]
    for tracker in opened:
        tracker.open(context.folder, resume_step=resume_step)
    return opened
