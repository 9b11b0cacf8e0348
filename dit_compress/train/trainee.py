"""A role while it is trained: its optimisers, its moving average, and what a checkpoint keeps of them."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.step.world import World
from dit_compress.train.muon import ShardedMuon
from dit_compress.train.parallel import average_gradients, clip_gradients, is_sharded, local

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dit_compress.train.objective import Role

MOMENTS = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
    ShardedMuon: ("momentum_buffer",),
}


class Trainee:
    """A trainable role with its optimiser and moving average."""

    def __init__(self, name: str, role: Role, world: World | None = None) -> None:
        self.name, self.role, self.world = name, role, world or World()
        self.parameters = role.trained()
        if not self.parameters:
            raise ValueError(f"role {name!r} has a learning rate and nothing to train")
        kept = role.module.state_dict().keys()
        self.buffers: dict[str, Tensor] = {
            key: value for key, value in role.module.named_buffers() if key in kept and value.numel()
        }
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
        """Turn gradients on or off, for the phase that runs."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(on)

    def gradient_norm(self, most: float = math.inf) -> float:
        """Average gradients over the processes, scale them to a norm of at most ``most``; return the norm before."""
        parameters = list(self.parameters.values())
        average_gradients(parameters, self.world)
        return clip_gradients(parameters, most, self.world)

    def forget_gradients(self) -> None:
        """Free every gradient."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def update(self, factor: float) -> float:
        """Clip, step, average; returns the gradient norm. UserError where it is not finite."""
        norm = self.gradient_norm(self.role.clip or math.inf)
        if not math.isfinite(norm):
            raise UserError(f"the gradient of role {self.name!r} is not finite", mend="Lower the learning rate")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
        self.forget_gradients()
        if self.role.ema:
            with torch.no_grad():
                for key, value in self.parameters.items():
                    local(self.average[key]).lerp_(local(value), 1 - self.role.ema)
        return norm

    def use_average(self) -> None:
        """Make the moving average the role's weights (at the end of training)."""
        with torch.no_grad():
            for key, value in self.average.items():
                local(self.parameters[key]).copy_(local(value))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average in the weights' place, for as long as the context is open."""
        kept = {key: local(self.parameters[key]).detach().clone() for key in self.average}
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in kept.items():
                    local(self.parameters[key]).copy_(value)

    # -- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor a checkpoint needs, by name."""
        saved: dict[str, Tensor] = {f"{self.name}/weight/{key}": value for key, value in self.parameters.items()}
        saved |= {f"{self.name}/average/{key}": value for key, value in self.average.items()}
        saved |= {f"{self.name}/buffer/{key}": value for key, value in self.buffers.items()}
        for key, slot, value in self._states():
            if slot != "step":
                saved[f"{self.name}/{slot}/{key}"] = value
        return saved

    def updates(self) -> dict[str, int]:
        """Return AdamW's count of updates, by weight."""
        return {key: int(value) for key, slot, value in self._states() if slot == "step"}

    def blanks(self, names: set[str]) -> dict[str, Tensor]:
        """Return tensors of the same kinds for a checkpoint to be read into; ``names``: what it has.

        Moments are in the weight's memory format: a fused AdamW walks both in the order of memory. A phase
        that had not begun has none.
        """
        wanted = {f"{self.name}/weight/{key}": value.detach() for key, value in self.parameters.items()}
        wanted |= {f"{self.name}/average/{key}": value for key, value in self.average.items()}
        wanted |= {f"{self.name}/buffer/{key}": value for key, value in self.buffers.items()}
        for key, parameter, _, moments in self._owned():
            places = [f"{self.name}/{slot}/{key}" for slot in moments]
            if names.intersection(places):
                wanted |= {place: torch.empty_like(parameter.detach()) for place in places}
        return wanted

    def adopt(self, tensors: dict[str, Tensor], updates: dict[str, int]) -> None:
        """Give the optimisers the moments that were read."""
        for key, parameter, optimizer, moments in self._owned():
            places = {slot: f"{self.name}/{slot}/{key}" for slot in moments}
            if not tensors.keys() & set(places.values()):
                continue
            state: dict[str, Any] = {slot: tensors[place] for slot, place in places.items()}
            if key in updates:
                state["step"] = torch.tensor(float(updates[key]), device=parameter.device)
            optimizer.state[parameter] = state

    def _states(self) -> Iterator[tuple[str, str, Tensor]]:
        for key, parameter, optimizer, _ in self._owned():
            for slot, value in optimizer.state.get(parameter, {}).items():
                yield key, slot, value

    def _owned(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer, tuple[str, ...]]]:
        for optimizer in self.optimizers:
            owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for key, parameter in self.parameters.items():
                if id(parameter) in owned:
                    yield key, parameter, optimizer, MOMENTS[type(optimizer)]


