"""Where R1 is taken: the feature at which a discriminator begins to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_compress.model.denoiser import Cond


def learns_inside(judge: nn.Module) -> bool:
    """Tell whether blocks of the generator are what it trains."""
    trunk = getattr(judge, "trunk", None)
    return trunk is not None and any(parameter.requires_grad for parameter in trunk.parameters())


def logits_and_leaf(judge: nn.Module, latent: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """Return logits, and the tensor whose slope R1 is about: the feature after the frozen blocks, else the latent.

    A discriminator says where it begins to learn by ``trunk`` (a denoiser) and ``frozen_blocks``. Attention is
    computed plainly: the fused kernels have no second derivative.
    """
    trunk, frozen = getattr(judge, "trunk", None), getattr(judge, "frozen_blocks", 0)
    with sdpa_kernel(SDPBackend.MATH):
        if trunk is None or not frozen:
            leaf = latent.detach().requires_grad_()
            return judge(leaf, sigma, cond), leaf
        with trunk.leaf(frozen - 1) as leaves:
            logits = judge(latent, sigma, cond)
        return logits, leaves[0]
