"""``plan --processes N``: what a training step holds on each of N, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit_compress.cli.plan import plan_table
from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import use
from dit_compress.recipe import load
from dit_compress.run.plan import plan
from dit_compress.train.options import check_parts

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
