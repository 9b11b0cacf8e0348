"""The contract of distillers, on this one: who gets gradients, what a loss may draw from, what it is a mean of."""

from dit_compress.model.flow import Flow
from dit_compress.testing.distillers import DistillerContract
from dit_compress.testing.found import assert_found
from dit_compress.testing.models import tiny_batch, tiny_denoiser, tiny_text
from dit_compress.train.objective import Batch

from dit_compress.scaffold.samples.distill import ExampleOptions
from dit_compress.scaffold.samples.distill.distiller import ExampleObjective


class TestExample(DistillerContract):
    """Roles, phases and losses."""

    def objective(self) -> ExampleObjective:
        """Change this: give it what it needs; ``tiny_denoiser("video_dit", seed=1)`` is a teacher."""
        student, text = tiny_denoiser("video_dit"), tiny_text()
        return ExampleObjective(ExampleOptions(), student, text, Flow())

    def batch(self) -> Batch:
        """Return three samples."""
        return tiny_batch(tiny_text(), size=3)


def test_it_is_installed_and_found() -> None:
    """``pip install --no-deps -e .`` makes it so."""
    assert_found("distill", "example")
