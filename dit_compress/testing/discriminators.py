"""The contract of discriminators, as a class of tests: subclass it, name yours, run pytest.

from dit_compress.testing.discriminators import DiscriminatorContract

class TestMine(DiscriminatorContract):
    def discriminator(self):
        return MyPart(MyOptions())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from dit_compress.model.cut import example_output
from dit_compress.testing.models import MODELS, tiny_denoiser

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser

SAME = 1e-4
"""Largest difference of equal computations in another order."""


@pytest.mark.parametrize("model", MODELS)
class DiscriminatorContract:
    """One logit per token or patch, something to learn, a generator that is left alone."""

    def discriminator(self) -> Any:
        """Return the part under test, with options that fit a generator of three blocks."""
        raise NotImplementedError("Return yours: def discriminator(self): return MyPart(MyOptions())")

    def judge(self, generator: Denoiser) -> Any:
        """Make the module, the same at every call."""
        torch.manual_seed(3)
        return self.discriminator().create(generator)

    def test_logits_are_a_row_per_sample(self, model: str) -> None:
        """``[B,S]``, finite, and the samples of a batch do not mix."""
        generator = tiny_denoiser(model)
        latent, sigma, cond = example(generator)
        judge = self.judge(generator).eval()
        with torch.no_grad():
            logits = judge(latent, sigma, cond)
            first = judge(latent[:1], sigma[:1], cond.take(slice(0, 1)))
        assert logits.ndim == 2, f"logits are [B,S], not {list(logits.shape)}"
        assert len(logits) == 2
        assert logits.isfinite().all()
        assert (logits[:1] - first).abs().max() < SAME, "a sample's logits depend on the others of its batch"

    def test_it_looks_at_the_latent(self, model: str) -> None:
        """The generator learns through the gradient there."""
        generator = tiny_denoiser(model)
        latent, sigma, cond = example(generator)
        self.judge(generator)(latent.requires_grad_(), sigma, cond).mean().backward()
        assert latent.grad is not None, "the logits do not depend on the latent"
        assert latent.grad.abs().max() > 0, "the logits do not depend on the latent"

    def test_it_has_something_to_learn(self, model: str) -> None:
        """A gradient at every parameter that requires one, and at one at least."""
        generator = tiny_denoiser(model)
        judge = self.judge(generator)
        moving = {name: value for name, value in judge.named_parameters() if value.requires_grad}
        assert moving, "no parameter requires a gradient: nothing can be learnt"
        judge(*example(generator)).square().mean().backward()
        idle = [name for name, value in moving.items() if value.grad is None]
        assert not idle, f"these require a gradient and get none: {idle}"

    def test_the_generator_is_left_alone(self, model: str) -> None:
        """It shares no tensor that moves, and computes what it did."""
        generator = tiny_denoiser(model)
        before = example_output(generator)
        judge = self.judge(generator)
        own = {value.data_ptr() for value in generator.parameters()}
        shared = [name for name, value in judge.named_parameters() if value.requires_grad and value.data_ptr() in own]
        assert not shared, f"these are the generator's own weights, and would be trained: {shared}"
        judge(*example(generator)).mean().backward()
        assert all(value.grad is None for value in generator.parameters()), "the generator gets gradients"
        assert torch.equal(example_output(generator), before), "the generator computes something else now"


def example(generator: Denoiser) -> tuple[Tensor, Tensor, Cond]:
    """Return two samples."""
    torch.manual_seed(5)
    return generator.example(2, generator.example_size)
