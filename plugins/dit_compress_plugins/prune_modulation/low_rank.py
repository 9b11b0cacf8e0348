"""The best linear of low rank for the inputs that it gets.

Shapes: N samples, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-3
"""Share of the inputs' mean variance that every direction has at least: no two samples tell all that will come."""


@dataclass(frozen=True)
class LowRank:
    """``W x + b ≈ up (down x) + bias``.

    error: root of the mean square of what is lost over that of what varies, over the inputs and the ridge.
    """

    down_RI: Tensor
    up_OR: Tensor
    bias_O: Tensor | None
    error: float


def low_rank(weight_OI: Tensor, bias_O: Tensor | None, inputs_NI: Tensor, rank: int) -> LowRank:
    """Return the linear of that rank that comes closest over the inputs; computed in float64.

    With ``C = L Lᵀ`` the second moment of the inputs (about their mean where a bias can take the mean), no matrix of
    that rank comes closer to ``W`` than ``U Uᵀ W``, ``U`` the first left singular vectors of ``W L``; what is lost is
    the tail of its singular values (Eckart–Young).
    """
    weight, inputs = weight_OI.double(), inputs_NI.double()
    mean_I = inputs.mean(0) if bias_O is not None else torch.zeros_like(inputs[0])
    values, vectors_OO = _singular(weight @ _root(second_moment(inputs - mean_I)))
    basis_OR = vectors_OO[:, :rank]
    down_RI = basis_OR.T @ weight
    bias = None if bias_O is None else bias_O.double() + weight @ mean_I - basis_OR @ (down_RI @ mean_I)
    # Both factors of one size: an optimiser moves them at one rate.
    scale_R = down_RI.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    error = float((values[rank:].square().sum() / values.square().sum()).sqrt()) if values.any() else 0.0
    return LowRank(down_RI / scale_R[:, None], basis_OR * scale_R, bias, error)


def second_moment(inputs_NI: Tensor) -> Tensor:
    """Return ``E[x xᵀ]``, with a ridge."""
    moment_II = inputs_NI.T @ inputs_NI / len(inputs_NI)
    ridge = RIDGE * moment_II.diagonal().mean()
    # One input alone says nothing of directions: all are alike then.
    return moment_II + torch.eye(len(moment_II), dtype=moment_II.dtype, device=moment_II.device) * (
        ridge if ridge > 0 else 1.0
    )


def _root(moment_II: Tensor) -> Tensor:
    return torch.linalg.cholesky(moment_II)


def _singular(matrix_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values, falling, and left singular vectors, by the smaller Gram matrix."""
    tall = matrix_OI.shape[0] > matrix_OI.shape[1]
    squares, vectors = torch.linalg.eigh(matrix_OI.T @ matrix_OI if tall else matrix_OI @ matrix_OI.T)
    values, vectors = squares.clamp_min(0).sqrt().flip(0), vectors.flip(1)
    if not tall:
        return values, vectors
    left = matrix_OI @ vectors
    return values, torch.linalg.qr(left)[0]
