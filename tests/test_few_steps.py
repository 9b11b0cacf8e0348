"""The benchmark of four steps: its claims, its preconditions by hand, and a tiny run of every arm."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import account
import few_steps
import few_steps_shapes
import paired
import scenes

from dit_compress.core.errors import UserError
from dit_compress_plugins.data_shapes.render import render
from dit_compress_plugins.data_shapes.world import split_of

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


# ------------------------------------------------------------------ on moving shapes


def seen(**accuracy: float) -> list[dict[str, float]]:
    """Groups of captions in which arms differ by what is given, and the groups from each other."""
    names = [*few_steps_shapes.TABLE.paper]
    return [
        {
            name: {"accuracy": accuracy.get(name.replace("-", "_"), 0.5) + group / 100, "diversity": 0.1}
            for name in names
        }
        for group in range(few_steps_shapes.GROUPS)
    ]


def test_claims_on_shapes_are_about_arms_that_run_and_can_hold_with_eight_groups() -> None:
    table, sizes = few_steps_shapes.TABLE, few_steps_shapes.TIERS["short"]
    found = few_steps_shapes.arms(sizes, 6)
    assert {*found, *few_steps_shapes.FLOORS} == {*table.paper}
    assert {name for claim in table.claims for name in claim[:2]} <= set(found)
    assert len(set(table.claims)) / 2**few_steps_shapes.GROUPS < paired.LEVEL
    assert sizes["captions"] >= 512
    steps = {name: few_steps.distil(sizes, own) for name, own in found.items()}
    assert not any("teacher_guidance" in step for step in steps.values()), "as the teacher's bundle is sampled"
    warm = sizes["judge"]["discriminator_warmup"]
    assert {step["steps"] - warm * bool(step["adversarial_weight"]) for step in steps.values()} == {sizes["updates"]}


def test_trainings_are_averaged_within_groups_and_floors_stand_once() -> None:
    one = {"rec": [{"accuracy": 0.2, "diversity": 0.0}] * 8, "teacher": [{"accuracy": 0.9, "diversity": 0.4}] * 8}
    rows = few_steps_shapes.joined([one, {"rec": [{"accuracy": 0.4, "diversity": 1.0}] * 8}])
    assert rows == [{"rec": {"accuracy": pytest.approx(0.3), "diversity": 0.5},
                     "teacher": {"accuracy": 0.9, "diversity": 0.4}}] * 8  # fmt: skip
    assert few_steps_shapes.doubts(seen(teacher=0.56)) == []
    (doubt,) = few_steps_shapes.doubts(seen(teacher=0.54))
    assert doubt.endswith("lose little to the teacher: 0.535 against 0.575")


def finished(folder: Path) -> few_steps_shapes.Begin:
    """A run of which only what the benchmark looks at is there."""
    data = {"use": "shapes", "num_clips": 4, "num_test": 2, "frames": 5, "size": [64, 64], "max_objects": 1}
    head = {"model": {"use": "video_dit"}, "text": {"use": "words"}, "data": data, "seed": 3}
    (folder / "recipe.yaml").write_text(json.dumps({"name": "on", **head, "steps": []}), "utf-8")
    for name in ("teacher", "compact"):
        (folder / "steps" / name).mkdir(parents=True)
        (folder / "steps" / name / "step.json").write_text('{"model": {"blocks": 6}}', "utf-8")
    (folder / "cache").mkdir()
    (folder / "cache" / "clip").write_text("shared", "utf-8")
    return few_steps_shapes.Begin.of(folder, "teacher", "compact")


def test_a_run_that_has_no_pruned_model_is_refused(tmp_path: Path) -> None:
    assert finished(tmp_path).recipe["seed"] == 3
    with pytest.raises(UserError, match="there is no finished step 'small' in this run. Run recipes/shapes.yaml first"):
        few_steps_shapes.Begin.of(tmp_path, "teacher", "small")


def test_real_clips_of_the_captions_have_every_attribute_right(tmp_path: Path, monkeypatch) -> None:
    """Two equal videos of each: no diversity. Captions are held out, and no group has another's."""
    drawn, draw = [], scenes.draw_scene
    monkeypatch.setattr(scenes, "draw_scene", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1])
    truths = few_steps_shapes.scenes(finished(tmp_path), 16)
    shown = {scene.caption(): np.stack([render(scene, 5, (64, 64))] * 2) for scene in reversed(drawn)}
    asked: list[str] = []

    def generated(self, _context, clips):
        assert (self.options.num_steps, self.options.guidance, self.options.videos_per_caption) == (4, 1, 2)
        asked.extend(clip.caption for clip in clips)
        yield from ((clip, shown[clip.caption]) for clip in clips)

    monkeypatch.setattr(few_steps_shapes.ShapesEvaluation, "generated", generated)
    found = few_steps_shapes.measured(None, truths, {"num_steps": 4, "guidance": 1})
    assert found == [{"accuracy": 1.0, "diversity": 0.0}] * 8
    assert asked == list(truths)
    assert all(split_of(caption, 0.1) == "test" for caption in asked)


def test_on_shapes_every_arm_begins_with_the_pruned_model_and_is_measured_once(tmp_path, monkeypatch, capsys) -> None:
    begin, given = finished(tmp_path), {}
    floors = {"compact": 0.5, "teacher": 0.9}

    def run(folder, recipe, _threads):
        given[folder.name] = recipe
        return folder

    def kept(_folder, name, bundle, truths, how):
        given[name] = bundle, how
        assert len(truths) == 8
        value = floors.get(bundle.parent.name, 0.8) - 0.1 * (bundle.parent.name == "teacher" and how["num_steps"] == 4)
        return [{"accuracy": value + group / 100, "diversity": 0.1} for group in range(8)]

    monkeypatch.setattr(few_steps_shapes, "run", run)
    monkeypatch.setattr(few_steps_shapes, "kept", kept)
    monkeypatch.setattr(
        few_steps_shapes,
        "rows_of",
        lambda begin, out, tier, seeds, _: (
            few_steps_shapes.joined([few_steps_shapes.one_seed(begin, out, tier, seed) for seed in range(seeds)]), 0.4
        ),
    )  # fmt: skip
    out = ["--run", str(tmp_path), "--out", str(tmp_path), "--tier", "tiny"]
    monkeypatch.setattr(sys, "argv", ["few_steps_shapes.py", *out])
    assert few_steps_shapes.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["seeds"], last["claims"], last["judged"], last["held"], last["reversed"]) == (2, 6, 6, 0, 0)
    assert {name: round(arm["accuracy"], 3) for name, arm in last["arms"].items() if name in few_steps_shapes.FLOORS} == {
        "undistilled": 0.535, "teacher-4": 0.835, "teacher": 0.935
    }  # fmt: skip
    for seed in range(2):
        recipe = given[f"seed{seed}"]
        assert (recipe["seed"], len(recipe["steps"])) == (seed, len(few_steps_shapes.ARMS))
        assert {step["input"] for step in recipe["steps"]} == {str(begin.pruned)}
        taught = [step["name"] for step in recipe["steps"] if step.get("teacher") == str(begin.teacher)]
        assert taught == ["pairs", "pairs-and-adv"]
        assert (tmp_path / "shapes-tiny" / f"seed{seed}" / "run" / "cache" / "clip").read_text("utf-8") == "shared"
    assert given["both"][1] == {"num_steps": 4, "guidance": 1}
    assert "8 groups of 8 captions, 2 trainings of each arm" in (tmp_path / "few-steps-shapes.md").read_text("utf-8")
