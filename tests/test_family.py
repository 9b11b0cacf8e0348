"""The experiments of related systems: claims that can hold, numbers worked by hand, and all of it run through, tiny."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import account
import family
import family_attention
import family_count
import family_dmd
import family_elastic
import family_layout
import family_reward
import family_scaled
import paired

CHECKS = {
    "dmd": {"gap_over_m": 0.5, "range": 0.0},
    "scaled": {"value": 2.0, "slopes": [0.25, 3.0]},
    "lazy": {"gate": 0.75, "mixture": 3.0, "zero": True},
    "width": {"kept": [0.84853, 1.13137]},
    "reward": {"x": 2.25, "full": 3.75, "last": 1.875},
    "count": {"delete": 0.35, "add": -0.7},
    "attention": {"value": 4.0, "linear_is_quadratic": True},
    "layout": {"row": "SLFFFF", "score": 5.0, "enumerated": 5.0, "layouts": 729},
    "elastic": {"loss": 0.75, "heads": [3], "masked_is_cut": True},
}


@pytest.mark.parametrize("name", family.SYSTEMS)
def test_every_claim_is_about_what_is_measured_and_can_hold_with_eight_seeds(name: str) -> None:
    table = family.SYSTEMS[name].TABLE
    arms = {arm for claim in table.claims for arm in claim[:2]}
    assert arms <= set(table.paper)
    assert {claim[2] for claim in table.claims} <= set(table.measures)
    assert len(set(table.claims)) == len(table.claims)
    assert len(table.claims) / 2**8 < paired.LEVEL


@pytest.mark.parametrize("name", family.SYSTEMS)
def test_the_number_worked_by_hand_is_reproduced(name: str) -> None:
    assert family.SYSTEMS[name].check() == CHECKS[name]


def test_spread_is_a_seeds_distance_to_the_median() -> None:
    rows = [{arm: {"sliced_wasserstein": value} for arm in family_dmd.TABLE.paper} for value in (0.1, 0.2, 0.5)]
    found, _ = family_dmd.finished(rows)
    assert [row["dmd"]["spread"] for row in found] == pytest.approx([0.1, 0.0, 0.3])


def test_the_scaling_is_compared_with_the_best_fixed_weight() -> None:
    rows = [
        {"scaled": {"excess": 0.2 + seed / 100}, "task": {"excess": 0.1}, "fixed 0.1": {"excess": 0.4},
         "fixed 1": {"excess": 0.3}, "fixed 10": {"excess": 0.5}} for seed in (0, 2)
    ]  # fmt: skip
    _, figures = family_scaled.finished(rows)
    assert figures["best_fixed"] == "fixed 1"
    assert figures["scaled_minus_best_fixed"] == pytest.approx(-0.09)


def test_a_critic_is_deceived_where_it_rises_and_the_reader_does_not() -> None:
    start = {"critic": 0.5, "accuracy": 0.5}
    gains = [(0.2, 0.1), (0.2, 0.0), (0.2, -0.1), (-0.1, -0.1)]
    rows = [
        {"start": start, "flow": start, "floors": {"chance": 0.2 + reader},
         **{arm: {"critic": 0.5 + critic, "accuracy": 0.5 + reader} for arm in family_reward.REWARDED}}
        for critic, reader in gains
    ]  # fmt: skip
    left, figures = family_reward.finished(rows)
    assert figures == {"hacked": {"reward K=1": 2, "reward K=2": 2}, "floors": {"chance": 0.175}}
    assert [set(row) for row in left] == [set(family_reward.TABLE.paper)] * 4


def test_where_plain_sampling_is_not_above_chance_there_is_no_verdict() -> None:
    for values, fit in (((0.4, 0.5, 0.45), True), ((0.2, 0.5, 0.2), False), ((0.9,), False)):
        _, figures = family_count.finished([{"plain": {"exact": value}} for value in values])
        assert figures["chance"] == 0.25
        assert (figures["unfit"] == []) is fit


def test_counts_by_hand() -> None:
    found = family_count.figures(np.array([0, 2, 0, 1]), np.array([32.0, 64, 32, 64]))
    error = (1 / 3) ** 0.5 / 2
    assert found == pytest.approx({"exact": 0.5, "error": error, "distance": 0.75, "calls": 48.0})


@pytest.mark.parametrize("tier", account.TIERS)
def test_arms_of_rewards_have_equally_many_updates_and_one_begin(tier: str) -> None:
    found = family_reward.steps(family_reward.SIZES[tier], 3)
    arms = {step["name"]: step["distill"] for step in found if step.get("input") == "start"}
    assert set(arms) == {"flow", "reward-1", "reward-2"}
    assert len({(how["steps"], how["batch"], how["lr"], how["sampling_steps"]) for how in arms.values()}) == 1
    assert (arms["reward-1"]["last_steps"], arms["reward-2"]["last_steps"]) == (1, 2)


def test_the_crossover_is_where_an_attention_stays_faster() -> None:
    full = [1.0, 2.0, 4.0, 8.0]
    assert family_attention.crossing([1, 2, 3, 4], [0.5, 3.0, 3.5, 4.0], full) == 3
    assert family_attention.crossing([1, 2, 3, 4], [2.0, 3.0, 5.0, 9.0], full) is None
    times = {"seconds 16": 0.001, "seconds 32": 0.004}
    slow, fast = ({name: value * by for name, value in times.items()} for by in (2, 0.5))
    rows = [{"teacher": times, "linconv": slow, "stride": fast, "global_local": fast}]
    _, figures = family_attention.finished(rows)
    assert figures["crossover_tokens"] == {"linconv": None, "stride": 16, "global_local": 16}
    assert figures["ms"]["full"] == {"16": 1.0, "32": 4.0}


def test_on_planted_losses_the_programme_has_no_regret_and_evolution_less_than_chance() -> None:
    """Eight landscapes of each; where pairs interact the programme, which adds, may miss the optimum."""
    found = {
        name: [family_layout.searched(family_layout.planted(77, place, pairs), place, 64) for place in range(8)]
        for name, pairs in (("planted", 0.0), ("interacting", family_layout.INTERACTION))
    }
    total = {name: {arm: sum(row[arm] for row in rows) for arm in rows[0]} for name, rows in found.items()}
    assert total["planted"]["dp"] == 0.0
    assert total["interacting"]["dp"] > 0.0
    assert all(total[name]["evolution"] < total[name]["random"] for name in total)


@pytest.mark.parametrize("tier", account.TIERS)
def test_generators_have_equally_many_updates(tier: str) -> None:
    own = family_dmd.SIZES[tier]
    for name in family_dmd.STUDENTS:
        how = family_dmd.how(name, account.TIERS[tier], own)
        every = how.get("student_every", 1)
        assert -(-(how["steps"] - own["warmup"]) // every) == own["updates"]


@pytest.mark.parametrize("tier", account.TIERS)
def test_a_width_alone_has_the_samples_that_the_elastic_training_gives_it(tier: str, tmp_path: Path) -> None:
    """One narrow width at each step beside the whole model: steps of all networks together are the same."""
    found = {step["name"]: step for step in family_elastic.steps(account.TIERS[tier], tier, tmp_path, 0)}
    elastic = found["elastic"]["distill"]["steps"]
    alone = [found[family_elastic.name_of(width)]["distill"]["steps"] for width in family_elastic.WIDTHS]
    assert alone == [elastic / 2, elastic / 2, elastic]
    assert {found[f"cut-{family_elastic.name_of(width)}"]["input"] for width in family_elastic.WIDTHS} == {"nested"}


def test_the_margin_is_one_percent_of_the_separate_training() -> None:
    rows = [
        {arm: {"excess": value, "chance_excess": 4.0, "linear_excess": 1.0} for arm, value in
         [*((arm, 0.11) for arm in family_elastic.ELASTIC.values()), *((arm, 0.1) for arm in family_elastic.ALONE.values()),
          ("teacher", 0.05)]}
    ]  # fmt: skip
    assert family_elastic.finished(rows)[1] == {
        "ratios": dict.fromkeys(("0.375", "0.5", "1"), 1.1), "floors": {"chance": 4.0, "linear": 1.0}
    }  # fmt: skip


@pytest.fixture
def here(monkeypatch, steps_here) -> None:
    """Seeds run in this process, as their steps do."""
    monkeypatch.setattr(
        family,
        "rows_of",
        lambda name, out, tier, seeds, _workers: [family.row(name, out, tier, seed) for seed in range(seeds)],
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each depth of models: the systems share teachers."""
    return {layers: tmp_path_factory.mktemp(f"family{layers}") for layers in (3, 6)}


@pytest.fixture
def out(name, folders, monkeypatch):
    """Where a system runs, with half the blocks if that leaves enough to choose from."""
    layers = 6 if name in ("dmd", "width") else 3
    tiny = account.TIERS["tiny"]
    monkeypatch.setitem(account.TIERS, "tiny", {**tiny, "model": {**tiny["model"], "layers": layers}})
    return folders[layers]


@pytest.mark.slow(45)
@pytest.mark.parametrize("name", family.SYSTEMS)
def test_a_tiny_experiment_runs(name, here, out, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["family.py", name, "--tier", "tiny", "--seeds", "1", "--out", str(out)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert family.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = family.SYSTEMS[name].TABLE
    assert (last["system"], last["seeds"], last["claims"], last["tier"]) == (name, 1, len(table.claims), "tiny")
    assert last["held"] == last["reversed"] == 0, "one seed can show nothing"
    assert last["check"] == CHECKS[name]
    assert all(set(means) == set(table.measures) for means in last["arms"].values())
    assert set(last["arms"]) == set(table.paper)
    text = (out / f"family-{name}.md").read_text("utf-8")
    assert all(f"| {arm} |" in text for arm in table.paper)
