"""``plan --processes N``: what a training step holds on each of N, by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.planning import plan
from dit_compress.plugins import use
from dit_compress.recipe import load
from dit_compress.show import plan_table

if TYPE_CHECKING:
    from pathlib import Path

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
