"""The processes that train together, and how roles are spread over them.

What stands inside a :class:`Denoiser` is sharded by FSDP2, block by block; every other module (aligners,
masks, heads, a small text encoder), and a role that says so, is whole on every process, and the loop averages its
gradients. Each process takes its part of every batch, so that a step is the same whatever the number of processes.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.model.denoiser import Denoiser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dit_compress.train.objective import Role

CPU = torch.device("cpu")
PATIENCE = timedelta(days=1)
"""How long processes wait for each other: the first may encode a data set meanwhile. A dead one ends all at once."""


class Done(Exception):  # noqa: N818 - not an error: this process has nothing left to do
    """Training ended; what follows is the first process' work."""


@dataclass(frozen=True)
class World:
    """Which of the training processes this is, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    store: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def alone(cls) -> World:
        """One process, on the GPU where there is one."""
        return cls(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def join(cls, group: str) -> World:
        """Meet the others that torchrun started; ``group`` names the step, so that no two steps share messages."""
        import torch.distributed as dist

        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            torch.cuda.set_device(device)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.PrefixStore(group, dist.TCPStore(address, port, is_master=False, timeout=PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        return cls(rank, size, device, store)

    def device_name(self) -> str:
        """What the GPU is called; empty for a CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

    def tell(self, message: str) -> None:
        """Leave a user's mistake where the command lines find it; they say it once."""
        self.store.set(f"error/{self.rank}", message)

    def broke(self, error: RuntimeError) -> bool:
        """Whether an error says that another process went away."""
        import torch.distributed as dist

        return self.size > 1 and (isinstance(error, dist.DistError) or "gloo/transport" in str(error))

    def leave(self) -> None:
        """Part from the others."""
        import torch.distributed as dist

        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def disband(self) -> World:
        """Part from the others, who are done (:class:`Done`); the world of the first, who goes on alone."""
        if self.size == 1:
            return self
        self.barrier()
        self.leave()
        if self.rank:
            raise Done
        return World(device=self.device)

    # -- what is agreed upon

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self.sum(torch.zeros(1))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - a vote
        """Whether it is true on any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([float(flag)])).item() > 0)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means over processes of equally named figures."""
        if self.size == 1:
            return dict(values)
        total = self.sum(torch.tensor(list(values.values()), dtype=torch.float64)) / self.size
        return dict(zip(values, total.tolist(), strict=True))

    def gather(self, rows: Tensor) -> Tensor:
        """Everyone's tensor of one shape, ``[size, *shape]``."""
        table = torch.zeros(self.size, *rows.shape, dtype=rows.dtype)
        table[self.rank] = rows
        return self.sum(table)

    def agree(self, data: Any) -> Any:
        """The first process' JSON data, on all: what each has measured differs."""
        if self.size == 1:
            return data
        import torch.distributed as dist

        text = json.dumps(data).encode()
        length = torch.tensor(len(text))
        dist.broadcast(length, 0)
        given = torch.zeros(int(length), dtype=torch.uint8)
        if not self.rank:
            given.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(given, 0)
        return json.loads(given.numpy().tobytes())

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process goes alone, then the others: what it wrote into a shared folder is there for them."""
        if self.rank:
            self.barrier()
        yield
        if not self.rank:
            self.barrier()

    def part(self, count: int) -> range:
        """This process' share of ``count`` things, ``count`` being a multiple of the processes."""
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    # -- gradients

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Mean gradients of whole parameters; FSDP has averaged those of sharded ones."""
        whole = [parameter for parameter in parameters if not is_sharded(parameter)]
        if self.size == 1 or not whole:
            return
        given = self.sum(torch.tensor([float(parameter.grad is not None) for parameter in whole])).tolist()
        for parameter, count in zip(whole, given, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.sum(parameter.grad).div_(self.size)

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> float:
        """Scale gradients to a norm of at most ``most``, as ``clip_grad_norm_`` does; the norm before."""
        if self.size == 1:
            return float(torch.nn.utils.clip_grad_norm_(parameters, most))
        graded = [parameter for parameter in parameters if parameter.grad is not None]
        shards = [local(parameter.grad) for parameter in graded if is_sharded(parameter)]
        whole = [parameter.grad for parameter in graded if not is_sharded(parameter)]
        square = self.sum(_square(shards)) + _square(whole)
        norm = float(square.sqrt())
        gradient: Any
        for gradient in (*shards, *whole):
            gradient.mul_(min(1.0, most / (norm + 1e-6)))
        return norm


def _square(tensors: Sequence[Any]) -> Tensor:
    return sum((tensor.double().square().sum().cpu() for tensor in tensors), torch.zeros((), dtype=torch.float64))


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor: each process holds its rows."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """This process' rows of a sharded tensor; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


# ------------------------------------------------------------------ roles


def spread(roles: Mapping[str, Role], world: World) -> list[tuple[Denoiser, nn.Module]]:
    """Put roles on their devices and shard their denoisers; what :func:`gathered` needs to undo it."""
    denoisers = _denoisers(roles) if world.size > 1 else []
    blueprints = [(denoiser, _without_weights(denoiser.module)) for denoiser in denoisers]
    for denoiser in denoisers:
        denoiser.structure()  # found on whole weights
        denoiser.module.to(world.device)
        _shard(denoiser, world)
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
    """Whole modules on the CPU again, on the first process."""
    trained = {id(denoiser) for denoiser in _denoisers({k: r for k, r in roles.items() if r.lr is not None})}
    for denoiser, blueprint in blueprints:
        if id(denoiser) in trained:
            state = _whole_state(denoiser.module, world)
            if not world.rank:
                denoiser.module = _filled(blueprint, state, denoiser.module)
    if world.device != CPU:
        for role in roles.values():
            if role.lr is not None:
                role.module.to(CPU)


def _whole_state(module: nn.Module, world: World) -> dict[str, Tensor]:
    """Every tensor whole on the CPU of the first process; one at a time on the way."""
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
    """The denoisers to shard."""
    found = [(item, role) for role in roles.values() for item in role.module.modules() if isinstance(item, Denoiser)]
    whole = {id(denoiser) for denoiser, role in found if role.whole}
    return list({id(denoiser): denoiser for denoiser, _ in found if id(denoiser) not in whole}.values())


def _shard(denoiser: Denoiser, world: World) -> None:
    """Each block of each stack, then the rest, over all processes.

    Parameters are gathered in float32 and cast by autocast, as in a single process: FSDP's own mixed precision
    would cast sigma, too.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # nobody writes into it
    mesh = init_device_mesh(world.device.type, (world.size,))
    for stack in denoiser.structure().stacks:
        for index in range(stack.length):
            fully_shard(denoiser.module.get_submodule(stack.block(index)), mesh=mesh)
    # What is not in a block stays whole until its backward pass: where only a tapped feature is used, no backward
    # pass through the module's output would gather it again.
    fully_shard(denoiser.module, mesh=mesh, reshard_after_forward=False)


def _from_first(tensor: Tensor) -> None:
    import torch.distributed as dist

    dist.broadcast(tensor.detach(), 0)


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, dict(empty))
