"""The benchmark of four steps: its claims, its preconditions by hand, and a tiny run of every arm."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import account
import few_steps
import paired

HEAD = few_steps.HEADS


@pytest.mark.parametrize("tier", few_steps.TIERS)
def test_every_claim_is_about_arms_that_run_and_can_hold_with_eight_teachers(tier) -> None:
    names = {*few_steps.arms(few_steps.TIERS[tier], 6), "K=N/2"}
    assert {name for claim in few_steps.CLAIMS for name in claim[:2]} <= names
    assert len(set(few_steps.CLAIMS)) == len(few_steps.CLAIMS) <= 8
    assert len(few_steps.CLAIMS) / 2**8 < paired.LEVEL


@pytest.mark.parametrize(("depth", "frozen"), [(6, (1, 2, 5)), (5, (1, 2, 4)), (4, (1, 1, 3))])
def test_k_is_a_share_of_the_blocks_that_are_left(depth, frozen) -> None:
    """Two learnable blocks behind them where there are two."""
    found = few_steps.arms(few_steps.TIERS["short"], depth)
    heads = [found[name]["discriminator"] for name in ("K=1", "K=N/4", "K=N-1")]
    assert tuple(head["frozen_blocks"] for head in heads) == frozen
    assert [head["learnable_blocks"] for head in heads] == [2, 2, 1]
    assert [found[name]["discriminator"]["frozen_blocks"] for name in HEAD] == [depth // 2] * 2


def test_arms_get_equal_updates_and_one_balance() -> None:
    sizes = few_steps.TIERS["short"]
    steps = {name: few_steps.distil(sizes, own) for name, own in few_steps.arms(sizes, 6).items()}
    before = sizes["judge"]["discriminator_warmup"]
    for name, step in steps.items():
        judged = bool(step["adversarial_weight"])
        assert judged == (name not in ("rec", "pairs"))
        assert step["steps"] - before * judged == sizes["updates"]
        assert step["balance"] == ("gradient" if judged and step["reconstruction_weight"] else "fixed")
    assert [name for name, step in steps.items() if step["balance"] == "fixed"] == ["rec", "adv", "pairs"]
    assert {step["teacher_guidance"] for step in steps.values() if "teacher_samples" in step} == {1.0}
    assert {name for name, step in steps.items() if step.get("r1")} == {"r1-approximate", "r1-exact"}


def row(plain: float = 0.3, many: float = 0.2, pruned: float = 0.1) -> paired.Row:
    return {"pruned-excess": {"excess": pruned}, "undistilled": {"sliced_wasserstein": plain},
            "teacher": {"sliced_wasserstein": many}}  # fmt: skip


def test_nothing_is_concluded_where_there_is_nothing_to_gain() -> None:
    done = account.Teachers([0.08, 0.08], [0.05, 0.1])
    assert few_steps.doubts(done, [row(), row()]) == []
    assert few_steps.doubts(account.Teachers([0.08, 0.12], [0.05, 0.3]), [row(plain=0.23), row()]) == [
        "teacher 1 gained 30% in its last fifth",
        "four plain steps of pruned model 0 lose little: 0.230 against 0.200",
        "teacher 1 is no better than its pruned model: 0.1200 against 0.1000",
    ]


def known(seed: int) -> paired.Row:
    """``pairs`` nearest of all, by 0.1; every other arm alike."""
    names = (*few_steps.FLOORS, *few_steps.arms(few_steps.TIERS["short"], 6), "K=N/2")
    found = {name: dict.fromkeys(("sliced_wasserstein", "covered", "within", "dispersion"), 0.3 + seed / 100)
             for name in names}  # fmt: skip
    found["pairs"] = {**found["pairs"], "sliced_wasserstein": 0.2 + seed / 100}
    return {**found, "pruned-excess": {"excess": 0.1}}


def test_claims_are_judged_within_teachers() -> None:
    text, figures = few_steps.judged([known(seed) for seed in range(8)], [])
    assert (figures["claims"], figures["judged"], figures["held"]) == (len(few_steps.CLAIMS),) * 2 + (2,)
    assert figures["reversed"] == 1, "the adversarial loss on pairs would make them worse by 0.1"
    assert figures["arms"]["pairs"] == pytest.approx(0.235)
    assert figures["floors"]["exact"] == pytest.approx(0.335)
    assert "| pairs | 0.2350 ± " in text
    _, doubted = few_steps.judged([known(0)], ["a doubt"])
    assert (doubted["judged"], doubted["held"], doubted["unfit"]) == (0, 0, ["a doubt"])


@pytest.fixture
def here(monkeypatch, steps_here) -> None:
    """Seeds run in this process, as their steps do."""
    monkeypatch.setattr(
        few_steps, "rows_of", lambda out, tier, seeds, _: [few_steps.one_seed(out, tier, seed) for seed in range(seeds)]
    )


@pytest.mark.slow(30)
def test_a_tiny_run_has_every_arm_and_goes_on_where_it_stopped(here, tmp_path, monkeypatch, capsys) -> None:
    given = ["--tier", "tiny", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["few_steps.py", *given])
    tiny = account.TIERS["tiny"]
    monkeypatch.setitem(account.TIERS, "tiny", {**tiny, "model": {**tiny["model"], "layers": 3}})
    assert few_steps.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["seeds"], last["tier"], last["claims"]) == (1, "tiny", len(few_steps.CLAIMS))
    assert (last["judged"], last["held"], last["reversed"]) == (0, 0, 0), "teachers of ten steps are not done"
    assert last["unfit"]
    assert "| pairs+adv |" in (tmp_path / "few-steps-tiny.md").read_text("utf-8")
    sizes = few_steps.TIERS["tiny"]
    assert set(last["arms"]) == {*few_steps.arms(sizes, 6), "K=N/2"}
    assert last["floors"]["exact"] < last["floors"]["noise"]
    assert min(last["arms"].values()) > 0
    steps = tmp_path / "mixture-tiny" / "teacher0-student0" / "few-steps" / "run" / "steps"
    seen = {path: path.stat().st_mtime_ns for path in steps.glob("*/step.json")}
    assert len(seen) == 2 * len(few_steps.arms(sizes, 6)) + 3
    assert few_steps.main() == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {**again, "minutes": 0} == {**last, "minutes": 0}
    assert {path: path.stat().st_mtime_ns for path in seen} == seen
