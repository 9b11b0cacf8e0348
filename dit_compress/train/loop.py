"""The one training loop: roles, phases, accumulation, precision, checkpoints, curves, guards.

An objective says what is trained and by which loss; the loop owns everything else.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_compress.core.errors import UserError
from dit_compress.core.progress import progress
from dit_compress.core.randomness import Streams, epoch_order, generator
from dit_compress.data.buckets import bucket_at
from dit_compress.train.compiled import compiling
from dit_compress.train.guards import Alarms, CurveGuards
from dit_compress.train.history import History, open_trackers
from dit_compress.train.memory import memory_errors, recomputing
from dit_compress.train.objective import Batch
from dit_compress.train.options import check_parts
from dit_compress.train.parallel import gathered, resharded, spread
from dit_compress.train.trainee import trainees_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.data.samples import Samples
    from dit_compress.step.context import Context
    from dit_compress.step.world import World
    from dit_compress.train.objective import Objective, Phase, Weighing
    from dit_compress.train.options import TrainOptions
    from dit_compress.train.trainee import Trainee
    from dit_compress.train.validation import Monitors


MOST_LEFT = 0.2
"""Share of the first weights in a moving average at the end above which the step warns."""
FAR = 1000
"""Times its default from which an option is named where the first loss is not finite."""


def fit(
    objective: Objective, samples: Samples, options: TrainOptions, context: Context, monitors: Monitors | None = None
) -> None:
    """Train the objective's roles in place, for ``options.steps`` steps, resuming where a kill left off.

    With more than one process only the first returns, with whole weights on the CPU; the others are done. A
    step that calls ``fit`` twice trains the second time in one process.
    """
    torch.use_deterministic_algorithms(mode=options.deterministic, warn_only=True)
    # Nothing here reads memory it has not written; filling every new tensor costs more than it could show.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its class
    world = context.world
    check_parts(options, world.size)
    with ExitStack() as stack:
        stack.enter_context(memory_errors(objective, options, world))
        blueprints = spread(objective.roles, world, options)
        if options.compile:
            stack.enter_context(compiling(objective.roles, context.say))
        if options.checkpoint_activations:
            stack.enter_context(recomputing(objective.roles))
        trainees = trainees_of(objective.roles, world)
        _warn_of_averages(objective, options, context)
        history = History(context, trainees, options.keep_checkpoints)
        if monitors is not None:
            monitors.begin(objective, trainees)
        start = history.resume()
        _steps(objective, trainees, samples, options, context, history, monitors, start)
        if monitors is not None and monitors.wants_best:
            history.use_best()
        for trainee in trainees.values():
            trainee.use_average()
    gathered(objective.roles, blueprints, world)
    context.world = world.disband()


def _steps(
    objective: Objective,
    trainees: dict[str, Trainee],
    samples: Samples,
    options: TrainOptions,
    context: Context,
    history: History,
    monitors: Monitors | None,
    start: int,
) -> None:
    """Run everything from the first step that is left to the last one."""
    trackers = open_trackers(context, resume_step=start)
    alarms = monitors.alarms if monitors is not None else Alarms(context, mends=options.mends)
    guards = CurveGuards(alarms)
    if history.memory:
        guards.remember(history.memory["curves"])
        if monitors is not None:
            monitors.remember(history.memory["looks"])
    stopping = context.stopping
    stopping.saves_itself = True
    with progress(context.name, options.steps, start, silent=context.world.rank > 0) as advance:
        for step in range(start, options.steps):
            if monitors is not None and history.best and monitors.ends(history.best[1], step):
                context.say(f"ended after {step} steps: no validation was better than after {history.best[1]}")
                break
            values = train_step(objective, trainees, samples, options, context, step)
            guards.look(step, values)
            seen = monitors.look(step + 1) if monitors is not None else {}
            for tracker in trackers:
                tracker.log(step, {**values, **seen})
                if monitors is not None and monitors.picture is not None:
                    tracker.picture(step, monitors.picture)
            advance(values)
            if context.world.any(stopping.asked):
                stopping.asked = True  # a signal to one process stops all
            due = (step + 1) % options.checkpoint_every == 0 and step + 1 < options.steps
            if stopping.asked or due or (monitors is not None and monitors.saves()):
                looks = monitors.memory() if monitors is not None else None
                history.memory = {"curves": guards.memory(), "looks": looks}
                history.save(step + 1, monitors.score if monitors is not None else None)
                stopping.leave_if_asked()
                alarms.stop_if_asked()
    stopping.saves_itself = False
    for tracker in trackers:
        tracker.close()


def train_step(
    objective: Objective,
    trainees: dict[str, Trainee],
    samples: Samples,
    options: TrainOptions,
    context: Context,
    step: int,
) -> dict[str, float]:
    """Run every phase of one step; returns what to log, means over the whole batch."""
    values: dict[str, float] = {}
    world = context.world
    share = world.part(options.batch)
    each = len(share) // options.accumulate
    parts = [
        draw_batch(samples, options.batch, context.seed, step, share[first : first + each], options.images).to(
            world.device
        )
        for first in range(0, len(share), each)
    ]
    if options.images:
        values["images"] = float(on_images(context.seed, step, options.images))
    for phase in objective.phases:
        if not phase.runs(step):
            continue
        losses = world.mean(_phase(objective, phase, parts, trainees, options, world))
        if phase.tell is not None:
            phase.tell(losses)
        prefix = f"{phase.name}/" if len(objective.phases) > 1 else ""
        values |= {f"{prefix}{name}": value for name, value in losses.items()}
    return values


def draw_batch(
    samples: Samples, size: int, seed: int, step: int, part: Sequence[int] | None = None, images: float = 0.0
) -> Batch:
    """Draw the batch of a step, or its places ``part``; where clips are decoded as they are needed, begin the next.

    images: share of the steps on images: on clips of one frame where there are some, and others then see none of them;
        elsewhere on the first latent frame of each clip.
    """
    places = range(size) if part is None else part
    index = _drawn(samples, size, seed, step, places, images)
    if samples.streamed:
        samples.prefetch([*index, *_drawn(samples, size, seed, step + 1, places, images)])
    x0 = samples.x0(index)
    x0 = x0[:, :, :1] if on_images(seed, step, images) else x0
    return Batch(step, index, x0, Streams(seed, step, index), samples.captions(index), samples.tokens(index))


def _drawn(samples: Samples, size: int, seed: int, step: int, places: Sequence[int], images: float) -> list[int]:
    """Return the samples at some places of a step's batch, which is of one bucket; a function of seed and step."""
    buckets = samples.buckets(images=on_images(seed, step, images) if images else None)
    bucket, turn = bucket_at(step, [len(index) for index in buckets], size, seed)
    return [buckets[bucket][place] for place in batch_index(len(buckets[bucket]), size, seed, turn, places)]


