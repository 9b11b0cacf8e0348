"""The contract of granularities, as a class of tests: subclass it, name yours, run pytest.

    from dit_compress.testing.granularities import GranularityContract

    class TestMine(GranularityContract):
        def granularity(self):
            return MyGranularity(MyOptions(remove=1))

A granularity is right when a unit's mask and its removal are the same thing, on models that it never saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from dit_compress.model.cut import compact, example_output, masked_output
from dit_compress.search.levels import structure_for
from dit_compress.structure.compact import relative_error
from dit_compress.structure.lookup import tensor_or_none
from dit_compress.structure.masks import masked
from dit_compress.testing.models import MODELS, tiny_denoiser

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis, Kept

SEEN = 1e-6
"""Relative change of the velocity below which a plan changed nothing."""


def odd_plan(axes: list[Axis]) -> Kept:
    """Remove the first unit of every axis, and of wide axes every third one."""
    return {axis.name: tuple(u for u in range(axis.units) if u != 0 and (axis.units < 6 or u % 3)) for axis in axes}


@pytest.mark.parametrize("model", MODELS)
class GranularityContract:
    """Axes as data: named once, owned once, masked where they are removed."""

    def granularity(self) -> Any:
        """Return the granularity under test, with options that settle how many units stay."""
        raise NotImplementedError("Return yours: def granularity(self): return MyGranularity(MyOptions(remove=1))")

    def axes(self, denoiser: Denoiser) -> list[Axis]:
        """Return the axes on a model."""
        granularity = self.granularity()
        found = granularity.axes(structure_for([granularity], denoiser))
        assert found, "it names no axis: nothing of this model could be removed"
        return found

    def test_axes_are_named_after_one_level(self, model: str) -> None:
        """``<level>:<place>``, each name once, more than one unit each."""
        axes = self.axes(tiny_denoiser(model))
        (level,) = {axis.level for axis in axes}
        names = [axis.name for axis in axes]
        assert len(set(names)) == len(names), f"names occur twice: {names}"
        assert all(name.startswith(f"{level}:") for name in names), f"names begin with {level + ':'!r}: {names}"
        assert all(axis.units > 1 for axis in axes), "an axis of one unit can't be pruned"

    def test_the_same_structure_gives_the_same_axes(self, model: str) -> None:
        """Plans name axes and units: both must be found again, without weights, too."""
        axes = self.axes(tiny_denoiser(model))
        assert self.axes(tiny_denoiser(model, seed=1).to("meta")) == axes

    def test_every_unit_owns_slices_of_its_own(self, model: str) -> None:
        """Inside the tensor, in equal numbers, none owned twice."""
        denoiser = tiny_denoiser(model)
        for axis in self.axes(denoiser):
            assert axis.members or axis.blocks, f"{axis.name}: no unit owns anything"
            for member in axis.members:
                tensor = tensor_or_none(denoiser.module, member.tensor)
                assert len(member.indices) == axis.units, f"{axis.name}: {member.tensor} has not one row per unit"
                owned = member.indices.reshape(-1)
                assert len(set(owned.tolist())) == len(owned), f"{axis.name}: two units own a slice of {member.tensor}"
                length = owned.max() + 1 if tensor is None else tensor.shape[member.dim]
                assert 0 <= owned.min() <= owned.max() < length, f"{axis.name}: indices outside {member.tensor}"

    def test_a_mask_reaches_every_unit(self, model: str) -> None:
        """Masks of one change nothing, and the velocity has a derivative by each of them."""
        denoiser = tiny_denoiser(model)
        axes = self.axes(denoiser)
        values = {axis.name: torch.ones(axis.units, requires_grad=True) for axis in axes}
        torch.manual_seed(0)
        inputs = denoiser.example(2, denoiser.example_size)
        with torch.no_grad():
            plain = denoiser(*inputs)
        with masked(denoiser.module, axes, values):
            found = denoiser(*inputs)
        assert relative_error(found.detach(), plain) < SEEN, "masks of one change the velocity"
        found.square().sum().backward()
        for name, value in values.items():
            still = [] if value.grad is None else (value.grad == 0).nonzero().flatten().tolist()
            assert value.grad is not None, f"{name}: no mask point, the velocity does not depend on its masks"
            assert not still, f"{name}: the velocity does not depend on the masks of units {still}"

    def test_masked_equals_compact(self, model: str) -> None:
        """A mask of zero and removal give the same velocity; a model without the units is smaller."""
        denoiser = tiny_denoiser(model)
        axes = self.axes(denoiser)
        kept = odd_plan(axes)
        whole, wanted = example_output(denoiser), masked_output(denoiser, axes, kept)
        assert relative_error(wanted, whole) > SEEN, "the plan changes nothing: the units' masks do not act"
        before = sum(parameter.numel() for parameter in denoiser.parameters())
        compact(denoiser, axes, kept)
        assert sum(parameter.numel() for parameter in denoiser.parameters()) < before, "no parameter went"
        error = relative_error(example_output(denoiser), wanted)
        assert error < 1e-5, f"masked and compact differ by {error:.1e}: something must follow that does not"

    def test_keep_is_a_count_of_the_axis(self, model: str) -> None:
        """1 to all of its units; None leaves it to a budget."""
        granularity = self.granularity()
        for axis in granularity.axes(structure_for([granularity], tiny_denoiser(model))):
            keep = granularity.keep(axis)
            assert keep is None or (isinstance(keep, int) and 1 <= keep <= axis.units), f"{axis.name} would keep {keep}"
        assert granularity.multiple_of >= 1
        assert granularity.num_parts is None or granularity.num_parts >= 1
