"""Distances of samples to a mixture, by hand on a line; exact samples at their floors; a whole small run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from dit_compress.core.errors import UserError
from dit_compress.data.clips import Clip
from dit_compress.measure.mixture import Mixture
from dit_compress_plugins.evaluate_mixture_samples.distances import by_modes, lines, near, sliced_wasserstein
from dit_compress_plugins.evaluate_mixture_samples.step import draw, evenly, explained

if TYPE_CHECKING:
    from torch import Tensor

MEANS = torch.tensor([[[-3.0], [3.0]]])
"""One caption, two modes on a line."""


def on_a_line(*values: float) -> Tensor:
    return torch.tensor(values)[None, :, None]


# ------------------------------------------------------------------ distances


def test_on_a_line_samples_are_paired_by_rank() -> None:
    """1, 2, 6 and 5, 1, 3 in order: differences 0, -1, 1, and the root of their mean square; a line has two directions."""
    expected = math.sqrt((0 + 1 + 1) / 3)
    for way in (1.0, -1.0):
        found = sliced_wasserstein(on_a_line(6.0, 1.0, 2.0), on_a_line(5.0, 1.0, 3.0), torch.tensor([[way]]))
        assert found.tolist() == pytest.approx([expected])


def test_a_shift_is_as_far_as_it_is_along_each_direction() -> None:
    """By (3, 4): along x by 3, along y by 4, root mean square sqrt(25 / 2)."""
    points = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    found = sliced_wasserstein(points, points + torch.tensor([3.0, 4.0]), torch.eye(2))
    assert found.tolist() == pytest.approx([math.sqrt(12.5)], rel=1e-5)


def test_directions_are_unit_vectors() -> None:
    found = lines(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.0], [0.8, -1.0]]))


def test_the_radius_is_that_of_the_chi_distribution() -> None:
    """On a line 95% of normal numbers are within 1.96 deviations; in two dimensions 1 - exp(-r²/2) within r."""
    assert near(0.5, 1, 0.95) == pytest.approx(0.5 * 1.959964, rel=1e-6)
    assert near(2.0, 2, 0.5) == pytest.approx(2 * math.sqrt(2 * math.log(2)), rel=1e-6)


def test_modes_by_hand() -> None:
    """Eight samples, so that a mode needs one near it: -3 has three of four, 3 has none of its four within 1."""
    found = by_modes(on_a_line(-3.0, -3.5, -2.5, -1.0, 1.0, 1.5, 4.5, 5.0), MEANS, 0.5, 1.0)
    assert found["covered"] == 0.5
    assert found["within"] == 3 / 8
    squares = (0, 0.25, 0.25, 4, 4, 2.25, 2.25, 4)
    assert found["dispersion"] == pytest.approx(math.sqrt(sum(squares) / 8) / 0.5)


def test_a_mode_with_less_than_a_fourth_of_its_share_is_not_covered() -> None:
    """Of 16 samples a mode should have 8: with two near it it is covered, with one it is not."""
    for near_it, covered in ((2, 1.0), (1, 0.5)):
        samples = on_a_line(*[3.0] * near_it, *[-3.0] * (16 - near_it))
        assert by_modes(samples, MEANS, 0.5, 1.0)["covered"] == covered


def test_samples_that_are_all_means_cover_every_mode_and_are_too_alike() -> None:
    found = by_modes(on_a_line(-3.0, 3.0, -3.0, 3.0), MEANS, 0.5, 1.0)
    assert found == {"covered": 1.0, "within": 1.0, "dispersion": 0.0}


def test_explained_is_one_at_the_floor_and_nothing_at_chance() -> None:
    figures = {"floor_sliced_wasserstein": 0.1, "chance_sliced_wasserstein": 0.9}
    found = [explained({**figures, "sliced_wasserstein": value}) for value in (0.1, 0.5, 0.9)]
    assert [each["explained"] for each in found] == pytest.approx([1, 0.5, 0])
    assert found[0]["floors"] == {"noise": 0.0}
    assert "explained_error" not in found[0], "of one caption"
    more = explained({**figures, "sliced_wasserstein": 0.5, "sliced_wasserstein_error": 0.08})
    assert more["explained_error"] == pytest.approx(0.1)


# ------------------------------------------------------------------ the mixture


def clips(count: int = 5, modes: int = 4, width: int = 3) -> list[Clip]:
    means = torch.randn(count, modes, width, 1, 1, generator=torch.Generator().manual_seed(1)).tolist()
    mixture = {"means": means, "spread": 0.5}
    return [
        Clip(Path(f"{place}"), f"caption {place}", {"mixture": mixture, "caption": place}, 1, (1, 1), 8.0)
        for place in (*range(count), 0, 1)
    ]


def test_captions_are_spread_over_those_there_are() -> None:
    assert evenly(clips(), 2).names == ("caption 0", "caption 2")
    whole = evenly(clips(), 99)
    assert whole.names == tuple(f"caption {place}" for place in range(5))
    assert whole.own_NMD.shape == (5, 4, 3)


def test_exact_samples_are_of_the_mixture() -> None:
    """In turns of every mode: 25,000 samples of each have its mean and its spread; at the floor everything is right."""
    mixture = evenly(clips(), 3)
    drawn = draw(mixture, 100_000, 0, "exact")
    for mode in range(4):
        own = drawn[:, mode::4]
        torch.testing.assert_close(own.mean(1), mixture.own_NMD[:, mode], rtol=0, atol=5 * 0.5 / 25_000**0.5)
        torch.testing.assert_close(own.std(1), torch.full((3, 3), 0.5, dtype=torch.float64), rtol=0.03, atol=0)
    assert not torch.equal(drawn[:, :4], draw(mixture, 4, 0, "other"))
    apart = Mixture(torch.tensor([[[-5.0, 0, 0], [5.0, 0, 0]]], dtype=torch.float64), torch.tensor([0]), 0.5)
    found = by_modes(draw(apart, 20_000, 0, "exact"), apart.means_GMD, 0.5, near(0.5, 3, 0.9))
    assert found["covered"] == 1.0
    assert found["within"] == pytest.approx(0.9, abs=0.01)
    assert found["dispersion"] == pytest.approx(1.0, abs=0.01)


def test_the_distance_between_exact_samples_falls_with_their_number() -> None:
    """The floor: about the inverse root of the number, as on a line between two draws of one normal."""
    mixture = evenly(clips(), 5)
    directions = torch.eye(3, dtype=torch.float64)
    few, many = (
        float(sliced_wasserstein(*(draw(mixture, count, 0, name) for name in "ab"), directions).mean())
        for count in (100, 10_000)
    )
    assert 0 < many < few / 5
    assert few < 0.3


def test_another_world_is_refused() -> None:
    strange = [Clip(Path("a.mp4"), "a", {"shape": "circle"}, 1, (1, 1), 8.0)]
    with pytest.raises(
        UserError, match="the mixture that this data was drawn from is not known. Use 'data: {use: mixture}'"
    ):
        evenly(strange, 4)
