"""The sweep of distillation: its claims, its preconditions by hand, and a tiny run of some arms."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import account
import kd_sweep
import paired

FLOORS = {f"{name}_excess": 1.0 for name in account.FLOORS}
NAMES = (
    *(f"{name}, {amount}" for name in kd_sweep.ARMS for amount in ("many", "few")),
    *(f"{name}, low rank" for name in kd_sweep.LOW_RANK),
)


def known(seed: int) -> paired.Row:
    """A share of 0.2 is better by 0.1 on all data, every other arm alike; teachers are done."""
    row = {name: {"excess": 0.3 + seed / 100, **FLOORS} for name in NAMES}
    row["share 0.2, many"]["excess"] -= 0.1
    return {**row, "teacher": {"excess": 0.1, "gained": 0.0}, "modulated teacher": {"excess": 0.1, "gained": 0.0}}


def test_every_claim_is_about_arms_that_run_and_can_hold_with_eight_teachers() -> None:
    assert {name for claim in kd_sweep.CLAIMS for name in claim[:2]} <= set(NAMES)
    assert len(set(kd_sweep.CLAIMS)) == len(kd_sweep.CLAIMS)
    assert len(kd_sweep.CLAIMS) / 2**8 < paired.LEVEL


def test_claims_are_judged_within_teachers_and_of_the_parts_that_ran() -> None:
    rows = [known(seed) for seed in range(8)]
    text, figures = kd_sweep.judged(rows, kd_sweep.unfit(rows))
    assert (figures["claims"], figures["judged"], figures["held"], figures["reversed"]) == (9, 9, 1, 1)
    assert figures["arms"]["share 0.2, many"] == pytest.approx(0.235)
    assert figures["floors"] == dict.fromkeys(account.FLOORS, 1.0)
    assert "| share 0.2, many better than flow, many | excess | +0.1000 |" in text
    levels = [{name: row[name] for name in row if "low rank" not in name and "modulated" not in name} for row in rows]
    assert kd_sweep.judged(levels, {})[1]["judged"] == 7


def test_nothing_is_concluded_of_a_part_whose_teachers_are_not_done() -> None:
    rows = [known(seed) for seed in range(8)]
    rows[1]["modulated teacher"]["excess"] = 0.4
    doubts = kd_sweep.unfit(rows)
    low = "modulated teacher 1 is no better than what flow matching makes of its pruned model"
    assert doubts == {"modulation": [low]}
    text, figures = kd_sweep.judged(rows, doubts)
    assert (figures["judged"], figures["held"], figures["unfit"]) == (7, 1, [low])
    assert "low rank better than" not in text
    rows[0]["teacher"]["gained"] = 0.3
    doubts = kd_sweep.unfit(rows)
    assert doubts == {"levels": ["teacher 0 gained 30% in its last fifth"], "modulation": [low]}
    assert kd_sweep.judged(rows, doubts)[1]["judged"] == 0


@pytest.mark.slow(20)
def test_a_tiny_run_goes_on_where_it_stopped(steps_here, tmp_path, monkeypatch, capsys) -> None:
    """Two arms of each part; rows run in this process, as their steps do.

    The models of ``levels`` are those of low rank: how its own are made is ``few_steps.py``'s, and tested there.
    """
    monkeypatch.setattr(kd_sweep, "ARMS", {name: kd_sweep.ARMS[name] for name in ("flow", "share+output")})
    monkeypatch.setattr(kd_sweep, "LOW_RANK", ("flow", "share+output"))
    made = tmp_path / "mixture-tiny" / "modulated0" / "run" / "steps"
    monkeypatch.setattr(kd_sweep.few_steps, "begun", lambda *_: made / "teacher")
    monkeypatch.setattr(kd_sweep, "pruned", lambda *_: made / "low-rank")
    here = lambda out, tier, seeds, _, parts: [kd_sweep.one_seed(out, tier, seed, parts) for seed in range(seeds)]  # noqa: E731
    monkeypatch.setattr(kd_sweep, "rows_of", here)
    monkeypatch.setattr(sys, "argv", ["kd_sweep.py", "--tier", "tiny", "--seeds", "1", "--out", str(tmp_path)])
    assert kd_sweep.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["seeds"], last["tier"], last["claims"], last["judged"]) == (1, "tiny", len(kd_sweep.CLAIMS), 0)
    arms = {f"{name}, {where}" for name in kd_sweep.ARMS for where in ("many", "few", "low rank")}
    assert set(last["arms"]) == {*arms, "untrained, low rank", "teacher", "modulated teacher"}
    assert last["arms"]["flow, many"] != last["arms"]["flow, few"]
    assert last["unfit"], "teachers of ten steps are not done"
    assert "| share+output, few |" in (tmp_path / "kd-sweep-tiny.md").read_text("utf-8")
    steps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("steps/*/step.json")}
    assert kd_sweep.main() == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {**again, "minutes": 0} == {**last, "minutes": 0}
    assert {path: path.stat().st_mtime_ns for path in steps} == steps
