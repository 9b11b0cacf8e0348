"""The other two heads of Table 5: equal feature, equal size, any DiT; what each of them can see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress.train.discriminators import groups_of, matched_width, reference_parameters
from dit_compress_plugins.discriminator_light_resblock3d.discriminator import LightResBlock3D
from dit_compress_plugins.discriminator_resblock2d_temporal.discriminator import ResBlock2DTemporal

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser

HEADS = ("resblock2d_temporal", "light_resblock3d")


def judge(head: str, generator: Denoiser, **options: Any) -> Any:
    torch.manual_seed(3)
    return (
        make_part("discriminator", {"use": head, "frozen_blocks": 1, **options}, installed()).build().create(generator)
    )


def example(denoiser: Denoiser) -> tuple[Tensor, Tensor, Cond]:
    torch.manual_seed(5)
    return denoiser.example(2, denoiser.example_size)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", HEADS)
def test_one_logit_per_token_and_a_gradient_at_the_latent(head: str, name: str) -> None:
    generator = tiny_denoiser(name)
    latent, sigma, cond = example(generator)
    logits = judge(head, generator)(latent.requires_grad_(), sigma, cond)
    assert tuple(logits.shape) == (2, 8)
    logits.mean().backward()
    assert latent.grad is not None
    assert float(latent.grad.abs().max()) > 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", HEADS)
def test_only_the_head_learns_and_is_as_large_as_the_papers(head: str, name: str) -> None:
    generator = tiny_denoiser(name)
    made = judge(head, generator)
    moving = {key: value.numel() for key, value in made.named_parameters() if value.requires_grad}
    assert all(key.startswith("head.") for key in moving)
    reference = make_part(
        "discriminator", {"use": "dit_block", "frozen_blocks": 1, "learnable_blocks": 2}, installed()
    ).build()
    papers = sum(p.numel() for p in reference.create(generator).parameters() if p.requires_grad)
    assert reference_parameters(generator, 1) == papers
    assert sum(moving.values()) == pytest.approx(papers, rel=0.1)


def tokens(frames: int = 3) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 6, frames, 4, 4, requires_grad=True)


def reach(head: nn.Module, place: tuple[int, int, int]) -> Tensor:
    """Where a token's logit looks, ``[T,H,W]``, with the norms' means and deviations held fixed."""
    for module in head.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    x = tokens()
    head(x)[0, 0, place[0], place[1], place[2]].backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0) > 0


def test_the_light_block_sees_one_token() -> None:
    seen = reach(LightResBlock3D(6, 8), (1, 2, 2))
    assert seen.nonzero().tolist() == [[1, 2, 2]]


def test_the_residual_block_sees_five_by_five_cells_of_every_frame() -> None:
    """Two 3×3 convolutions reach two cells away; attention joins the frames of a cell."""
    seen = reach(ResBlock2DTemporal(6, 8), (1, 0, 0))
    expected = torch.zeros(3, 4, 4, dtype=torch.bool)
    expected[:, :3, :3] = True
    assert torch.equal(seen, expected)


def test_tokens_are_a_grid_in_the_order_of_time_height_width() -> None:
    """A head that picks the first channel gives the feature back, token by token."""
    generator = tiny_denoiser("ltx")
    made = judge("light_resblock3d", generator)
    made.head = type("First", (nn.Module,), {"forward": lambda _, x: x[:, :1]})()
    latent, sigma, cond = example(generator)
    with torch.no_grad():
        _, taken = made.trunk.features(latent, sigma, cond, at=[0])
        assert torch.equal(made(latent, sigma, cond), taken[0][..., 0])


def test_widths_match_a_number_of_parameters() -> None:
    """A layer 10 → w and back has 20w + w + 10 parameters: 346 at 16, 514 at 24."""

    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(10, width), nn.Linear(width, 10))

    assert [matched_width(make, target) for target in (346, 420, 440, 514)] == [16, 16, 24, 24]


def test_groups_divide_the_width() -> None:
    assert [groups_of(width) for width in (8, 24, 40, 64, 33)] == [8, 24, 20, 32, 11]


@pytest.mark.parametrize("head", HEADS)
def test_more_frozen_blocks_than_there_are_is_an_error(head: str) -> None:
    with pytest.raises(UserError, match=r"4 frozen blocks are more than the generator's 3. Lower 'frozen_blocks'"):
        judge(head, tiny_denoiser("video_dit"), frozen_blocks=4)
