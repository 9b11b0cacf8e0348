"""The paper's discriminator on three DiTs: frozen generator blocks, learnable blocks, an MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.testing.models import MODELS, tiny_denoiser

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_compress.model.denoiser import Cond, Denoiser


def discriminator(generator: Denoiser, **options: Any) -> nn.Module:
    options = {"frozen_blocks": 1, "learnable_blocks": 1, **options}
    return make_part("discriminator", {"use": "dit_block", **options}, installed()).build().create(generator)


def example(denoiser: Denoiser) -> tuple[Tensor, Tensor, Cond]:
    torch.manual_seed(5)
    return denoiser.example(2, denoiser.example_size)


@pytest.mark.parametrize("name", MODELS)
def test_one_logit_per_token(name: str) -> None:
    generator = tiny_denoiser(name)
    logits = discriminator(generator)(*example(generator))
    assert tuple(logits.shape) == (2, 8)
    assert torch.isfinite(logits).all()
    assert float(logits.detach().std()) > 0


@pytest.mark.parametrize("name", MODELS)
def test_the_first_blocks_are_frozen_the_next_learn_the_rest_is_gone(name: str) -> None:
    generator = tiny_denoiser(name)
    judge = discriminator(generator)
    judge(*example(generator)).sum().backward()
    stack = generator.structure().main
    moving = {key for key, value in judge.named_parameters() if value.requires_grad}
    trunk = f"trunk.module.{stack.path}"
    assert all(key.startswith((f"{trunk}.1.", "head.")) for key in moving)
    assert {f"head.{index}.weight" for index in (0, 1, 3)} <= moving
    names = [key for key, _ in judge.named_parameters()]
    assert any(key.startswith(f"{trunk}.0.") for key in names)
    assert not any(key.startswith(f"{trunk}.2.") for key in names)
    silent = [key for key, value in judge.named_parameters() if value.requires_grad and value.grad is None]
    assert silent == []


@pytest.mark.parametrize("name", MODELS)
def test_the_generator_stays_as_it_is(name: str) -> None:
    generator = tiny_denoiser(name)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    judge = discriminator(generator)
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter.add_(1.0)
    assert generator.structure().main.length == 3
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_reaches_the_judged_latent(name: str) -> None:
    generator = tiny_denoiser(name)
    latent, sigma, cond = example(generator)
    discriminator(generator)(latent.requires_grad_(), sigma, cond).mean().backward()
    assert latent.grad is not None
    assert float(latent.grad.abs().min()) > 0


def test_it_is_told_sigma_and_caption() -> None:
    generator = tiny_denoiser("video_dit")
    judge = discriminator(generator)
    latent, sigma, cond = example(generator)
    with torch.no_grad():
        base = judge(latent, sigma, cond)
        assert not torch.allclose(base, judge(latent, sigma / 2, cond))
        assert not torch.allclose(base, judge(latent, sigma, cond.drop(torch.tensor([True, True]))))


def test_half_of_the_generator_is_frozen_by_default() -> None:
    judge: Any = discriminator(tiny_denoiser("video_dit"), frozen_blocks=None, learnable_blocks=2)
    assert judge.tap == 2
    frozen = judge.trunk.module.transformer_blocks[0]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_the_mlp_is_as_wide_as_asked() -> None:
    judge: Any = discriminator(tiny_denoiser("video_dit"), hidden=5)
    assert [tuple(judge.head[index].weight.shape) for index in (1, 3)] == [(5, 48), (1, 5)]
    assert type(judge.head[2]).__name__ == "SiLU"


def test_more_blocks_than_the_generator_has_is_an_error() -> None:
    with pytest.raises(UserError, match="2 frozen and 2 learnable blocks are more than the generator's 3. Lower"):
        discriminator(tiny_denoiser("video_dit"), frozen_blocks=2, learnable_blocks=2)
