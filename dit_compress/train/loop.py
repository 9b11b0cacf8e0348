"""The one training loop: roles, phases, EMA, clipping, precision, checkpoints, curves.

An objective says what is trained and by which loss; the loop owns everything else.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.errors import UserError
from dit_compress.train import checkpoint
from dit_compress.train.objective import Batch
from dit_compress.train.streams import Streams, epoch_order

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.context import Context
    from dit_compress.encode import Samples
    from dit_compress.train.objective import Objective, Phase, Role
    from dit_compress.train.options import TrainOptions


class Trainee:
    """A trainable role with its optimiser and moving average."""

    def __init__(self, name: str, role: Role) -> None:
        self.name, self.role = name, role
        self.parameters: dict[str, nn.Parameter] = {
            key: value for key, value in role.module.named_parameters() if value.requires_grad
        }
        if not self.parameters:
            raise ValueError(f"role {name!r} has a learning rate and nothing to train")
        low = {str(value.dtype) for value in self.parameters.values() if value.dtype != torch.float32}
        if low:
            raise UserError(
                f"role {name!r} would train {sorted(low)} weights", mend="Load them as float32; compute may be bf16"
            )
        self.optimizers = _optimizers(role, self.parameters)
        self.average: dict[str, Tensor] = (
            {key: value.detach().clone() for key, value in self.parameters.items()} if role.ema else {}
        )

    def train_only(self, on: bool) -> None:  # noqa: FBT001 - a switch
        """Gradients on or off, for the phase that runs."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(on)

    def update(self, factor: float) -> float:
        """Clip, step, average; returns the gradient norm. UserError where it is not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.role.clip or math.inf))
        if not math.isfinite(norm):
            raise UserError(f"the gradient of role {self.name!r} is not finite", mend="Lower the learning rate")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.role.ema:
            with torch.no_grad():
                for key, value in self.parameters.items():
                    self.average[key].lerp_(value, 1 - self.role.ema)
        return norm

    def use_average(self) -> None:
        """Make the moving average the role's weights (at the end of training)."""
        with torch.no_grad():
            for key, value in self.average.items():
                self.parameters[key].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, by name."""
        saved: dict[str, Tensor] = {f"{self.name}/weight/{key}": value for key, value in self.parameters.items()}
        saved |= {f"{self.name}/average/{key}": value for key, value in self.average.items()}
        for optimizer in self.optimizers:
            for key, parameter in self.parameters.items():
                for slot, value in optimizer.state.get(parameter, {}).items():
                    saved[f"{self.name}/{slot}/{key}"] = value
        return saved

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the state back; UserError where a part is missing or of another shape."""
        for key, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(self._part(tensors, "weight", key, parameter))
            if self.average:
                self.average[key].copy_(self._part(tensors, "average", key, parameter))
        for optimizer in self.optimizers:
            muon = isinstance(optimizer, torch.optim.Muon)
            slots = ("momentum_buffer",) if muon else ("exp_avg", "exp_avg_sq")
            owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for key, parameter in self.parameters.items():
                if id(parameter) not in owned or f"{self.name}/{slots[0]}/{key}" not in tensors:
                    continue  # a phase that has not begun has no state yet
                optimizer.state[parameter] = {slot: self._moment(tensors, slot, key, parameter) for slot in slots}
                if not muon:
                    optimizer.state[parameter]["step"] = tensors[f"{self.name}/step/{key}"]

    def _moment(self, tensors: dict[str, Tensor], slot: str, key: str, parameter: nn.Parameter) -> Tensor:
        """In the weight's memory format: a fused AdamW walks both in the order of memory."""
        return torch.empty_like(parameter).copy_(self._part(tensors, slot, key, parameter))

    def _part(self, tensors: dict[str, Tensor], slot: str, key: str, like: Tensor) -> Tensor:
        value = tensors.get(f"{self.name}/{slot}/{key}")
        if value is None or value.shape != like.shape:
            raise UserError(f"the checkpoint's {slot} of {self.name}.{key} is missing or of another shape")
        return value


