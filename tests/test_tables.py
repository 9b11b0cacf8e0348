"""The statistics of the paired benchmarks, by hand; and the tables of the paper run through, tiny."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import account
import paired
import tabled
import tables


def test_sign_flip_counts_the_patterns_that_are_as_good() -> None:
    assert paired.sign_flip(np.array([0.3, 0.1, 2.0, 0.5, 0.2, 0.9, 1.1, 0.4])) == 1 / 256
    assert paired.sign_flip(np.array([-1.0, -2.0, -3.0])) == 1.0
    # Of +-1 +-2 +-4 the sums 7 and 5 are at least 5: two patterns of eight.
    assert paired.sign_flip(np.array([-1.0, 2.0, 4.0])) == 2 / 8
    # Equal gains: all patterns with at most one minus have a sum of at least 2: 1 + 4 of sixteen.
    assert paired.sign_flip(np.array([1.0, 1.0, -1.0, 1.0])) == 5 / 16


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    # Sorted 0.01, 0.02, 0.03 times 3, 2, 1 are 0.03, 0.04, 0.03; the last may not fall below the one before.
    assert paired.holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0]


def test_interval_is_students() -> None:
    # Mean 2, standard deviation 1, n 3: t(0.975, 2) = 4.302653 over sqrt(3).
    assert paired.interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        {"mean": 2.0, "low": 2 - 2.484138, "high": 2 + 2.484138}, abs=1e-6
    )


def test_a_claim_is_held_reversed_or_neither() -> None:
    rows = [{"a": {"loss": 1.0 + seed, "x": seed % 2}, "b": {"loss": 2.0 + seed, "x": 0.5}} for seed in range(8)]
    less, more, even = paired.judge(rows, [("a", "b", "loss", -1), ("b", "a", "loss", -1), ("a", "b", "x", 1)])
    assert (less["held"], less["reversed"], less["mean"], less["corrected"]) == (True, False, 1.0, 3 / 256)
    assert (more["held"], more["reversed"], more["mean"], more["corrected_reversed"]) == (False, True, -1.0, 3 / 256)
    assert (even["held"], even["reversed"]) == (False, False)


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_claim_can_hold_with_eight_seeds(name) -> None:
    table = tables.TABLES[name]
    arms = {arm for claim in table.claims for arm in claim[:2]}
    assert arms <= set(table.paper)
    assert {claim[2] for claim in table.claims} <= set(table.measures)
    assert len(set(table.claims)) == len(table.claims) == 6
    assert len(table.claims) / 256 < paired.LEVEL


def test_energy_distance_by_hand() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    # |x-y|: 1, 5, 1, 3, mean 2.5; within x 2, within y 4.
    assert tabled.energy_distance(x, y) == pytest.approx(2 * 2.5 - 2 - 4)


@pytest.mark.parametrize("tier", account.TIERS)
def test_small_models_of_table_4_are_of_one_size(tier) -> None:
    sizes = account.TIERS[tier]
    target, shallow, narrow = account.target(sizes), account.shallow(sizes), account.narrow(sizes)
    for model in (shallow, narrow):
        assert 0.99 * target <= paired.parameters(model, sizes["text"]) <= target
    assert narrow["layers"] == sizes["model"]["layers"]
    assert shallow["layers"] == 4


SIZES = account.TIERS["tiny"]  # marks 2 and 4; total 2 after a teacher of 10


def pair(pruned: dict[int, float], scratch: dict[int, float]) -> paired.Row:
    """Excess by steps; every pruned arm and every small model alike."""
    found = {f"{arm}@{steps}": value for arm in account.PRUNED for steps, value in pruned.items()}
    found |= {f"{arm}@{steps}": value for arm in account.SCRATCH for steps, value in scratch.items()}
    return {name: {"excess": value, "chance_excess": 1.2, "linear_excess": 0.6, "caption_blind_excess": 0.4}
            for name, value in found.items()}  # fmt: skip


@pytest.mark.parametrize("question", ["more", "total"])
@pytest.mark.parametrize("tier", account.TIERS)
def test_every_claim_of_table_4_is_about_arms_that_run_and_can_hold(question, tier) -> None:
    sizes = account.TIERS[tier]
    claims = account.claims(question, sizes)
    row = pair(dict.fromkeys([*sizes["marks"], sizes["total"]], 0.0),
               dict.fromkeys(account.small_marks(question, sizes, (7, 2)), 0.0))  # fmt: skip
    assert all(name in row for claim in claims for name in claim[:2])
    assert len(set(claims)) == len(claims) == {"more": 8, "total": 4}[question]
    assert len(claims) / 2**8 < paired.LEVEL, "eight teachers by default"


def test_the_questions_of_table_4_are_judged_apart() -> None:
    """Pruned by 0.1 better at equal further steps; worse by 0.1 than a small model trained as long as both together."""
    rows = [
        pair({2: 0.3 + seed / 100, 4: 0.2}, {2: 0.4 + seed / 100, 4: 0.3, 12: 0.2 + seed / 100}) for seed in range(9)
    ]
    more, total = (account.verdict(question, rows, SIZES) for question in ("more", "total"))
    assert [found["held"] for found in more] == [True] * 4 + [False] * 4
    assert [found["mean"] for found in more] == pytest.approx([0.1] * 4 + [0.0] * 4)
    assert [found["reversed"] for found in total] == [True] * 4


def test_small_models_overtake_between_two_marks() -> None:
    """Ahead by 0.1 at 2, behind by 0.1 at 4: halfway by logarithms, at the square root of 8."""
    rows = [pair({2: 0.3, 4: 0.3}, {2: 0.4, 4: 0.2})]
    assert account.crossover(rows, SIZES) == 3
    assert account.crossover([pair({2: 0.3, 4: 0.2}, {2: 0.4, 4: 0.3})], SIZES) is None
    assert account.crossover([pair({2: 0.3, 4: 0.2}, {2: 0.2, 4: 0.3})], SIZES) == 2


def test_students_of_a_teacher_are_averaged() -> None:
    rows = {(0, 0): pair({2: 0.3}, {2: 0.4, 12: 0.2}), (1, 0): pair({2: 0.5}, {}), (0, 1): pair({2: 0.1}, {2: 0.6})}
    first, second = account.by_teacher(rows)
    assert [first[name]["excess"] for name in ("all@2", "narrow@2", "narrow@12")] == pytest.approx([0.2, 0.5, 0.2])
    assert second["kd@2"]["excess"] == 0.5
    assert account.crossover([first, second], SIZES) is None


def test_nothing_is_concluded_from_teachers_that_are_not_done() -> None:
    """A teacher is held against the small models of its own seed; those of another teacher may be better."""
    rows = [pair({2: 0.3}, {2: 0.4, 12: 0.2}), pair({2: 0.3}, {2: 0.4, 12: 0.3}), pair({2: 0.3}, {2: 0.4})]
    assert account.Teachers([0.1, 0.25, 0.4], [0.05] * 3).unfit(rows, SIZES) == []
    assert account.Teachers([0.1, 0.3, 0.4], [0.3, 0.0, 0.0]).unfit(rows, SIZES) == [
        "a teacher gained 30% in its last fifth",
        "narrow, trained as long, is no worse than its teacher: 0.3000, 0.3000",
        "shallow, trained as long, is no worse than its teacher: 0.3000, 0.3000",
    ]


def test_table_4_shows_every_arm_at_every_mark() -> None:
    text = account.grid([pair({0: 0.9, 2: 0.3}, {2: 0.4, 12: 0.25})], SIZES, account.Teachers([0.1], [0.0]))
    assert "| arm | N = 0 | N = 2 | N = 4 | N = 12 | paper (VBench) |" in text
    assert "| all | 0.9000 (1) | 0.3000 (1) | – | – | 79.00 |" in text
    assert "| narrow | – | 0.4000 (1) | – | 0.2500 (1) | 77.92 |" in text
    assert "'chance': 1.2, 'linear': 0.6, 'caption_blind': 0.4" in text


def test_a_table_shows_arms_claims_and_the_papers_numbers() -> None:
    table = paired.Table("Title", {"a": "81", "b": "79"}, {"loss": 2}, (("a", "b", "loss", -1),), "score", "Note.")
    rows = [{"a": {"loss": 1.0 + seed}, "b": {"loss": 3.0 + seed}} for seed in (0, 2)]
    text = table.markdown(rows, paired.judge(rows, table.claims), "tiny tier")
    assert "| a | 2.00 ± 12.71 | 81 |" in text
    assert "| a better than b | loss | +2.0000 | +2.0000 … +2.0000 | 0.2500 | not held |" in text
    assert table.means(rows) == {"a": {"loss": 2.0}, "b": {"loss": 4.0}}


@pytest.fixture
def here(monkeypatch, steps_here) -> None:
    """Seeds run in this process, as their steps do."""
    monkeypatch.setattr(
        tables,
        "rows_of",
        lambda table, out, sizes, seeds, _workers: (
            tables.shared_by_seeds(table, out, sizes) or [tables.row(table, out, sizes, seed) for seed in range(seeds)]
        ),
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder: tables share the VAE, and each seed's teacher."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.slow(10)
@pytest.mark.parametrize(("name", "seeds"), [("3", 1)])
def test_a_tiny_table_runs(name, seeds, here, out, monkeypatch, capsys) -> None:
    given = ["--table", name, "--tier", "tiny", "--seeds", str(seeds), "--workers", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["tables.py", *given])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert tables.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = tables.TABLES[name]
    assert last["table"] == (int(name) if name.isdigit() else name)
    assert (last["seeds"], last["claims"], last["tier"]) == (seeds, 6, "tiny")
    assert last["held"] == 0, "so few seeds can show nothing"
    assert set(last["arms"]) == set(table.paper)
    assert all(set(means) == set(table.measures) for means in last["arms"].values())
    text = (out / f"table-{name}.md").read_text("utf-8")
    assert all(f"| {arm} |" in text and paper in text for arm, paper in table.paper.items())
    check(name, last["arms"])


def check(name: str, arms: dict[str, dict[str, float]]) -> None:
    """What must be so whatever is learned."""
    if name == "3":
        assert [arms[ratio]["tokens"] for ratio in tables.RATIOS] == [96, 24, 16, 4]
    else:
        heads = [means["trained"] for arm, means in arms.items() if arm != "teacher"]
        assert max(heads) <= 1.1 * min(heads)
