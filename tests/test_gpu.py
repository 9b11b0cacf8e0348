"""What only a GPU can show, in a minute: each objective trains there as on the CPU, by every option, and resumes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "train"))
from test_parallel import ALONE, objective, options_of, outcome, samples, train

from dit_compress.step.world import World
from dit_compress.train.loop import draw_batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
KINDS = ("flow", "affine", "adversarial")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "any order": {"deterministic": False},
    "again": {"checkpoint_activations": True},
    "compiled": {"compile": True},
    "compiled, again": {"compile": True, "checkpoint_activations": True},
    "images": {"images": 0.5},
    "muon": {"muon_lr": 0.02},
}


def gpu() -> World:
    return World(device=torch.device("cuda"))


def test_every_loss_is_that_of_the_cpu() -> None:
    """The first loss of each phase: the same draws, float32 products (not TF32) on both."""
    for kind in KINDS:
        made = objective(kind, "video_dit", options_of(kind))
        given = draw_batch(samples(), 4, 0, 1)
        here = [float(made.loss(phase, given)["loss"].detach()) for phase in made.phases]
        for role in made.roles.values():
            role.module.to("cuda")
        placed = given.to(torch.device("cuda"))
        there = [float(made.loss(phase, placed)["loss"].detach()) for phase in made.phases]
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for name in OPTIONS for kind in KINDS if kind == "flow" or "compiled" not in name],
)
def test_a_training_there_is_that_of_the_cpu(tmp_path: Path, kind: str, name: str) -> None:
    """Curves of four steps; looser than on one device: Adam takes rounding of small gradients for signs."""
    more = OPTIONS[name]
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    train(gpu(), there, kind, "video_dit", None, more)
    train(ALONE, here, kind, "video_dit", None, {**more, "compile": False})
    for one, other in zip(curves(there), curves(here), strict=True):
        assert one.keys() == other.keys()
        losses = [key for key in one if key.endswith("loss")]
        assert losses
        assert [one[key] for key in losses] == pytest.approx([other[key] for key in losses], rel=0.05, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_finite_and_near(tmp_path: Path, kind: str) -> None:
    for name, on in (("half", True), ("whole", False)):
        (tmp_path / name).mkdir()
        train(gpu(), tmp_path / name, kind, "video_dit", None, {"bf16": on})
    (answer, lines), (answer_2, _) = outcome(tmp_path / "half"), outcome(tmp_path / "whole")
    assert all(torch.isfinite(torch.tensor(list(line.values()))).all() for line in lines)
    assert (answer - answer_2).norm() < 0.5 * answer_2.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_equals_one_that_was_not_interrupted(tmp_path: Path, kind: str) -> None:
    """Bit for bit: kernels that give other bits each time are off."""
    for name, deaths in (("whole", ()), ("killed", (3,))):
        (tmp_path / name).mkdir()
        for die_at in (*deaths, None):
            train(gpu(), tmp_path / name, kind, "video_dit", die_at)
    assert torch.equal(outcome(tmp_path / "whole")[0], outcome(tmp_path / "killed")[0])
    assert outcome(tmp_path / "whole")[1] == outcome(tmp_path / "killed")[1]


def curves(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