def _optimizers(role: Role, parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon before it where the role asks for it; every group remembers its peak rate."""
    matrices = _matrices(role.module, parameters) if role.muon_lr is not None else {}
    others = [value for key, value in parameters.items() if key not in matrices]
    decay = role.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(torch.optim.Muon(list(matrices.values()), lr=role.muon_lr or 0.0, weight_decay=decay))
    if others:
        optimizers.append(
            torch.optim.AdamW(others, lr=role.lr or 0.0, betas=role.betas, weight_decay=decay, fused=True)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _matrices(module: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The weights of linears inside module lists: the blocks, not what leads in and out of them."""
    inside = {
        id(linear.weight)
        for items in module.modules()
        if isinstance(items, nn.ModuleList)
        for linear in items.modules()
        if isinstance(linear, nn.Linear)
    }
    return {key: value for key, value in parameters.items() if id(value) in inside}


def fit(objective: Objective, samples: Samples, options: TrainOptions, context: Context) -> None:
    """Train the objective's roles in place, for ``options.steps`` steps, resuming where a kill left off."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # Nothing here reads memory it has not written; filling every new tensor costs more than it could show.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its class
    trainees = _trainees(objective)
    folder = context.folder / "checkpoints"
    start = _resume(trainees, folder)
    trackers = context.open_trackers(resume_step=start)
    context.saves_itself = True
    with context.progress(context.name, total=options.steps, done=start) as advance:
        for step in range(start, options.steps):
            values = train_step(objective, trainees, samples, options, context, step)
            for tracker in trackers:
                tracker.log(step, values)
            advance(values)
            if context.stopping or ((step + 1) % options.checkpoint_every == 0 and step + 1 < options.steps):
                _save(trainees, folder, step + 1)
                context.stop_if_asked()
    context.saves_itself = False
    for tracker in trackers:
        tracker.close()
    for trainee in trainees.values():
        trainee.use_average()


def train_step(
    objective: Objective,
    trainees: dict[str, Trainee],
    samples: Samples,
    options: TrainOptions,
    context: Context,
    step: int,
) -> dict[str, float]:
    """Run every phase of one step; returns what to log."""
    values: dict[str, float] = {}
    batch = draw_batch(samples, options.batch, context.seed, step)
    for phase in objective.phases:
        if step < phase.start:
            continue
        losses = _phase(objective, phase, batch, trainees, options, step)
        prefix = f"{phase.name}/" if len(objective.phases) > 1 else ""
        values |= {f"{prefix}{name}": value for name, value in losses.items()}
    return values


def draw_batch(samples: Samples, size: int, seed: int, step: int) -> Batch:
    """The batch of a step; where clips are decoded as they are needed, the next step's are begun."""
    index = batch_index(len(samples), size, seed, step)
    if samples.streamed:
        samples.prefetch([*index, *batch_index(len(samples), size, seed, step + 1)])
    return Batch(
        step, index, samples.x0(index), Streams(seed, step, index), samples.captions(index), samples.tokens(index)
    )


def batch_index(total: int, size: int, seed: int, step: int) -> list[int]:
    """The samples of a step: consecutive entries of the epochs' orders."""
    places = range(step * size, (step + 1) * size)
    orders = {epoch: epoch_order(seed, epoch, total) for epoch in {place // total for place in places}}
    return [int(orders[place // total][place % total]) for place in places]


def learning_rate(step: int, start: int, options: TrainOptions) -> float:
    """Factor of the peak rate: linear warm-up, then cosine to ``options.decay``."""
    done = step - start
    if done < options.warmup:
        return (done + 1) / (options.warmup + 1)
    share = (done - options.warmup) / max(1, options.steps - start - options.warmup)
    return options.decay + (1 - options.decay) * 0.5 * (1 + math.cos(math.pi * share))


def _trainees(objective: Objective) -> dict[str, Trainee]:
    trainees = {}
    for name, role in objective.roles.items():
        if role.lr is None:
            role.module.requires_grad_(requires_grad=False)
            role.module.eval()
        else:
            role.module.train()
            _silence_dropout(role.module)
            trainees[name] = Trainee(name, role)
    return trainees


def _silence_dropout(module: nn.Module) -> None:
    """Dropout draws from torch's global generator, so it is off: randomness is stateless."""
    for item in module.modules():
        if isinstance(item, nn.Dropout):
            item.p = 0.0


def _phase(
    objective: Objective, phase: Phase, batch: Batch, trainees: dict[str, Trainee], options: TrainOptions, step: int
) -> dict[str, float]:
    for name, trainee in trainees.items():
        trainee.train_only(name in phase.updates)
    cast: Any = torch.autocast(batch.x0.device.type, torch.bfloat16) if options.bf16 else nullcontext()
    with cast:
        losses = objective.loss(phase, batch)
    loss = losses["loss"]
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss of phase {phase.name!r} is {float(loss.detach())} at step {step}",
            mend="Lower the learning rate, or look for broken clips in the data",
        )
    loss.backward()
    values = {name: float(value.detach()) for name, value in losses.items()}
    for name in phase.updates:
        values[f"grad_{name}"] = trainees[name].update(learning_rate(step, phase.start, options))
    return values


def _save(trainees: dict[str, Trainee], folder: Path, step: int) -> None:
    tensors = {name: value for trainee in trainees.values() for name, value in trainee.tensors().items()}
    checkpoint.save(folder, step, tensors, {"roles": sorted(trainees)})


def _resume(trainees: dict[str, Trainee], folder: Path) -> int:
    found = checkpoint.load_latest(folder)
    if found is None:
        return 0
    step, tensors, state = found
    if state["roles"] != sorted(trainees):
        raise UserError(f"the checkpoint has roles {state['roles']}, the step {sorted(trainees)}", where=str(folder))
    for trainee in trainees.values():
        trainee.restore(tensors)
    return step
