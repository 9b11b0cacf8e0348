"""``plan --processes N``: what a training step holds on each of N, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dit_compress.cli.app import app
from dit_compress.cli.plan import plan_table
from dit_compress.core.errors import UserError
from dit_compress.model.denoiser import Denoiser
from dit_compress.model.flow import Flow
from dit_compress.model.twins import write_twin
from dit_compress.plugin.registry import use
from dit_compress.recipe import load, make_part
from dit_compress.run.fits import Fit, activation_bytes, fits
from dit_compress.run.plan import plan
from dit_compress.train.options import check_parts
from dit_compress_plugins.distill_flow import FlowOptions

RECIPE = """
name: memory
model: {use: video_dit, preset: tiny, layers: 2, heads: 2, head_width: 12, ffn: 32, channels: 16, text_width: 16}
text: {use: words, width: 16, layers: 1, heads: 2}
data: {use: shapes, num_clips: 16, num_test: 4, frames: 9, size: [64, 64]}
steps:
  - latent: {use: video_vae, channels: 16, steps: 2, widths: [8, 8, 8, 8], blocks: 1}
  - distill: {use: flow, steps: 2}
    name: plain
  - distill: {use: affine, steps: 2, ema: 0.9}
    name: averaged
    teacher: plain
"""


def test_student_and_teacher_are_shared_out(tmp_path: Path) -> None:
    """Weight, gradient and two moments are 16 bytes; an average 4 more, and a teacher 4."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = load(path, use())
    rows = plan(recipe)
    params = rows[-1].after["params"]
    table = plan_table(rows, recipe, tmp_path / "run", 4)
    (column,) = [column for column in table.columns if column.header == "training, each of 4"]
    cells = list(column.cells)
    assert cells[:2] == ["–", "–"]
    assert cells[2:] == [f"{params * size / 4 / 2**20:.1f} MiB" for size in (16, 24)]
    assert all(column.header != "training, each of 4" for column in plan_table(rows, recipe, tmp_path).columns)


def test_a_copy_is_shared_by_a_group_where_there_are_groups(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("{use: flow, steps: 2}", "{use: flow, steps: 2, batch: 8, shard: 2}"))
    recipe = load(path, use())
    rows = plan(recipe, processes=4)
    table = plan_table(rows, recipe, tmp_path / "run", 4)
    (column,) = [column for column in table.columns if column.header == "training, each of 4"]
    params = rows[-1].after["params"]
    assert list(column.cells)[2:] == [f"{params * size / 2**20:.1f} MiB" for size in (16 / 2, 24 / 4)]


def test_a_batch_that_so_many_can_not_share_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The VAE's 4 over 8; flow's 32 goes."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = load(path, use())
    plan(recipe, processes=4)
    with pytest.raises(UserError) as refused:
        plan(recipe, processes=8)
    assert str(refused.value) == (
        f"{path}:7: a batch of 4 can't be shared by 8 processes in 1 equal parts. Set 'batch' to a multiple of 8"
    )


@pytest.mark.parametrize("processes", [64, 128])
def test_the_papers_recipe_is_one_for_a_cluster(processes: int) -> None:
    """As docs/scale.md starts it."""
    recipe = load(Path(__file__).parent.parent / "recipes" / "mobile_video.yaml", use())
    trained = [(step.name, part) for step in recipe.steps for part in step.part.together]
    assert [name for name, _ in trained] == ["vae", "server", "pruned", "compact", "mobile"]
    for _, part in trained:
        check_parts(part.options, processes)


