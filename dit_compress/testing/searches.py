"""The contract of searches, as a class of tests: subclass it, name your search, run pytest.

from dit_compress.testing.searches import SearchContract

class TestMine(SearchContract):
    def search(self):
        return MySearch(MyOptions())
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from dit_compress.model.cut import compact, example_output
from dit_compress.plugin.defaults import LEVELS, TINY_MODEL
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import tiny_bundle, tiny_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.search.problem import Selection
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis


class SearchContract:
    """Counts, order, repeatability, and a model that is left as it was."""

    model = TINY_MODEL
    levels: ClassVar[Mapping[str, Mapping[str, Any]]] = dict(
        zip(LEVELS, ({"remove": 1}, {"remove": 1}, {"keep": 0.5, "units": 8}), strict=True)
    )

    def search(self) -> Any:
        """Return the search under test, with the options that shall be tested."""
        raise NotImplementedError("Return your search: def search(self): return MySearch(MyOptions())")

    @pytest.fixture(scope="class")
    def context(self, tmp_path_factory: pytest.TempPathFactory) -> Context:
        """Make a step over a whole bundle and drawn clips, for searches that measure losses."""
        folder = tmp_path_factory.mktemp("search")
        return tiny_context(folder / "step", input=tiny_bundle(folder / "bundle"))

    def problem(self, *, whole: bool = False) -> SearchProblem:
        """Make a problem of every level of a tiny model; ``whole`` asks for all units."""
        denoiser = tiny_denoiser(self.model).requires_grad_(requires_grad=False).eval()
        structure = denoiser.structure()
        axes: list[Axis] = []
        keep: dict[str, int] = {}
        units: dict[str, int] = {}
        for name, options in self.levels.items():
            level = make_part("granularity", {"use": name, **options}, installed()).build()
            found = level.axes(structure)
            axes += found
            keep |= {axis.name: axis.units if whole else level.keep(axis) for axis in found}
            units |= {} if level.num_parts is None else {name: level.num_parts}
        return SearchProblem(denoiser, tuple(axes), keep, units)

    def select(self, problem: SearchProblem, context: Context) -> Selection:
        """Run one search, made anew."""
        return self.search().search(problem, context)

    def test_exactly_as_many_units_stay_as_are_asked_for(self, context: Context) -> None:
        """Of every axis, ascending, each once, all of them there."""
        problem = self.problem()
        kept = self.select(problem, context).kept
        missing = {axis.name for axis in problem.axes} - kept.keys()
        assert not missing, f"nothing is said of {sorted(missing)}"
        for axis in problem.axes:
            stay, wanted = kept[axis.name], problem.keep[axis.name]
            assert len(stay) == wanted, f"{axis.name}: {len(stay)} units stay, {wanted} were asked for"
            assert list(stay) == sorted(set(stay)), f"{axis.name}: units shall ascend, each once: {stay}"
            assert set(stay) <= set(range(axis.units)), f"{axis.name} has units 0 to {axis.units - 1}: {stay}"

    def test_what_stays_whole_stays_whole(self, context: Context) -> None:
        """Every unit stays where every unit is asked for."""
        problem = self.problem(whole=True)
        kept = self.select(problem, context).kept
        cut = {axis.name: kept.get(axis.name, ()) for axis in problem.axes}
        assert cut == {axis.name: tuple(range(axis.units)) for axis in problem.axes}

    def test_the_model_is_left_as_it_was(self, context: Context) -> None:
        """The same weights, flags and velocity: no hook stays behind."""
        problem = self.problem()
        denoiser = problem.denoiser
        before = {name: value.clone() for name, value in denoiser.module.state_dict().items()}
        flags, output = _flags(denoiser), example_output(denoiser)
        self.select(problem, context)
        changed = [name for name, value in denoiser.module.state_dict().items() if not torch.equal(value, before[name])]
        assert not changed, f"the search changed weights of the model: {changed}"
        assert _flags(denoiser) == flags, "the search left requires_grad or training mode changed"
        assert torch.equal(example_output(denoiser), output), "the velocity differs: is a hook left in the model?"

    def test_an_equal_problem_gives_an_equal_choice(self, context: Context) -> None:
        """Draws come from ``core.randomness.generator``, not from torch's and NumPy's own generators."""
        torch.manual_seed(1)
        first = self.select(self.problem(), context).kept
        torch.manual_seed(2)
        assert self.select(self.problem(), context).kept == first, "two searches of one seed differ"

    def test_the_history_is_json(self, context: Context) -> None:
        """It becomes ``search.json``."""
        history = self.select(self.problem(), context).history
        assert json.loads(json.dumps(history)) == history, "the history shall hold JSON data: lists, not tuples"

    def test_the_choice_can_be_compacted(self, context: Context) -> None:
        """The pruned model is smaller, and proven equal to the masked one."""
        problem = self.problem()
        kept = self.select(problem, context).kept
        before = sum(parameter.numel() for parameter in problem.denoiser.parameters())
        compact(problem.denoiser, problem.axes, kept)
        assert sum(parameter.numel() for parameter in problem.denoiser.parameters()) < before


def _flags(module: torch.nn.Module) -> list[bool]:
    return [*(each.requires_grad for each in module.parameters()), *(each.training for each in module.modules())]
