"""The contract of latent steps, on this one: geometry, normalised latents, a bundle that gives the codec back."""

from dit_compress.testing.found import assert_found
from dit_compress.testing.latents import LatentContract

from dit_compress.scaffold.samples.latent import ExampleOptions
from dit_compress.scaffold.samples.latent.codec import ExampleStep


class TestExample(LatentContract):
    """The step, run once on drawn clips of 9 frames of 32 × 32 pixels; ``data`` gives others."""

    def step(self) -> ExampleStep:
        """Change this: options that take seconds."""
        return ExampleStep(ExampleOptions(frames=4, cell=8, channels=8))


def test_it_is_installed_and_found() -> None:
    """``pip install --no-deps -e .`` makes it so."""
    assert_found("latent", "example")
