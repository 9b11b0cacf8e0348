"""The contract of discriminators, on this one: three DiTs, one row of logits per sample, a generator left alone."""

from dit_compress.testing.discriminators import DiscriminatorContract
from dit_compress.testing.found import assert_found

from dit_compress.scaffold.samples.discriminator import ExampleOptions
from dit_compress.scaffold.samples.discriminator.discriminator import ExamplePart


class TestExample(DiscriminatorContract):
    """The generators have three blocks."""

    def discriminator(self) -> ExamplePart:
        """Change this: the options that shall be tested."""
        return ExamplePart(ExampleOptions(frozen_blocks=2, hidden=16))


def test_it_is_installed_and_found() -> None:
    """``pip install --no-deps -e .`` makes it so."""
    assert_found("discriminator", "example")
