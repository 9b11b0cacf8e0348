"""The contract of every transform, as a class of tests: subclass it, name yours, run pytest.

    from dit_compress.testing.transforms import TransformContract

    class TestMine(TransformContract):
        def step(self):
            return MyTransform(MyOptions())

The step runs once, on the bundle of :meth:`TransformContract.bundle`. Its plugin must be installed: the bundle names
it, and loads the model through it.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.cut import compact, example_output, masked_output
from dit_compress.plugin import defaults
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.context import Context
from dit_compress.structure.compact import LOG_NAME, relative_error
from dit_compress.testing.granularities import odd_plan
from dit_compress.testing.steps import tiny_bundle, tiny_context

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dit_compress.model.spec import ComponentSpec
    from dit_compress.step.context import Result

LEVELS = defaults.LEVELS
SAME = 1e-5
"""Relative difference of a masked model and a compact one, in float32."""


@dataclass
class Remembering(Context):
    """A step's context that keeps the live modules that go into the bundle."""

    given: dict[str, nn.Module] = field(default_factory=dict)

    def give(self, modules: dict[str, nn.Module], **more: Any) -> Result:
        """Write the bundle."""
        self.given = modules
        return super().give(modules, **more)


@dataclass(frozen=True)
class Made:
    """The outcome of one run: the module in memory, and the bundle on disk."""

    module: nn.Module
    bundle: Bundle

    @property
    def component(self) -> ComponentSpec:
        """The denoiser, without weights."""
        return self.bundle.spec.need_denoiser()


class TransformContract:
    """A log that suffices, a bundle that gives the model back, and pruning after it: exact, or refused."""

    def step(self) -> Any:
        """Make the step under test."""
        raise NotImplementedError("Return your step: def step(self): return MyTransform(MyOptions())")

    def bundle(self, folder: Path) -> Bundle:
        """Make the bundle it works on."""
        return tiny_bundle(folder)

    @pytest.fixture(scope="class")
    def before(self, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        """Open the bundle as the step finds it."""
        return self.bundle(tmp_path_factory.mktemp("before") / "bundle")

    @pytest.fixture(scope="class")
    def made(self, before: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Made:
        """Run the step once."""
        context = Remembering(**vars(tiny_context(tmp_path_factory.mktemp("transform"), input=before)))
        result = self.step().run(context)
        assert result.bundle is not None, "run gives no bundle: return context.give({'denoiser': …}, log=[entry])"
        assert "denoiser" in context.given, "run gives no denoiser: return context.give({'denoiser': …}, log=[entry])"
        return Made(context.given["denoiser"], Bundle.open(result.bundle.path))

    def test_the_plan_logs_what_run_logs(self, before: Bundle, made: Made) -> None:
        """So that what follows is planned on the model that will be there."""
        old, planned = before.spec.need_denoiser().log, self.step().plan(before.spec).need_denoiser().log
        assert made.component.log[: len(old)] == old, "run takes entries out of the log"
        assert len(made.component.log) > len(old), "run logs nothing: give the bundle with log=[entry]"
        assert json.loads(json.dumps(planned)) == list(made.component.log), "plan and run log different entries"

    def test_the_log_is_json_and_names_the_plugin(self, before: Bundle) -> None:
        """Name, revision and data: nothing else is at hand when the bundle loads, and JSON loses nothing of it."""
        old = before.spec.need_denoiser().log
        for entry in self.step().plan(before.spec).need_denoiser().log[len(old) :]:
            assert set(entry) == {"name", "revision", "data"}
            assert json.loads(json.dumps(entry)) == entry, "data is no JSON: tuples come back as lists"
            assert entry["name"] != LOG_NAME, f"{LOG_NAME!r} is the name of the engine's own entries"
            assert isinstance(entry["revision"], int)
            installed().get("transform", entry["name"])

    def test_replay_without_weights_gives_what_run_made(self, made: Made) -> None:
        """The same names and shapes, on the meta device."""
        replayed = made.component.build()
        own = [name for name, value in replayed.named_parameters() if not value.is_meta]
        assert not own, f"replay makes weights where there should be none: {own[:3]}"
        assert _shapes(replayed) == _shapes(made.module), "replay and run make different models"

    def test_replay_can_be_repeated(self, made: Made) -> None:
        """Twice from the base: the same model, and the log as it was."""
        log = copy.deepcopy(made.component.log)
        first, second = (_shapes(made.component.build()) for _ in range(2))
        assert first == second, "replay gives another model the second time"
        assert made.component.log == log, "replay changes the data it is given"

    def test_the_bundle_computes_what_run_gave(self, before: Bundle, made: Made) -> None:
        """Every tensor, and the velocity, bit for bit."""
        found, live = made.bundle.denoiser(), before.denoiser()
        live.module = made.module
        live.forget_structure()
        state = found.module.state_dict()
        different = [k for k, value in made.module.state_dict().items() if not torch.equal(value.cpu(), state[k])]
        assert not different, f"saved and loaded, {different[:3]} differ"
        assert torch.equal(example_output(found), example_output(live)), "replay computes something else than run"

    @pytest.mark.parametrize("level", LEVELS)
    def test_pruning_after_it_is_exact_or_refused(self, made: Made, tmp_path: Path, level: str) -> None:
        """Masked = compact = the bundle that is pruned, saved and loaded; else one message that says why."""
        denoiser = made.bundle.denoiser()
        structure = denoiser.structure()
        axes = make_part("granularity", level, installed()).build().axes(structure)
        if not axes:
            assert structure.refusals, f"no {level} is left to prune, and nothing says why"
            return
        kept = odd_plan(axes)
        wanted = masked_output(denoiser, axes, kept)
        try:
            entry = compact(denoiser, axes, kept)
        except UserError as error:
            if not error.problems[0][2]:
                pytest.fail(f"the refusal has no mend: {error}")
            return
        found = example_output(denoiser)
        assert relative_error(found, wanted) < SAME, "masked and compact differ: something must follow that does not"
        pruned = tiny_context(tmp_path, input=made.bundle).give({"denoiser": denoiser.module}, log=[entry]).bundle
        assert pruned is not None
        assert torch.equal(example_output(Bundle.open(pruned.path).denoiser()), found), "replay after pruning differs"


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
