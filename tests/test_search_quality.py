"""The comparison of searches: its claims, its figures by hand, its preconditions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import account
import paired
import search_quality

FLOORS = {f"{name}_excess": 1.0 for name in account.FLOORS}
ARMS = ("all", *search_quality.SINGLE, *search_quality.OTHERS, "taylor", "removals")


def known(seed: int) -> paired.Row:
    """All levels are 0.1 better than heads, and like FFN alone; groupwise is 0.02 better than its start."""
    row = {arm: {"excess": 0.3 + seed / 100, **FLOORS} for arm in ARMS}
    row["head"]["excess"] += 0.1
    row["groupwise"]["excess"] -= 0.02
    return row


def test_claims_are_about_arms_that_run_and_can_hold_with_eight_teachers() -> None:
    assert {name for claim in search_quality.CLAIMS for name in claim[:2]} <= set(ARMS)
    assert len(set(search_quality.CLAIMS)) / 2**8 < paired.LEVEL


def test_figures_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [known(seed) for seed in range(8)]
    found = search_quality.judged(rows, [{"groupwise": 0.1, "greedy": 0.0}, {"groupwise": 0.3, "greedy": 0.1}])
    assert (found["claims"], found["held"], found["reversed"]) == (6, 2, 0)
    assert found["groupwise_minus_start"] == found["groupwise_minus_taylor"] == -0.02
    assert found["all_levels_minus_best_single"] == 0.0
    assert (found["regret"], found["regrets"]) == (0.2, {"groupwise": 0.2, "greedy": 0.05})
    assert (found["floors"], found["unfit"]) == (dict.fromkeys(account.FLOORS, 1.0), [])
    assert "Floors:" in capsys.readouterr().out


def test_nothing_is_concluded_of_teachers_that_are_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    why = "a teacher gained 30% in its last fifth"
    found = search_quality.judged([known(seed) for seed in range(8)], [{"groupwise": 0.1}], [why])
    assert (found["held"], found["reversed"], found["unfit"]) == (0, 0, [why])
    assert why in capsys.readouterr().out