def trainees_of(roles: Mapping[str, Role], world: World | None = None) -> dict[str, Trainee]:
    """Make the trained roles, whatever the order they are listed in; all that none of them trains is frozen.

    UserError where two roles would train one tensor.
    """
    trainees = {name: Trainee(name, role, world) for name, role in roles.items() if role.lr is not None}
    owners = _owners(trainees)
    for role in roles.values():
        for parameter in role.module.parameters():
            parameter.requires_grad_(id(parameter) in owners)
        role.module.eval()
    kept: set[int] = set()
    for trainee in trainees.values():  # after all frozen ones: a module of both kinds of roles is trained
        trainee.role.module.train()
        _silence_dropout(trainee.role.module)
        trainee.buffers = {key: value for key, value in trainee.buffers.items() if id(value) not in kept}
        kept |= {id(value) for value in trainee.buffers.values()}
    return trainees


def _owners(trainees: Mapping[str, Trainee]) -> dict[int, str]:
    """Return which role trains each tensor."""
    owners: dict[int, str] = {}
    for name, trainee in trainees.items():
        for key, value in trainee.parameters.items():
            if (other := owners.setdefault(id(value), name)) != name:
                raise UserError(
                    f"the roles {other!r} and {name!r} would both train {key!r}",
                    mend="Let each train a part of its own (Role.only), or make them one role that both phases update",
                )
    return owners


def _silence_dropout(module: nn.Module) -> None:
    """Turn dropout off: it draws from torch's global generator, and randomness is stateless."""
    for item in module.modules():
        if isinstance(item, nn.Dropout):
            item.p = 0.0


def _optimizers(role: Role, parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Make AdamW, and Muon before it where the role asks for it; every group remembers its peak rate."""
    matrices = _matrices(role.module, parameters) if role.muon_lr is not None else {}
    others = [value for key, value in parameters.items() if key not in matrices]
    decay = role.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    for sharded, kind in ((False, torch.optim.Muon), (True, ShardedMuon)):
        if part := [value for value in matrices.values() if is_sharded(value) is sharded]:
            optimizers.append(kind(part, lr=role.muon_lr or 0.0, weight_decay=decay))
    if others:
        optimizers.append(torch.optim.AdamW(_groups(role, others), lr=role.lr or 0.0, betas=role.betas, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _groups(role: Role, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Split what AdamW trains: by what decays, and by what is sharded, which one call of its kernel can't mix."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        decay = role.weight_decay if parameter.ndim > 1 or role.decay_norms else 0.0
        groups.setdefault((is_sharded(parameter), decay), []).append(parameter)
    return [{"params": part, "weight_decay": decay} for (_, decay), part in groups.items()]


def _matrices(module: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the weights of linears inside module lists: the blocks, not what leads in and out of them."""
    inside = {
        id(linear.weight)
        for items in module.modules()
        if isinstance(items, nn.ModuleList)
        for linear in items.modules()
        if isinstance(linear, nn.Linear)
    }
    return {key: value for key, value in parameters.items() if id(value) in inside}
