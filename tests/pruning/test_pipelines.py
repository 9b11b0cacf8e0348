"""Six pipelines of diffusers end to end: the command, the loaded model in its pipeline, the command again."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from pipelines import PIPELINES

import dit_compress
from dit_compress.cli import app as cli
from dit_compress.model.figures import count_parameters

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines import Pipeline

pytestmark = pytest.mark.slow(25)


@pytest.fixture
def prune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``dit-compress prune`` in this process: how many parameters it says stay."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dit-compress", "prune", *arguments])
        with contextlib.suppress(SystemExit):
            cli.main()
        printed, said_why = capsys.readouterr()
        assert printed.splitlines()[-1:] == [arguments[-1]], said_why
        said = re.search(r"^([\d,]+) parameters stay$", printed, re.MULTILINE)
        assert said is not None, printed
        return int(said[1].replace(",", ""))

    return command


def counts(text: str) -> dict[str, int]:
    return {name: int(count) for name, _, count in (item.partition("=") for item in text.split(","))}


@pytest.mark.parametrize("name", PIPELINES)
def test_pruned_loaded_sampled_and_pruned_again(name: str, prune: Any, tmp_path: Path) -> None:
    kind: Pipeline = PIPELINES[name]
    kind.save(tmp_path / "whole")
    before = kind.sampled(tmp_path / "whole")
    assert before.isfinite().all()
    size = prune("whole", "--remove", kind.remove, "--keep", "ffn=0.5", "--out", "small")
    small = dit_compress.load("small")
    original: Any = getattr(diffusers, kind.transformer[0])
    assert type(small) is original
    assert count_parameters(small) == size
    live: Any = original.from_pretrained(tmp_path / "whole", subfolder="transformer")
    assert size < count_parameters(live)
    dit_compress.prune(live, remove=counts(kind.remove), keep={"ffn": 0.5})
    frames = kind.sampled(tmp_path / "whole", transformer=small)
    assert frames.shape == before.shape
    assert frames.isfinite().all()
    assert not torch.allclose(frames, before)
    torch.testing.assert_close(frames, kind.sampled(tmp_path / "whole", transformer=live), atol=1e-5, rtol=0)
    left = prune("small", "--remove", kind.again, "--out", "twice")
    twice = dit_compress.load("twice")
    assert count_parameters(twice) == left < size
    assert kind.sampled(tmp_path / "whole", transformer=twice).isfinite().all()
