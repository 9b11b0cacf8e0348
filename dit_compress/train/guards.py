"""Guards: signs of a collapsing training, reported while it happens, with what to change.

Three sources: the curves (a discriminator's accuracy that does not move), samples of the model in training
(motion, colour, diversity, against real clips and against the model the step began with), and validations with a judge.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.step.context import Context

SURE_STEPS, BLIND_STEPS = 100, 200
"""Steps in a row after which an accuracy counts as pinned: at 1, and at 1/2 (every discriminator begins there)."""
SURE, BLIND = 0.99, 0.01
"""At least this right all the time; never further than this from one half."""
ROSE = 0.01
"""A critic that gained less has not risen."""
LOOKS = 2
"""Looks in a row below a limit before an alarm: one sample of eight videos may be odd."""
RISING = 1.2
"""A measure that grew by so much since the first of these looks is on its way, not collapsed."""


class Alarms:
    """Each kind of alarm is raised once: a warning, and at the next checkpoint an end, where that was asked for."""

    def __init__(self, context: Context, *, stop: bool = False, mends: Mapping[str, str] | None = None) -> None:
        self.context, self.stop, self.mends = context, stop, mends or {}
        self.raised: dict[str, UserError] = {}

    def raise_once(self, kind: str, step: int, what: str, mend: str) -> None:
        """Warn, unless this alarm was raised before; the step's own mend goes before the general one."""
        mend = self.mends.get(kind, mend)
        if kind not in self.raised:
            self.raised[kind] = UserError(f"step {step}: {what}", where=self.context.name, mend=mend)
            self.context.say(f"warning, {what} at step {step}. {mend}")

    def stop_if_asked(self) -> None:
        """Raise a UserError with every alarm, where ``stop`` is set."""
        if self.stop and self.raised:
            raise UserError.join(list(self.raised.values()))


class CurveGuards:
    """Watches every logged ``accuracy``. What was seen goes into checkpoints."""

    def __init__(self, alarms: Alarms, *, sure_steps: int = SURE_STEPS, blind_steps: int = BLIND_STEPS) -> None:
        self.alarms, self.sure_steps = alarms, sure_steps
        self.seen: dict[str, deque[float]] = {}
        self.blind_steps = blind_steps

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """Look at one step's figures."""
        for name, value in values.items():
            if name.rpartition("/")[2] != "accuracy":
                continue
            seen = self.seen.setdefault(name, deque(maxlen=max(self.sure_steps, self.blind_steps)))
            seen.append(value)
            last = list(seen)
            if len(last) >= self.sure_steps and min(last[-self.sure_steps :]) >= SURE:
                self.alarms.raise_once(
                    "sure",
                    step,
                    f"the discriminator has been right in {SURE:.0%} or more for {self.sure_steps} steps, "
                    "and teaches the generator nothing",
                    "Lower the discriminator's learning rate",
                )
            distances = [abs(accuracy - 0.5) for accuracy in last[-self.blind_steps :]]
            if len(distances) >= self.blind_steps and max(distances) <= BLIND:
                self.alarms.raise_once(
                    "blind",
                    step,
                    f"the discriminator has told nothing apart for {self.blind_steps} steps",
                    "Raise the discriminator's learning rate",
                )

    def memory(self) -> dict[str, list[float]]:
        """Return what was seen."""
        return {name: list(seen) for name, seen in self.seen.items()}

    def remember(self, memory: Mapping[str, list[float]]) -> None:
        """Take what was seen before a kill."""
        for name, values in memory.items():
            self.seen[name] = deque(values, maxlen=max(self.sure_steps, self.blind_steps))


class JudgeGuards:
    """Watches validations in which a critic that a step trains for stands beside a judge that is independent of it."""

    def __init__(self, alarms: Alarms) -> None:
        self.alarms = alarms
        self.seen: list[tuple[float, float]] = []

    def look(self, step: int, measures: Mapping[str, float]) -> None:
        """Look at one validation: the critic rose since the judge's best, and the judge did not."""
        if not {"critic", "judge"} <= measures.keys():
            return
        self.seen.append((measures["critic"], measures["judge"]))
        best = max(range(len(self.seen)), key=lambda place: self.seen[place][1])
        critic, judge = self.seen[best]
        since = self.seen[best + 1 :][-LOOKS:]
        if len(since) == LOOKS and min(value for value, _ in since) > critic + ROSE:
            self.alarms.raise_once(
                "hacked",
                step,
                f"the critic is being deceived: it went from {critic:.3f} to {since[-1][0]:.3f}, "
                f"and the judge from {judge:.3f} to {since[-1][1]:.3f}",
                "Lower 'lr', or end earlier (validation: {result: best})",
            )


@dataclass(frozen=True)
class Limit:
    """A measure's share of its reference below which it counts as collapsed."""

    kind: str
    measure: str
    trained: float
    fresh: float | None
    what: str
    mend: str


_END_EARLIER = "Lower 'lr', or end earlier (validation: {result: best})"
LIMITS = (
    Limit("static", "motion", 0.05, 0.02, "videos stand still", _END_EARLIER),
    Limit("slow", "motion", 0.5, None, "videos move at less than half the speed", _END_EARLIER),
    Limit("blank", "contrast", 0.4, 0.1, "videos have lost their contrast", "Lower 'lr', and look at the VAE's clips"),
    Limit("grey", "chroma", 0.4, 0.1, "videos have lost their colours", "Lower 'lr' or the guidance, raise 'ema'"),
    Limit(
        "alike",
        "diversity",
        0.5,
        0.01,
        "videos of one caption are all alike",
        _END_EARLIER,
    ),
)
"""``trained``: where the step began with a trained model, against the lower of real clips and that model.
``fresh``: where it began from random weights, against real clips; blurred early samples are no alarm."""


@dataclass
class SampleGuards:
    """Judges the measures of each look against references."""

    alarms: Alarms
    references: Mapping[str, float]
    trained: bool
    history: dict[str, list[float]] = field(default_factory=dict)

    def look(self, step: int, measures: Mapping[str, float]) -> dict[str, float]:
        """Return each measure as a share of its reference; raise alarms where it stays below its limit."""
        shares = {name: value / self.references[name] for name, value in measures.items() if self.references.get(name)}
        for name, share in shares.items():
            self.history.setdefault(name, []).append(share)
        for limit in LIMITS:
            bound = limit.trained if self.trained else limit.fresh
            last = self.history.get(limit.measure, [])[-LOOKS:]
            if bound is None or len(last) < LOOKS or max(last) >= bound or last[-1] > RISING * last[0]:
                continue
            self.alarms.raise_once(
                limit.kind,
                step,
                f"{limit.what}: {limit.measure} {last[-1]:.2f} of what it should be",
                limit.mend,
            )
        return shares
