"""Monitors at a model while it trains: a held-out loss at fixed noise, and samples for the guards."""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.data.sheet import write_sheet
from dit_compress.train import measures
from dit_compress.train.guards import Alarms, JudgeGuards, SampleGuards
from dit_compress.train.objective import Batch
from dit_compress.train.parallel import resharded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from dit_compress.data.samples import Samples
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.text import Captions
    from dit_compress.step.world import World
    from dit_compress.train.objective import Objective
    from dit_compress.train.options import DistillOptions, Validation, Watch
    from dit_compress.train.trainee import Trainee

SHEETS = "samples"
"""The folder of the pictures within the step's own."""
TWINS = 2
"""Videos of each caption."""


class Monitors:
    """Validation and watch of one training step; either may be off.

    last: validate after the last step, too, where 'every' does not come then.
    picture: of the samples of the last look, where one was made.
    """

    def __init__(
        self,
        options: DistillOptions,
        alarms: Alarms,
        validator: Validator | None,
        watch: Watcher | None,
        *,
        last: bool = False,
    ) -> None:
        self.options, self.alarms, self.validator, self.watch, self.last = options, alarms, validator, watch, last
        self.score: float | None = None
        self.picture: Path | None = None
        self.guards: SampleGuards | None = None
        self.judged = JudgeGuards(alarms)
        self.trainees: dict[str, Trainee] = {}
        self.objective: Objective | None = None

    @property
    def wants_best(self) -> bool:
        """True where the weights of the best validation become the result."""
        return self.options.validation is not None and self.options.validation.result == "best"

    def begin(self, objective: Objective, trainees: dict[str, Trainee]) -> None:
        """Measure real clips, and the model as the step finds it."""
        self.objective, self.trainees = objective, trainees
        if self.validator is not None and {"critic", "judge"} <= {*objective.phases[-1].shown}:
            with self._in_place(), torch.no_grad():
                self.judged.look(0, self.validator.measure(objective, 0))
        if self.watch is not None:
            self.guards = self.watch.guards(self.alarms)

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """Do what is due after ``step`` steps, by the moving averages: return figures to log."""
        found: dict[str, float] = {}
        self.score = self.picture = None
        validates = _due(self.options.validation, step) or (self.last and step == self.options.steps)
        with ExitStack() as stack:
            if validates or _due(self.options.watch, step):
                stack.enter_context(self._in_place())
            if self.validator is not None and self.objective is not None and validates:
                found |= self._validated(self.validator, self.objective, step)
            if self.watch is not None and self.guards is not None and _due(self.options.watch, step):
                self.picture = self._sheet(step)
                shares = self.guards.look(step, self.watch.measure(self.picture))
                found |= {f"watch/{name}": share for name, share in shares.items()}
        return found

    def _sheet(self, step: int) -> Path | None:
        """Return the picture to make of this look's samples; of so many looks at most, the last one too."""
        watch, steps = self.options.watch, self.options.steps
        looks = 0 if watch is None else steps // watch.every
        if watch is None or (sheets := min(watch.sheets, looks)) == 0:
            return None
        look = step // watch.every
        if look * sheets // looks == (look - 1) * sheets // looks:
            return None
        return self.alarms.context.folder / SHEETS / f"step-{step:08d}.jpg"

    def ends(self, best: int, step: int) -> bool:
        """Tell whether it is over after ``step`` steps: for long enough, no validation was better than ``best``'s."""
        look = self.options.validation
        return look is not None and look.patience is not None and step - best >= look.patience * look.every

    def _validated(self, validator: Validator, objective: Objective, step: int) -> dict[str, float]:
        """Return the figures of a validation; none before its phase begins."""
        phase = objective.phases[-1]
        if step <= phase.start:
            return {}
        measured = validator.measure(objective, step)
        self.judged.look(step, measured)
        self.score = measured[phase.score]
        return {"validation_loss": self.score, **{f"validation/{name}": measured[name] for name in phase.shown}}

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put averages in place; sharded models gather them, and afterwards what is trained."""
        with _averaged(self.trainees):
            self._forget()
            try:
                yield
            finally:
                self._forget()

    def _forget(self) -> None:
        if self.objective is not None:
            for trainee in self.trainees.values():
                resharded(self.objective.roles, trainee.world)

    def memory(self) -> dict[str, Any]:
        """Return what the guards have seen, for a checkpoint."""
        return {"judged": self.judged.seen, "samples": self.guards.history if self.guards is not None else {}}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take what the guards had seen before a kill."""
        self.judged.seen = [(critic, judge) for critic, judge in memory["judged"]]
        if self.guards is not None:
            self.guards.history = {name: list(shares) for name, shares in memory["samples"].items()}

    def saves(self) -> bool:
        """Tell whether the step just looked at should have a checkpoint: the best one may be this."""
        return self.score is not None or (self.alarms.stop and bool(self.alarms.raised))


def _due(options: Validation | Watch | None, step: int) -> bool:
    return options is not None and step % options.every == 0


@contextmanager
def _averaged(trainees: Mapping[str, Trainee]) -> Iterator[None]:
    """Put averages in place, modules in evaluation."""
    with ExitStack() as stack:
        for trainee in trainees.values():
            stack.enter_context(trainee.averaged())
            training = trainee.role.module.training
            trainee.role.module.eval()
            stack.callback(trainee.role.module.train, training)
        yield


