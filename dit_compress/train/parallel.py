"""Spread roles over the processes that train together.

What stands inside a :class:`Denoiser` is sharded by FSDP2, block by block, over all processes or within groups of them
that are replicas of each other; every other module (aligners, masks, heads, a small text encoder), and a role that
says so, is whole on every process, and the loop averages its gradients. Each process takes its part of every batch, so
that a step is the same whatever the number of processes.
"""

from __future__ import annotations

import copy
import warnings
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.model.denoiser import Denoiser
from dit_compress.step.world import CPU, World

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.distributed.device_mesh import DeviceMesh

    from dit_compress.train.objective import Role
    from dit_compress.train.options import TrainOptions


def _square(tensors: Sequence[Any]) -> Tensor:
    """Add up the squares of what lies here; rows that several processes hold alike count once in all."""
    parts = (local(tensor).double().square().sum().cpu() / _copies(tensor) for tensor in tensors)
    return sum(parts, torch.zeros((), dtype=torch.float64))


def _copies(tensor: Any) -> int:
    """Count the processes that hold the same rows of a sharded tensor; 1 for any other."""
    if not is_sharded(tensor):
        return 1
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return prod(size for size, placement in sizes if placement.is_replicate())


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor: each process holds its rows."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """Return this process' rows of a sharded tensor; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


# ------------------------------------------------------------------ gradients


def average_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Average gradients of whole parameters over processes; FSDP has averaged those of sharded ones."""
    whole = [parameter for parameter in parameters if not is_sharded(parameter)]
    if world.size == 1 or not whole:
        return
    given = world.sum(torch.tensor([float(parameter.grad is not None) for parameter in whole])).tolist()
    for parameter, count in zip(whole, given, strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            world.sum(parameter.grad).div_(world.size)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float, world: World) -> float:
    """Scale gradients to a norm of at most ``most``, as ``clip_grad_norm_`` does; the norm before."""
    if world.size == 1:
        return float(torch.nn.utils.clip_grad_norm_(parameters, most))
    graded = [parameter for parameter in parameters if parameter.grad is not None]
    shards = [parameter.grad for parameter in graded if is_sharded(parameter)]
    whole = [parameter.grad for parameter in graded if not is_sharded(parameter)]
    square = world.sum(_square(shards)) + _square(whole)
    norm = float(square.sqrt())
    gradient: Any
    for gradient in (*shards, *whole):
        local(gradient).mul_(min(1.0, most / (norm + 1e-6)))
    return norm


# ------------------------------------------------------------------ roles


def spread(roles: Mapping[str, Role], world: World, options: TrainOptions) -> list[tuple[Denoiser, nn.Module]]:
    """Put roles on their devices and shard their denoisers; what :func:`gathered` needs to undo it."""
    denoisers = _denoisers(roles) if world.size > 1 else []
    blueprints = [(denoiser, _without_weights(denoiser.module)) for denoiser in denoisers]
    for denoiser in denoisers:
        denoiser.structure()  # found on whole weights
        denoiser.module.to(world.device)
        _shard(denoiser, world, options)
    for role in roles.values():
        role.module.to(world.device)
        for tensor in (*role.module.parameters(), *role.module.buffers()) if world.size > 1 else ():
            if not is_sharded(tensor):
                _from_first(tensor)
    return blueprints


def resharded(roles: Mapping[str, Role], world: World) -> None:
    """Forget gathered weights, so that the next pass gathers what is true now: values, and who requires gradients."""
    if world.size > 1:
        for denoiser in _denoisers(roles):
            module: Any = denoiser.module
            module.reshard()


@torch.no_grad()
def gathered(roles: Mapping[str, Role], blueprints: list[tuple[Denoiser, nn.Module]], world: World) -> None:
    """Gather whole modules on the CPU again, on the first process."""
    trained = {id(denoiser.module) for role in roles.values() if role.lr is not None for denoiser in _inside(role)}
    for denoiser, blueprint in blueprints:
        sharded = denoiser.module
        if id(sharded) in trained:
            state = _whole_state(sharded, world)
            if not world.rank:
                whole = _filled(blueprint, state, sharded)
                for other in (item for role in roles.values() for item in _inside(role) if item.module is sharded):
                    other.module = whole
    if world.device != CPU:
        for role in roles.values():
            if role.lr is not None:
                role.module.to(CPU)


def _whole_state(module: nn.Module, world: World) -> dict[str, Tensor]:
    """Gather every tensor whole on the CPU of the first process; one at a time on the way."""
    state = {}
    for name, value in module.state_dict().items():
        whole = value.full_tensor() if is_sharded(value) else value
        if not world.rank:
            state[name] = whole.to(CPU)
    return state


def _filled(blueprint: nn.Module, state: dict[str, Tensor], like: nn.Module) -> nn.Module:
    flags = {name: value.requires_grad for name, value in like.named_parameters()}
    blueprint.load_state_dict(state, strict=True, assign=True)
    for name, value in blueprint.named_parameters():
        value.requires_grad_(flags[name])
    return blueprint.train(like.training)


def _denoisers(roles: Mapping[str, Role]) -> list[Denoiser]:
    """Return the denoisers to shard, each module once."""
    found = [(item, role) for role in roles.values() for item in _inside(role)]
    whole = {id(denoiser.module) for denoiser, role in found if role.whole}
    modules: dict[int, Denoiser] = {}
    for denoiser, _ in found:
        modules.setdefault(id(denoiser.module), denoiser)
    return [denoiser for key, denoiser in modules.items() if key not in whole]


def _inside(role: Role) -> list[Denoiser]:
    return [item for item in role.module.modules() if isinstance(item, Denoiser)]


def _shard(denoiser: Denoiser, world: World, options: TrainOptions) -> None:
    """Shard each block of each stack, then the rest.

    Parameters are cast by autocast, as in a single process: FSDP would cast sigma, too. Where blocks' are sent in
    bfloat16, inputs stay as they are, and what stands outside blocks (the embedding of sigma) is sent in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # nobody writes into it
    mesh = _mesh(world, options.sharing(world.size))
    sent = torch.bfloat16 if options.bf16_gather else None
    policy = MixedPrecisionPolicy(param_dtype=sent, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in denoiser.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # What is not in a block stays whole until its backward pass: where only a tapped feature is used, no backward
    # pass through the module's output would gather it again.
    fully_shard(denoiser.module, mesh=mesh, reshard_after_forward=False)


def _mesh(world: World, shard: int) -> DeviceMesh:
    """Return all processes in a row, or as replicas (rows) of groups of ``shard`` neighbours: those of a node."""
    from torch.distributed.device_mesh import init_device_mesh

    if shard == world.size:
        return init_device_mesh(world.device.type, (world.size,))
    sizes, names = (world.size // shard, shard), ("replicate", "shard")
    return init_device_mesh(world.device.type, sizes, mesh_dim_names=names)


def _from_first(tensor: Tensor) -> None:
    import torch.distributed as dist

    dist.broadcast(tensor.detach(), 0)


def _without_weights(module: nn.Module) -> nn.Module:
    """Copy a module, its parameters on the meta device."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, dict(empty))
