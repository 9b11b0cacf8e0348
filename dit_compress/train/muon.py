"""Muon for matrices whose rows lie on several processes.

An update is orthogonalised as a whole matrix, so it is gathered; each process takes every ``size``-th matrix, and the
rows of what it made go back to where they belong. Per matrix that is one all-gather and one scatter, and the work of
the iteration is shared out. Momentum stays with the rows, as the weights do, so checkpoints hold it in the same way
whatever the number of processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.train.parallel import local

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ShardedMuon(torch.optim.Muon):
    """torch's Muon over DTensors; a step equals that of one process up to the order of sums."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 - the loop gives none
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            size = _group(given[0]).size() if given else 1
            for first in range(0, len(given), size):
                self._turn(given[first : first + size], group)

    def _turn(self, matrices: Sequence[Any], group: Mapping[str, Any]) -> None:
        """Update as many matrices as there are processes, each orthogonalised by one of them."""
        from torch.distributed.tensor import distribute_tensor

        group_mesh = _group(matrices[0])
        own, mine = group_mesh.get_local_rank(), None
        for place, matrix in enumerate(matrices):
            whole = self._momentum(matrix, group).full_tensor()
            mine = whole if place == own else mine
        made = None if mine is None else _whole_step(mine, group)  # all at once, after the last gather
        for place, matrix in enumerate(matrices):
            whole = made if place == own and made is not None else torch.empty(matrix.shape, device=matrix.device)
            step = distribute_tensor(whole, group_mesh, matrix.placements[-1:], src_data_rank=place)
            local(matrix).mul_(1 - group["lr"] * group["weight_decay"]).add_(local(step))

    def _momentum(self, matrix: Any, group: Mapping[str, Any]) -> Any:
        """Move the momentum on; return the rows of what is to be orthogonalised."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        buffer = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


def _group(matrix: Any) -> Any:
    """Return the mesh of the processes that share one copy: replicas do the same work, each for itself."""
    mesh = matrix.device_mesh
    return mesh if mesh.ndim == 1 else mesh[mesh.mesh_dim_names[-1]]


def _whole_step(update: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return what torch's Muon adds to a matrix for an update: it is given one of zeros, without momentum or decay."""
    moved = nn.Parameter(torch.zeros_like(update))
    moved.grad = update
    same = {name: group[name] for name in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
    torch.optim.Muon([moved], weight_decay=0.0, momentum=0.0, nesterov=False, **same).step()
    return moved.detach()