class Validator:
    """The objective's last phase on held-out samples; noise and sigma are those of step 0, always.

    batch: samples at a time on each process. The processes share ``count`` samples.
    """

    def __init__(self, samples: Samples, count: int, batch: int, seed: int, world: World, *, bf16: bool) -> None:
        self.samples, self.count, self.batch = samples, min(count, len(samples)), batch
        self.seed, self.world, self.bf16 = seed, world, bf16

    def measure(self, objective: Objective, step: int) -> dict[str, float]:
        """Return means of the entries that the phase names as ``score`` and ``shown``."""
        phase = objective.phases[-1]
        names = (phase.score, *phase.shown)
        total = torch.zeros(len(names), dtype=torch.float64)
        for index, weight in self._parts():
            held_out = self.samples
            batch = Batch(
                0,
                index,
                held_out.x0(index),
                Streams(self.seed, 0, index),
                held_out.captions(index),
                held_out.tokens(index),
                held_out=True,
            ).to(self.world.device)
            with _cast(self.world, self.bf16):
                losses = objective.loss(phase, batch)
            total += weight * torch.tensor([float(losses[name]) for name in names], dtype=torch.float64)
        found = dict(zip(names, (self.world.sum(total) / self.count).tolist(), strict=True))
        if not math.isfinite(score := found[phase.score]):
            raise UserError(
                f"the held-out loss is {score} after {step} steps",
                mend="Lower the learning rate, or look for broken clips in the data",
            )
        return found

    def _parts(self) -> Iterator[tuple[list[int], int]]:
        """Yield this process' samples and their weight, equally often on all: a sharded model's calls are joint."""
        for bucket in self.samples.buckets():
            some = [place for place in bucket if place < self.count]
            mine = some[self.world.rank :: self.world.size]
            for first in range(0, -(-len(some) // self.world.size), self.batch):
                index = mine[first : first + self.batch]
                yield index or some[:1], len(index)


class Watcher:
    """Videos of a few captions, always from the same noise.

    decode: latent → video, on the device; the first process alone calls it, and tells the others what it measured.
    batch: about so many videos at a time, guidance counted; all at once where it is None.
    sample: another sampler than the schedule's.
    """

    def __init__(
        self,
        student: Denoiser,
        text: Captions,
        schedule: Flow,
        real: Samples,
        options: Watch,
        decode: Callable[[Tensor], Tensor],
        *,
        seed: int,
        world: World,
        trained: bool,
        bf16: bool = False,
        batch: int | None = None,
        sample: Callable[..., Tensor] | None = None,
    ) -> None:
        self.student, self.text, self.schedule, self.decode = student, text, schedule, decode
        self.world, self.trained, self.bf16, self.sample = world, trained, bf16, sample or schedule.sample()
        index = max(real.buckets(images=False), key=len)[: options.captions]
        self.clean = real.x0(index)
        self.captions = [caption for caption in real.captions(index) for _ in range(TWINS)]
        self.noise = Streams(seed, 0, range(TWINS * len(index))).normal("watch", self.clean.shape[1:])
        self._cond = text(real.tokens([place for place in index for _ in range(TWINS)])) if text.frozen else None
        self.each = TWINS * max(1, (batch or 2 * len(self.noise)) // (2 * TWINS))
        steps = min(schedule.num_steps, options.sampling_steps or schedule.num_steps)
        self.sigmas = schedule.sigmas(steps)

    @torch.no_grad()
    def guards(self, alarms: Alarms) -> SampleGuards:
        """Make guards; references are real clips, and of a trained model what it gives before this step, where less."""
        found = self._measured(self.clean, lambda real: measures.diversity(real[None]) if len(real) > 1 else 0.0)
        if self.trained:
            before = self.measure()
            found = {name: min(value, before[name]) for name, value in found.items()}
        return SampleGuards(alarms, found, self.trained)

    @torch.no_grad()
    def measure(self, sheet: Path | None = None) -> dict[str, float]:
        """Measure motion, contrast, chroma and diversity of what the model gives now; frames of it go to ``sheet``."""
        whole = (self.text.cond(self.captions) if self._cond is None else self._cond).to(self.world.device)
        made = []
        for first in range(0, len(self.noise), self.each):
            some = slice(first, first + self.each)
            noise, cond = self.noise[some].to(self.world.device), whole.take(some)
            with _cast(self.world, self.bf16):
                made.append(self.sample(self.student, noise, cond, self.sigmas, self.schedule.guidance).float())
        return self._measured(
            torch.cat(made), lambda videos: measures.diversity(videos.unflatten(0, (-1, TWINS))), sheet
        )

    def _measured(
        self, latents: Tensor, diversity: Callable[[Tensor], float], sheet: Path | None = None
    ) -> dict[str, float]:
        """Return what the first process measures in the decoded latents, on every process."""
        found = torch.zeros(4, dtype=torch.float64)
        if not self.world.rank:
            parts = latents.to(self.world.device).split(TWINS)
            video = torch.cat([self.decode(part).clamp(-1, 1).cpu() for part in parts])
            one_by_one = measures.motion(video), measures.contrast(video), measures.chroma(video)
            found = torch.tensor([*one_by_one, diversity(video)], dtype=torch.float64)
            if sheet is not None:
                write_sheet(sheet, video)
        return dict(zip(("motion", "contrast", "chroma", "diversity"), self.world.sum(found).tolist(), strict=True))


def _cast(world: World, bf16: bool) -> Any:  # noqa: FBT001 - a switch
    return torch.autocast(world.device.type, torch.bfloat16) if bf16 else nullcontext()
