"""The contract of searches, on this one: exact counts, equal choices for equal seeds, a model left as it was."""

from dit_compress.testing.found import assert_found
from dit_compress.testing.searches import SearchContract

from dit_compress.scaffold.samples.search import ExampleOptions
from dit_compress.scaffold.samples.search.search import ExampleSearch


class TestExample(SearchContract):
    """Blocks, heads and feed-forward channels of a tiny DiT; ``model`` and ``levels`` choose others."""

    def search(self) -> ExampleSearch:
        """Change this: the options that shall be tested."""
        return ExampleSearch(ExampleOptions())


def test_it_is_installed_and_found() -> None:
    """``pip install --no-deps -e .`` makes it so."""
    assert_found("search", "example")
