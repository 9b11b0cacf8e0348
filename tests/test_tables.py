"""The statistics of the paired benchmarks, by hand; and the tables of the paper run through, tiny."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import paired
import tabled
import tables

from dit_compress.run import pipeline, worker


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


@pytest.mark.parametrize("tier", tables.TIERS)
def test_small_models_of_table_4_are_of_one_size(tier) -> None:
    sizes = tables.TIERS[tier]
    target, shallow, narrow = tabled.target(sizes), tabled.shallow(sizes), tabled.narrow(sizes)
    for model in (shallow, narrow):
        assert 0.99 * target <= paired.parameters(model, sizes["text"]) <= target
    assert narrow["layers"] == sizes["model"]["layers"]
    assert shallow["layers"] == 6


def test_a_table_shows_arms_claims_and_the_papers_numbers() -> None:
    table = paired.Table("Title", {"a": "81", "b": "79"}, {"loss": 2}, (("a", "b", "loss", -1),), "score", "Note.")
    rows = [{"a": {"loss": 1.0 + seed}, "b": {"loss": 3.0 + seed}} for seed in (0, 2)]
    text = table.markdown(rows, paired.judge(rows, table.claims), "tiny tier")
    assert "| a | 2.00 ± 12.71 | 81 |" in text
    assert "| a better than b | loss | +2.0000 | +2.0000 … +2.0000 | 0.2500 | not held |" in text
    assert table.means(rows) == {"a": {"loss": 2.0}, "b": {"loss": 4.0}}


@pytest.fixture
def here(monkeypatch):
    """Steps and seeds run in this process: a new one imports torch again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    threads = torch.get_num_threads()
    monkeypatch.setattr(pipeline, "spawn", lambda command, _threads: worker.main(Path(command[-1])))
    monkeypatch.setattr(
        tables,
        "rows_of",
        lambda table, out, sizes, seeds, _workers: (
            tables.shared_by_seeds(table, out, sizes) or [tables.row(table, out, sizes, seed) for seed in range(seeds)]
        ),
    )
    yield
    torch.set_num_threads(threads)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder: tables share the VAE, and each seed's teacher."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.slow(40)
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
    elif name == "4":
        target = tabled.target(tables.TIERS["tiny"])
        assert all(0.99 * target <= means["params"] <= target for arm, means in arms.items() if arm != "teacher")
        assert arms["teacher"]["params"] > target
    else:
        heads = [means["trained"] for arm, means in arms.items() if arm != "teacher"]
        assert max(heads) <= 1.1 * min(heads)