def on_images(seed: int, step: int, share: float) -> bool:
    """Tell whether a step is one of the share that is trained on single frames; the same on every process."""
    return share > 0 and generator(seed, "images", step).random() < share


def draw_batches(samples: Samples, size: int, count: int, context: Context) -> list[Batch]:
    """Draw those of the first ``count`` steps, on the step's device: for measurements on equal batches."""
    return [draw_batch(samples, size, context.seed, step).to(context.world.device) for step in range(count)]


def batch_index(total: int, size: int, seed: int, step: int, part: Sequence[int]) -> list[int]:
    """Return the samples at some places of a step's batch: a batch is consecutive entries of the epochs' orders."""
    places = [step * size + place for place in part]
    orders = {epoch: epoch_order(seed, epoch, total) for epoch in {place // total for place in places}}
    return [int(orders[place // total][place % total]) for place in places]


def learning_rate(step: int, phase: Phase, options: TrainOptions) -> float:
    """Return the factor of the peak rate: warm-up, then cosine to ``options.decay``, over the phase's own updates."""
    done, total = phase.updates_before(step), phase.updates_before(options.steps)
    if done < options.warmup:
        return (done + 1) / (options.warmup + 1)
    share = (done - options.warmup) / max(1, total - options.warmup)
    return options.decay + (1 - options.decay) * 0.5 * (1 + math.cos(math.pi * share))


def _warn_of_averages(objective: Objective, options: TrainOptions, context: Context) -> None:
    """Warn of an average over more updates than there are: mostly what the step began with, random weights perhaps."""
    for name, role in objective.roles.items():
        phases = [phase for phase in objective.phases if name in phase.updates]
        if not role.ema or not phases:
            continue
        left = role.ema ** sum(phase.updates_before(options.steps) for phase in phases)
        if left > MOST_LEFT:
            context.say(
                f"warning, after {options.steps} steps the moving average of {name!r} will still be {left:.0%} the "
                f"weights it began with. Lower 'ema' (now {role.ema}), or raise 'steps'"
            )


def _phase(
    objective: Objective,
    phase: Phase,
    parts: Sequence[Batch],
    trainees: dict[str, Trainee],
    options: TrainOptions,
    world: World,
) -> dict[str, float]:
    for name, trainee in trainees.items():
        trainee.train_only(name in phase.updates)
    resharded(objective.roles, world)
    weighing = phase.weighing
    if weighing is not None and phase.updates_before(parts[0].step) % weighing.every == 0:
        weighing.tell(_term_norms(objective, phase, weighing, parts, trainees, options))
    values: dict[str, float] = {}
    for batch in parts:
        losses = _losses(objective, phase, batch, options)
        loss = losses["loss"]
        if world.any(not torch.isfinite(loss)):
            raise _not_finite(phase, batch, loss, options, world)
        (loss if len(parts) == 1 else loss / len(parts)).backward()
        for name, value in losses.items():
            values[name] = values.get(name, 0.0) + float(value.detach()) / len(parts)
    for name in phase.updates:
        values[f"grad_{name}"] = trainees[name].update(learning_rate(parts[0].step, phase, options))
    return values


def _losses(objective: Objective, phase: Phase, batch: Batch, options: TrainOptions) -> dict[str, Tensor]:
    cast: Any = torch.autocast(batch.x0.device.type, torch.bfloat16) if options.bf16 else nullcontext()
    with cast:
        return objective.loss(phase, batch)


def _term_norms(
    objective: Objective,
    phase: Phase,
    weighing: Weighing,
    parts: Sequence[Batch],
    trainees: dict[str, Trainee],
    options: TrainOptions,
) -> dict[str, float]:
    """Measure each term's gradient by passes of its own, so that the update is the same as without."""
    norms = {}
    for term in weighing.terms:
        for batch in parts:
            (_losses(objective, phase, batch, options)[term] / len(parts)).backward()
        norms[term] = trainees[weighing.role].gradient_norm()
        for trainee in trainees.values():
            trainee.forget_gradients()
    return norms


def _not_finite(phase: Phase, batch: Batch, loss: Tensor, options: TrainOptions, world: World) -> UserError:
    """Return the same on every process: the mean loss, and whose samples are not finite."""
    (value,) = world.mean({"loss": float(loss.detach())}).values()
    what = f"the loss of phase {phase.name!r} is {value} at step {batch.step}"
    rows = [[index, float(not torch.isfinite(x0).all())] for index, x0 in zip(batch.sample, batch.x0, strict=True)]
    table = world.gather(torch.tensor(rows, dtype=torch.float64)).flatten(0, 1)
    if broken := sorted({int(index) for index, bad in table.tolist() if bad}):
        return UserError(f"{what}: training samples {broken} hold NaN or infinity", mend="Remove or repair these clips")
    if batch.step == 0:  # nothing was trained yet: neither the learning rate did it nor what it led to
        far = " and ".join(_far(options)) or "the options of this step"
        return UserError(what, mend=f"Nothing was trained yet: look at {far}, and at the model that goes in")
    return UserError(what, mend="Lower the learning rate, or look for broken clips in the data")


def _far(options: TrainOptions) -> list[str]:
    """Return the options that are a thousand times their default or more, as a recipe says them."""
    found = []
    for name, value in options:
        usual = type(options).model_fields[name].default
        if isinstance(usual, int | float) and isinstance(value, int | float) and value >= FAR * usual > 0:
            found.append(f"'{name}: {value:g}'")
    return found