def test_which_gpus_hold_a_step_by_hand(tmp_path: Path) -> None:
    """4 tokens, a stream of 24, two blocks, an FFN of 32; LoRA on a base in 8 bits, a teacher in bfloat16."""
    path = tmp_path / "recipe.yaml"
    lora = "{use: affine, steps: 2, batch: 8, accumulate: 2, lora: {rank: 2, base: int8}, teacher_dtype: bfloat16}"
    path.write_text(RECIPE.replace("{use: affine, steps: 2, ema: 0.9}", lora))
    rows = plan(load(path, use()))
    found, own, row = fits(rows), rows[-1].after, rows[-1]
    tokens = own["tokens"]
    assert (row.width, row.blocks, own["ffn"]) == (24, 2, [32, 32])
    assert set(found) == {"plain", "averaged"}
    params, text = own["params"], 4 * own["text_params"]
    block = tokens * (34 * 24 + 4 * 32)
    assert (found["plain"].state, found["plain"].samples) == (16 * params + text, 32)
    assert found["plain"].sample == 2 * 2 * block, "two blocks, in float32"
    assert row.held - row.trained == params
    assert found["averaged"].state == params + 16 * row.trained + 2 * params + text
    assert found["averaged"].samples == 4
    assert found["averaged"].sample == pytest.approx(row.held / params * 2 * 2 * block)
    options = FlowOptions(bf16=True, checkpoint_activations=True)
    assert activation_bytes(row, options) == 2 * tokens * 4 * 24 + block
    shared = fits(plan(load(path, use()), processes=4), 4)["plain"]
    assert (shared.state, shared.samples) == (4 * params + 2 * 4 * params / 2 + text, 8)


def test_calls_that_a_backward_pass_goes_through_are_counted() -> None:
    """K of the last steps, each twice where guided; one where they are computed again; and the anchor's."""
    found = []
    for last, recompute, weight in ((1, False, 0), (4, False, 0), (4, False, 1), (4, True, 1)):
        given = {
            "use": "reward",
            "reward": "reader",
            "last_steps": last,
            "recompute": recompute,
            "anchor_weight": weight,
        }
        step = make_part("distill", given, use()).build()
        found.append([step.calls(Flow(guidance=guidance)) for guidance in (1.0, 4.0)])
    assert found == [[1, 2], [4, 8], [5, 9], [2, 3]]
    assert make_part("distill", "flow", use()).build().calls(Flow(guidance=4.0)) == 1


def test_an_encoder_that_is_freed_is_not_counted_beside_a_model_of_diffusers(tmp_path: Path) -> None:
    """Wan, whose rotary tables are no parameters: 3x4x4 tokens, a stream of 48, three blocks, an FFN of 96."""
    write_twin("Wan2.1-T2V-1.3B", tmp_path / "wan")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
model: {{from: {tmp_path / "wan"}}}
data: {{use: shapes, num_clips: 16, num_test: 4, frames: 9, size: [64, 64]}}
steps:
  - prune: {{use: trilevel, levels: {{ffn: {{keep: 0.5}}}}, search: magnitude}}
  - distill: {{use: affine, steps: 2, batch: 2}}
    name: healed
""")
    rows = plan(load(path, use()), deep=False)
    whole, own = rows[1].after["params"], rows[-1].after["params"]
    assert (rows[-1].width, rows[-1].blocks, rows[-1].after["ffn"]) == (48, 3, [48] * 3)
    fit = fits(rows)["healed"]
    assert fit.state == 16 * own + 4 * whole
    assert fit.sample == pytest.approx(rows[-1].held / own * 2 * 3 * 48 * (34 * 48 + 4 * 48))


def test_a_model_that_looks_at_values_is_as_wide_as_its_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HunyuanVideo 1.5 does, which runs on no meta device: 2 heads of 12."""

    def runs_not(_: Denoiser) -> int:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(Denoiser, "stream_width", runs_not)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    rows = plan(load(path, use()))
    assert [row.width for row in rows[-2:]] == [24, 24]
    assert set(fits(rows)) == {"plain", "averaged"}


def test_a_tenth_of_a_gpu_is_left_free() -> None:
    """28.66 GiB and one sample of 2.85: docs/scale.md's 2B model."""
    told = Fit(28.66 * 2**30, 2.85 * 2**30, 1).described()
    assert told == (
        "fits: 24 GB no, 48 GB yes, 80 GB yes (about 31.51 GiB a GPU: weights and optimiser 28.66 GiB, "
        "activations 1 x 2.85 GiB)"
    )
    assert "48 GB no, 80 GB yes" in Fit(44 * 2**30, 0, 1).described()


def test_the_command_says_it_for_each_training_step(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    lines = CliRunner().invoke(app, ["plan", str(path)]).output.splitlines()
    told = [line.split(" (")[0] for line in lines if " fits: " in line]
    assert told == [f"{name} fits: 24 GB yes, 48 GB yes, 80 GB yes" for name in ("plain", "averaged")]
