"""The benchmark of a codec's losses: claims that can hold, margins, and all of it run through, tiny."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import paired
import vae_losses


def rows(seeds: int, **gains: float) -> list[paired.Row]:
    """Arms that gain so many dB over ``plain``, ``scale`` with a smoother latent, its DiT nearer to the clips."""
    found = []
    for noise in np.linspace(-0.01, 0.01, seeds):
        psnr = {"plain": 30.0, **{arm: 30 + gains.get(arm, 0.0) + noise for arm in vae_losses.ARMS if arm != "plain"}}
        row = {arm: {"psnr_db": value, "upper_share": 0.1 - 0.02 * (arm == "scale")} for arm, value in psnr.items()}
        row |= {"DiT of plain": {"energy": 2.0}, "DiT of scale": {"energy": 1.5 + noise}}
        found.append(vae_losses.with_margins(row))
    return found


def test_claims_with_margins_hold_with_eight_seeds_and_not_beyond_the_margin() -> None:
    assert len(vae_losses.CLAIMS) / 2**8 < paired.LEVEL
    held = paired.judge(rows(8, scale=-0.3, haar=0.05, gan=-0.2), vae_losses.CLAIMS)
    assert [verdict["held"] for verdict in held] == [True] * 6
    missed = paired.judge(rows(8, consistency=-0.2, scale=-0.6, haar=0.15, gan=0.3), vae_losses.CLAIMS)
    by_margin = [0, 1, 2, 4]
    assert [missed[place]["reversed"] for place in by_margin] == [True] * 4
    assert missed[0]["mean"] == pytest.approx(-0.1)
    assert not any(verdict["held"] for verdict in paired.judge(rows(5, scale=-0.3), vae_losses.CLAIMS))
    assert vae_losses.gained(rows(8, gan=0.3), "gan")[0] == pytest.approx(0.3)


def test_videos_are_compared_by_few_pixels_a_frame() -> None:
    video = torch.zeros(2, 3, 5, 32, 32)
    video[0, 0, 0, :2, :2] = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    found = vae_losses.small(video)
    assert found.shape == (2, 3 * 5 * 16 * 16)
    assert (found[0, 0], found.sum()) == (2, 2)


def test_it_runs_tiny_and_goes_on_with_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--tier", "tiny", "--seeds", "1", "--out", str(tmp_path)]
    assert vae_losses.main(given) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (first["claims"], first["held"], first["reversed"]) == (6, 0, 0), "one seed can show nothing"
    assert set(first["arms"]) == {arm for table in vae_losses.TABLES for arm in table.paper}
    assert first["arms"]["no codec"]["upper_share"] == 5 / 8
    assert 5 < first["arms"]["no codec"]["psnr_db"] < 30
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("bundle.json")}
    assert len(written) == len(vae_losses.ARMS) + 2 * len(vae_losses.TAUGHT)
    (tmp_path / "tiny" / "seed0" / "row.json").unlink()
    assert vae_losses.main(given) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["arms"] == first["arms"]
    trained = [path for path in written if not path.parent.name.endswith("-start")]
    assert all(path.stat().st_mtime_ns == written[path] for path in trained)
    text = (tmp_path / "vae-losses.md").read_text("utf-8")
    assert all(f"| {arm} |" in text for arm in first["arms"])
