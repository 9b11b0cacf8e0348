"""A phone package for several sizes: which function to load, its tables and golden tensors; NumPy plays each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_phone import SCHEMA, exported, manifest_of
from test_verify import command

from dit_compress.data.video import write_video
from dit_compress.export.player import Player
from dit_compress.plugin.registry import use
from dit_compress.step.sampling import Generator
from dit_compress_plugins.export_coreml import CoreMLOptions
from dit_compress_plugins.export_coreml.exporter import CoreMLExport

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(12)

pytest.importorskip("coremltools")
torch.set_num_threads(1)

OTHER = (17, 64, 96)


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Core ML files that take a second size, of more frames and wider."""
    use()
    return exported(tmp_path_factory.mktemp("sized"), CoreMLExport(CoreMLOptions(sizes=(OTHER,))), "coreml")


def test_every_size_says_what_to_load(sized: tuple[Any, Path]) -> None:
    """One name for function, RoPE tables and golden sets; the tables of each size are those of the formula."""
    bundle, folder = sized
    data = manifest_of(folder)
    jsonschema.validate(data, SCHEMA)
    assert data["sizes"] == [
        {"name": "main", "frames": 9, "height": 64, "width": 64, "latent": [1, 16, 2, 2, 2]},
        {"name": "video_17x64x96", "frames": 17, "height": 64, "width": 96, "latent": [1, 16, 3, 2, 3]},
    ]
    tables = load_file(folder / data["rope"]["file"])
    assert {each["name"] for each in data["rope"]["tensors"]} == set(tables)
    for size in data["sizes"]:
        before, theta = ("" if size["name"] == "main" else f"{size['name']}/"), bundle.denoiser().module.rope_theta
        t, h, w = size["latent"][2:]
        angles = [[place * theta ** (-i / 2) for place in cell[1:] for i in range(2)] for cell in np.ndindex(t, h, w)]
        np.testing.assert_allclose(tables[f"{before}cos"][:, 4:], np.cos(angles), atol=1e-6)
        assert len(tables[f"{before}sin"]) == t * h * w
    names = [size["name"] for size in data["sizes"]]
    for entry in data["artifacts"][1:]:
        assert [each["name"] for each in entry["details"]["functions"]] == names
        assert [each["inputs"]["latent"] for each in entry["details"]["functions"]] == [
            s["latent"] for s in data["sizes"]
        ]
        golden = {key.split("/")[0] for key in load_file(folder / entry["golden"])}
        assert golden >= {"typical", *(f"{name}-typical" for name in names[1:])}


def test_numpy_plays_the_other_size(sized: tuple[Any, Path], tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """What the toolkit samples at that size, through the function for it; ``test_phone`` plays the bundle's own."""
    bundle, folder = sized
    player = Player(folder, use(), OTHER)
    wanted = Generator(bundle, tuple(player.size["latent"][1:]))(["two small circles"], seed=7, index=[0])[0]
    found = player.video("two small circles", 7)
    assert found.shape == wanted.shape == (*OTHER, 3)
    error = np.square(found.astype(float) - wanted.astype(float)).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40
    assert wanted.std() > 5, "a flat picture would prove nothing"
    words = ("play", folder, "two small circles", "--size", *OTHER, "--seed", 7, "--out", tmp_path / "v.mp4")
    assert command(capsys, monkeypatch, *words)[0] == 0
    write_video(tmp_path / "wanted.mp4", found, 8.0)
    assert (tmp_path / "v.mp4").read_bytes() == (tmp_path / "wanted.mp4").read_bytes()


def test_a_size_that_the_files_do_not_take(
    sized: tuple[Any, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, printed = command(capsys, monkeypatch, "play", sized[1], "a star", "--size", 9, 64, 128)
    assert status == 2
    assert (
        "the files take no video of 9 64 128 (frames, height, width). Take --size 9 64 64 or --size 17 64 96" in printed
    )
    status, printed = command(capsys, monkeypatch, "play", sized[1], "--golden", "--size", *OTHER)
    assert status == 2
    assert "the golden sample is of size 9 64 64. Leave --size out" in printed
