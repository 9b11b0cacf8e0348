"""What a run takes, at least: counted by hand; refused where this machine has no room; numbers without bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import forks, here

from dit_compress.cli.plan import plan_table
from dit_compress.plugin.registry import use
from dit_compress.recipe import load
from dit_compress.run import costs as module
from dit_compress.run import pipeline
from dit_compress.run.costs import clips_of, costs, described
from dit_compress.run.plan import plan

RECIPE = """
name: costs
model: {use: video_dit, preset: tiny, layers: 2, heads: 2, head_width: 12, ffn: 32, channels: 16, text_width: 16}
text: {use: words, width: 16, layers: 1, heads: 2}
data: {use: shapes, num_clips: 16, num_test: 4, frames: 9, size: [64, 64]}
steps:
  - latent: {use: video_vae, channels: 16, steps: 2, batch: 4, accumulate: 2, widths: [8, 8, 8, 8], blocks: 1, ema: 0}
    name: vae
  - distill: {use: flow, steps: 100, batch: 8, keep_checkpoints: 3}
    name: teacher
  - evaluate: {use: reconstruction}
"""
PIXELS = 3 * 9 * 64 * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The recipe in a file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_by_hand(path: Path) -> None:
    recipe = load(path, use())
    rows = plan(recipe)
    found, own = costs(rows, recipe), rows[2].after
    assert clips_of(recipe) == 20
    assert found["base"].disk == found["base"].memory == 4 * (own["params"] + own["text_params"])
    vae = own["latent_params"]
    assert found["vae"].disk == 4 * vae + 20 * PIXELS, "too few steps for a checkpoint"
    assert found["vae"].memory == 16 * vae + 2 * 4 * PIXELS, "half a batch at once"
    assert found["vae"].flops == 0
    teacher = found["teacher"]
    assert teacher.disk == 4 * own["params"] * (1 + 3 * 3), "three checkpoints of weights and two moments"
    assert teacher.memory > 16 * own["params"]
    assert teacher.flops == 3 * own["flops"] * 8 * 100
    assert (found["reconstruction"].disk, found["reconstruction"].memory) == (0, 0)


FROZEN = """
from dit_compress.hooks import DistillStep, Plugin, TrainOptions, hookimpl


@hookimpl
def distill() -> Plugin:
    return Plugin(name="biases", options=TrainOptions, load="biases:Biases", world="all", slots=("teacher",))


class Biases(DistillStep):
    def objective(self, context, student, teacher, text): ...

    def num_parameters(self, student):
        biases = sum(value.numel() for name, value in student.named_parameters() if name.endswith("bias"))
        return super().num_parameters(student)[0], biases
"""


def test_only_what_is_trained_has_gradients_moments_and_checkpoints(path: Path, tmp_path: Path) -> None:
    """The teacher beside it is weights alone, as the rest of the student is."""
    (tmp_path / "biases.py").write_text(FROZEN)
    step = "  - distill: {use: biases, steps: 100, batch: 8, ema: 0.9}\n    teacher: teacher\n  - evaluate"
    path.write_text(RECIPE.replace("  - evaluate", step))
    recipe = load(path, use([tmp_path / "biases.py"]))
    rows = plan(recipe, processes=2)
    found, row, params = costs(rows, recipe)["biases"], rows[3], rows[2].after["params"]
    assert recipe.model is not None
    whole = recipe.model.build().create()
    biases = sum(value.numel() for name, value in whole.named_parameters() if name.endswith("bias"))
    assert 0 < biases < params / 10
    assert row.trained == biases
    assert module.state_bytes(row, {"teacher": rows[2].after}) == 4 * (2 * params + 4 * biases)
    assert found.disk == 4 * (params + 2 * 4 * biases), "two checkpoints of weights, moments and average"
    table = plan_table(rows, recipe, tmp_path / "run", 2)
    (column,) = [column for column in table.columns if column.header == "training, each of 2"]
    assert list(column.cells)[3] == module.size(4 * (params + 2 * biases))


def test_the_plan_says_it_in_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(path, use())
    monkeypatch.setattr(module, "_speed", lambda: 1e6)
    found = costs(plan(recipe), recipe)
    total, most = (sum(cost.disk for cost in found.values()), max(cost.memory for cost in found.values()))
    seconds = found["teacher"].flops / 1e6
    assert described(recipe, found) == (
        f"at least 20 clips, {total / 2**20:.1f} MiB on disk, {most / 2**20:.1f} MiB of memory, "
        f"{module._duration(seconds)} of training"
    )


def run(capsys: Any, monkeypatch: pytest.MonkeyPatch, *words: Any) -> tuple[int, list[str]]:
    status, out, err = here(capsys, monkeypatch, *words)
    assert "Traceback" not in err
    return status, err.splitlines() or [out]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 2, batch: 4", "steps: 2, batch: 4_000_000_000", "{path}:7: step 'vae' needs at least "),
        (
            "num_clips: 16, num_test: 4, frames: 9, size: [64, 64]",
            "num_clips: 1_000_000, num_test: 4, frames: 121, size: [1024, 1024]",
            "{run}: the run needs at least ",
        ),
    ],
)
def test_what_this_machine_can_not_hold(
    old: str, new: str, message: str, path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(RECIPE.replace(old, new))
    status, lines = run(capsys, monkeypatch, "run", path, "--out", path.parent / "run")
    assert status == 2
    assert lines[-1].startswith(message.format(path=path, run=path.parent / "run"))
    assert "give --yes to try it all the same" in lines[-1]
    assert [item.name for item in path.parent.iterdir()] == ["recipe.yaml"]


def test_yes_runs_it(path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_bytes", lambda: 1.0)
    monkeypatch.setattr(pipeline, "subprocess", forks())
    words = ("run", path, "--out", path.parent / "run", "--only", "base", "--threads", "1")
    assert run(capsys, monkeypatch, *words)[0] == 2
    assert not (path.parent / "run").exists()
    assert run(capsys, monkeypatch, *words, "--yes")[0] == 0
    assert (path.parent / "run" / "steps" / "base" / "step.json").is_file()
    assert run(capsys, monkeypatch, *words)[0] == 0, "a finished step takes nothing"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers: 2, heads", "layers: 1_000_000, heads", "3: expected a number of at most 1000 for 'layers' of model"),
        ("ffn: 32, channels: 16", "ffn: 32, channels: 1_000_000_000_000", "3: expected a number of at most 16384 for"),
        ("layers: 2, heads: 2, head_width: 12", "layers: 1000, heads: 1024, head_width: 12",
         "3: model 'video_dit': the model would have about 1,209 billion parameters: lower 'layers' or 'heads'"),
        ("video_vae, channels: 16", "video_vae, channels: 1_000_000_000", "7: expected a number of at most 16384 for"),
        ("{use: words, width: 16", "{use: words, width: 1_000_000_000_000", "4: expected a number of at most 16384 for"),
        ("{use: video_dit, preset: tiny, layers: 2, heads: 2, head_width: 12, ffn: 32, channels: 16, text_width: 16}",
         "{use: diffusers, class_name: LTXVideoTransformer3DModel, config: {num_layers: 1_000_000}}",
         "3: model 'diffusers': 'num_layers' of 'config' is 1,000,000: give at most 1,000"),
    ],
)  # fmt: skip
def test_numbers_without_bounds(
    old: str, new: str, message: str, path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RECIPE.count(old) == 1
    path.write_text(RECIPE.replace(old, new))
    status, lines = run(capsys, monkeypatch, "check", path)
    assert status == 2
    assert lines[0].startswith(f"{path}:{message}")
