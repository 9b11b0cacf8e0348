"""The contract of granularities, on this one: three DiTs, masked equals compact."""

from dit_compress.testing.found import assert_found
from dit_compress.testing.granularities import GranularityContract

from dit_compress.scaffold.samples.granularity import ExampleOptions
from dit_compress.scaffold.samples.granularity.axes import ExampleGranularity


class TestExample(GranularityContract):
    """Axes as data."""

    def granularity(self) -> ExampleGranularity:
        """Change this: options that fit small models; theirs are feed-forwards of 64 and 192 channels."""
        return ExampleGranularity(ExampleOptions(remove=1, run=16))


def test_it_is_installed_and_found() -> None:
    """``pip install --no-deps -e .`` makes it so."""
    assert_found("granularity", "example")
