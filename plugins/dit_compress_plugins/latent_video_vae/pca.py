"""Principal components of video patches: the starting point of the VAE.

Pure functions over matrices. Everything is deterministic: the random test matrix of the randomised
method comes from the counter-based streams.

Shapes: N patches, D values of a patch, C channels (components kept).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dit_compress.core.randomness import generator
from dit_compress.model.codec.layers import orthogonal

if TYPE_CHECKING:
    from torch import Tensor

OVERSAMPLING = 16
POWER_ITERATIONS = 3


@dataclass(frozen=True)
class Basis:
    """A linear code ``z = (x - mean) @ analysis.T`` with ``x ≈ z @ synthesis + mean``.

    mean: ``[D]``. analysis, synthesis: ``[C,D]``. variance: ``[C]``, of ``z`` over the sample.
    """

    mean: Tensor
    analysis: Tensor
    synthesis: Tensor
    variance: Tensor

    def encode(self, patches_ND: Tensor) -> Tensor:
        """Turn patches ``[N,D]`` into codes ``[N,C]``."""
        return (patches_ND - self.mean) @ self.analysis.T

    def decode(self, codes_NC: Tensor) -> Tensor:
        """Turn codes ``[N,C]`` into patches ``[N,D]``."""
        return codes_NC @ self.synthesis + self.mean


def principal_components(patches_ND: Tensor, num_components: int) -> Basis:
    """Find components by randomised subspace iteration (Halko, Martinsson and Tropp, 2011, Algorithm 4.4).

    Exact to round-off when ``num_components + OVERSAMPLING`` reaches the rank. Components past the
    rank of the sample are orthonormal directions of variance 0.

    Args:
        patches_ND: float32 patches ``[N,D]``; N may be smaller than C.
        num_components: C, at most D.

    Returns:
        Orthonormal rows in order of falling variance, each with its largest entry positive.
    """
    num_patches, size = patches_ND.shape
    mean_D = patches_ND.mean(0)
    centred_ND = patches_ND - mean_D
    num_probes = min(num_components + OVERSAMPLING, size)
    probe = generator(0, "pca", num_probes).standard_normal((num_probes, size), dtype="float32")
    basis_DK = torch.linalg.qr(torch.from_numpy(probe).to(patches_ND).T)[0]
    for _ in range(POWER_ITERATIONS):
        basis_DK = _orthonormal(centred_ND.T @ (centred_ND @ basis_DK), basis_DK)
    codes_NK = centred_ND @ basis_DK
    values_K, rotation_KK = torch.linalg.eigh((codes_NK.T @ codes_NK).double() / num_patches)
    rows_CD = (basis_DK @ rotation_KK.flip(1).to(basis_DK)).T[:num_components]
    variance_C = values_K.flip(0)[:num_components].clamp_min(0).to(patches_ND)
    largest = rows_CD.gather(1, rows_CD.abs().argmax(1, keepdim=True))
    rows_CD = (rows_CD * largest.sign()).contiguous()
    return Basis(mean_D, rows_CD, rows_CD.clone(), variance_C)


def _orthonormal(columns_DK: Tensor, fallback_DK: Tensor) -> Tensor:
    """Orthonormalise columns by QR; a tiny share of the earlier basis keeps columns past the rank well defined."""
    scale = columns_DK.norm(dim=0).max().clamp_min(1e-12)
    return torch.linalg.qr(columns_DK / scale + 1e-6 * fallback_DK)[0]


def condition(basis: Basis, whitening: float, floor: float = 1e-4) -> Basis:
    """Scale the codes so that their mean variance is 1, and spread it evenly over the channels.

    ``whitening`` 0 keeps the geometry of pixels (an error of the code is an equal error of the
    pixels, but weak components drown in a diffusion model's noise); 1 gives every component the
    same variance (weak components, mostly noise, weigh as much as strong ones). Between: component
    ``i`` keeps variance ``v_i^(1 - whitening)``. A rotation then gives every channel about variance 1,
    so no channel is near-dead and none dominates. Decoding stays exact PCA.

    Args:
        basis: orthonormal, from :func:`principal_components`.
        whitening: 0 … 1.
        floor: smallest variance, as a share of the largest, that scaling believes in.
    """
    variance_C = basis.variance.clamp_min(floor * basis.variance.max().clamp_min(1e-12))
    gain_C = variance_C.pow(-0.5 * whitening)
    gain_C = gain_C / (gain_C.square() * variance_C).mean().sqrt()
    return rotate(
        Basis(
            basis.mean,
            basis.analysis * gain_C[:, None],
            basis.synthesis / gain_C[:, None],
            basis.variance * gain_C.square(),
        ),
        orthogonal(len(gain_C)).to(gain_C),
    )


def rotate(basis: Basis, rotation_CC: Tensor) -> Basis:
    """Return the same subspace with codes ``z @ rotation.T``."""
    variance_C = (rotation_CC.square() @ basis.variance[:, None])[:, 0]
    return Basis(basis.mean, rotation_CC @ basis.analysis, rotation_CC @ basis.synthesis, variance_C)


def alignment(codes_NC: Tensor, target_NC: Tensor) -> Tensor:
    """Return the rotation ``[C,C]`` that brings paired codes closest to a target (orthogonal Procrustes)."""
    left, _, right = torch.linalg.svd((target_NC.T @ codes_NC).double())
    return (left @ right).to(codes_NC)
