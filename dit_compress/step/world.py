"""The processes that train together."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


CPU = torch.device("cpu")

PATIENCE = timedelta(days=1)
"""Longest wait for each other: the first may encode a data set meanwhile. A dead one ends all at once."""


class Done(Exception):  # noqa: N818 - not an error: this process has nothing left to do
    """Training ended; what follows is the first process' work."""


@dataclass(frozen=True)
class World:
    """This process among the training processes, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    store: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def alone(cls) -> World:
        """Make a world of one process, on the GPU where there is one."""
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
        """Return what the GPU is called; empty for a CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

    def tell(self, message: str) -> None:
        """Leave a user's mistake where the command lines find it; they say it once."""
        self.store.set(f"error/{self.rank}", message)

    def broke(self, error: RuntimeError) -> bool:
        """Tell whether an error says that another process went away."""
        import torch.distributed as dist

        return self.size > 1 and (isinstance(error, dist.DistError) or "gloo/transport" in str(error))

    def leave(self) -> None:
        """Part from the others."""
        import torch.distributed as dist

        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def disband(self) -> World:
        """Part from the others, who are done (:class:`Done`); return the world of the first, who goes on alone."""
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
        """Sum over processes, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - a vote
        """Tell whether it is true on any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([float(flag)])).item() > 0)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Average equally named figures over processes."""
        if self.size == 1:
            return dict(values)
        total = self.sum(torch.tensor(list(values.values()), dtype=torch.float64)) / self.size
        return dict(zip(values, total.tolist(), strict=True))

    def gather(self, rows: Tensor) -> Tensor:
        """Return everyone's tensor of one shape, ``[size, *shape]``."""
        table = torch.zeros(self.size, *rows.shape, dtype=rows.dtype)
        table[self.rank] = rows
        return self.sum(table)

    def agree(self, data: Any) -> Any:
        """Return the first process' JSON data, on all: what each has measured differs."""
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
        """Let the first process go alone, then the others: what it wrote into a shared folder is there for them."""
        if self.rank:
            self.barrier()
        yield
        if not self.rank:
            self.barrier()

    def part(self, count: int) -> range:
        """Return this process' share of ``count`` things, ``count`` being a multiple of the processes."""
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)
