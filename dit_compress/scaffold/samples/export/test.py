"""The contract of exporters, on this one. ``pytest -k "not silent"`` leaves out the corpus of silent failures."""

from dit_compress.testing.exporters import ExporterContract
from dit_compress.testing.found import assert_found

from dit_compress.scaffold.samples.export import ExampleOptions
from dit_compress.scaffold.samples.export.exporter import ExampleExport


class TestExample(ExporterContract):
    """The promises of ``check``, ``lower`` and ``runner``."""

    def exporter(self) -> ExampleExport:
        """Change this: the options that shall be tested; one class for each set of them."""
        return ExampleExport(ExampleOptions())


def test_it_is_installed_and_found() -> None:
    """``pip install --no-deps -e .`` makes it so."""
    assert_found("export", "example")
