"""PSNR, SSIM and the error of differences in time, by hand; and the step on real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import context_in

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, write_json
from dit_compress.data.clips import Clip, write_captions
from dit_compress.data.source import data_folder
from dit_compress.data.video import write_video
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.report.data import read_step
from dit_compress.report.reconstruction import Reconstruction, reconstructions
from dit_compress_plugins.evaluate_reconstruction import ReconstructionOptions
from dit_compress_plugins.evaluate_reconstruction.measures import CEILING, distances, similarity
from dit_compress_plugins.evaluate_reconstruction.step import ReconstructionEvaluation, names_of

CLIP = np.full((2, 16, 16, 3), 100, dtype=np.uint8)


def test_a_constant_error_by_hand() -> None:
    # 10·log10(255² / 5²) = 20·log10(51)
    for error in (CLIP + 5, CLIP - 5):  # no wrap of uint8
        found = distances(error, CLIP)
        assert found.psnr_db == pytest.approx(34.1514, abs=1e-4)
        assert found.frames_db == pytest.approx([34.1514, 34.1514], abs=1e-4)
        assert found.temporal == 0.0  # it does not change from frame to frame
        # flat frames have no variance: (2·μ·ν + c1) / (μ² + ν² + c1), c1 = (0.01·255)²
        other = float(error[0, 0, 0, 0])
        assert found.ssim == pytest.approx((200 * other + 6.5025) / (1e4 + other**2 + 6.5025), abs=1e-6)


def test_equal_clips_reach_the_ceiling() -> None:
    found = distances(CLIP, CLIP)
    assert (found.psnr_db, found.temporal, found.frames_db) == (CEILING, 0.0, (CEILING, CEILING))
    assert found.ssim == pytest.approx(1.0, abs=1e-9)


def test_the_clip_counts_its_errors_and_each_frame_its_own() -> None:
    decoded = CLIP.copy()
    decoded[1] += 8
    found = distances(decoded, CLIP)
    assert found.frames_db == pytest.approx([CEILING, 20 * np.log10(255 / 8)], abs=1e-5)
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 / 32), abs=1e-5)  # the errors are averaged: 8²/2
    assert found.temporal == pytest.approx(8.0)  # 8 from one frame to the other, everywhere
    assert distances(decoded[:1], CLIP[:1]).temporal is None


def test_the_temporal_error_by_hand() -> None:
    clip, decoded = np.zeros((3, 11, 11, 3), np.uint8), np.zeros((3, 11, 11, 3), np.uint8)
    clip[1, 0, 0, 0], decoded[2, 0, 0, 0] = 200, 100
    # changes of that value: 200, -200 and 0, 100; distances 200 and 300 over two changes of 363 values
    assert distances(decoded, clip).temporal == pytest.approx(500 / (2 * 363))


def test_ssim_is_that_of_its_paper() -> None:
    """Wang et al. 2004, Eq. 13, written out: 11x11 pixels around each, sigma 1.5, reflected at the border."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (12, 13)).astype(np.float64)
    other = np.clip(clip + rng.normal(0, 30, clip.shape), 0, 255)
    one = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(one, one) / one.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    by_hand = []
    padded = [np.pad(image, 5, mode="reflect") for image in (clip, other)]
    for y, x in np.ndindex(clip.shape):
        a, b = (image[y : y + 11, x : x + 11] for image in padded)
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        shared = (window * (a - mean_a) * (b - mean_b)).sum()
        alike = (2 * mean_a * mean_b + c1) * (2 * shared + c2)
        by_hand.append(alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    found = similarity(torch.tensor(other)[None, None], torch.tensor(clip)[None, None])
    assert found.tolist() == pytest.approx([np.mean(by_hand)], abs=1e-6)


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        distances(CLIP[:1], CLIP)


class Darker:
    """A codec whose round trip takes 8 levels of everything, and drops what is after the first frame of red clips."""

    ratio, channels, frame_rule = (1, 1, 1), 3, None

    def eval(self) -> Darker:
        return self

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return video

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        decoded = latent - 8 / 127.5
        red = latent[:, 0].mean((1, 2, 3)) > 0.2
        return torch.where(red[:, None, None, None, None], decoded[:, :, :1], decoded)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four clips of equal captions: three grey ones, and a red one that becomes brighter."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(4):
        video = np.full((5, 32, 48, 3), 60 + 20 * number, np.uint8)
        if number == 2:
            video[..., 0] = (160 + 20 * np.arange(5))[:, None, None]
        write_video(folder / f"{number}.mp4", video, 8)
    write_captions(folder, [{"file": f"{number}.mp4", "caption": "a clip"} for number in range(4)])
    return folder


def evaluated(tmp_path: Path, folder: Path, data: dict[str, Any], **options: Any) -> Any:
    context = context_in(tmp_path)
    given = {"use": "videos", "path": str(folder), "split_by": "file", "test_fraction": 0.999999, **data}
    context.parts["data"] = make_part("data", given, installed())
    context.parts["data"].build().prepare(data_folder(context.cache, context.parts["data"]))
    context.bundles["input"] = type("Given", (), {"codec": lambda _: Darker()})()
    return ReconstructionEvaluation(ReconstructionOptions(**options)).run(context)


def test_the_step_names_the_worst_clip_and_frame_and_shows_them(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "steps" / "codec"
    data = {"frames": 5, "size": [32, 48]}
    result = evaluated(out, folder, data, batch=3)
    found = result.metrics
    assert [row["clip"] for row in found["clips"]] == [f"{number}.mp4" for number in range(4)]
    assert found["num_clips"] == 4  # equal captions are clips of their own
    assert (found["worst_clip"], found["worst_frame"]) == ("2.mp4", ["2.mp4", 4])
    plain = 20 * np.log10(255 / 8)
    by_clip = [row["psnr_db"] for row in found["clips"]]
    assert [by_clip[number] for number in (0, 1, 3)] == pytest.approx([plain] * 3, abs=0.3)
    assert found["psnr_db"] == pytest.approx(np.mean(by_clip))
    assert found["psnr_worst_clip_db"] == by_clip[2] < plain - 5
    # 20 levels a frame in one of three colours are lost
    assert found["clips"][2]["temporal_difference_error"] == pytest.approx(20 / 3, abs=0.7)
    assert found["video"] == [5, 32, 48]
    shown = read_json(out / result.files["worst"])
    assert [(entry["caption"], entry["column"]) for entry in shown[:2]] == [
        ("2.mp4", "original"),
        ("2.mp4", "reconstruction"),
    ]
    assert len(shown) == 6
    record = {"name": "codec", "kind": "evaluate", "metrics": found, "files": result.files}
    write_json(out / "step.json", record)
    run = type("Run", (), {"of_kind": lambda _, __: [read_step(out)]})()
    (report,) = reconstructions(run)
    assert report.rows[0]["clip"] == "2.mp4"
    name, cells = report.worst[0]
    assert (name, list(cells)) == ("2.mp4", ["original", "reconstruction"])
    assert cells["original"].startswith("data:video/mp4;base64,")


def test_a_stated_size_is_measured_and_several_each_at_its_own(tmp_path: Path, folder: Path) -> None:
    stated = evaluated(tmp_path / "a", folder, {"frames": 5, "size": [32, 48]}, frames=3, size=[16, 16]).metrics
    assert (stated["video"], stated["num_clips"]) == ([3, 16, 16], 4)
    write_video(folder / "0.mp4", np.full((9, 48, 32, 3), 100, np.uint8), 8)
    (folder / "below").mkdir()
    (folder / "3.mp4").rename(folder / "below" / "0.mp4")
    names = ["0.mp4", "2.mp4", "below/0.mp4"]
    write_captions(folder, [{"file": name, "caption": "a clip"} for name in names])
    sizes = {"sizes": [[5, 32, 48], [9, 32, 32]]}
    result = evaluated(tmp_path / "b", folder, sizes)
    rows = result.metrics["clips"]
    assert [row["video"] for row in rows] == [[9, 32, 32], *[[5, 32, 48]] * 2]
    assert [row["clip"] for row in rows] == names
    worst = read_json(tmp_path / "b" / result.files["worst"])
    assert len(worst) == 6
    assert worst[0]["caption"] == "2.mp4"
    assert {entry["caption"] for entry in worst} == set(names)  # equal file names are clips of their own
    step: Any = None
    assert [Reconstruction(step, tuple(part), ()).size for part in (rows, rows[1:])] == [
        "each at its own size",
        "5 × 32 × 48",
    ]


def test_clips_are_named_below_the_folder_of_the_data() -> None:
    paths = [Path("/d/clips/a/0.mp4"), Path("/d/clips/b/0.mp4"), Path("/e/0.mp4")]
    clips = [Clip(path, "") for path in paths]
    assert list(names_of(clips, "/d/clips").values()) == ["a/0.mp4", "b/0.mp4", "/e/0.mp4"]
    assert list(names_of(clips, "/d/clips/train.csv").values()) == ["a/0.mp4", "b/0.mp4", "/e/0.mp4"]
    assert list(names_of(clips[:2], "").values()) == ["a/0.mp4", "b/0.mp4"]


def test_all_clips_are_looked_at_before_the_first_is_decoded(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(folder / "3.mp4", np.full((33, 32, 48, 3), 100, np.uint8), 8)
    monkeypatch.setattr(Clip, "pixels", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr(Darker, "ratio", (1, 5, 1))
    with pytest.raises(UserError) as caught:
        evaluated(tmp_path / "a", folder, {"sizes": [[5, 8, 48], [33, 16, 48]]}, frames=33)
    found = {(where.rpartition("/")[2], what) for where, what, _ in caught.value.problems}
    assert found == {
        ("0.mp4", "frames of 8x48 pixels: SSIM needs 11 a side"),
        ("3.mp4", "16×48 pixels can't be divided by the ratio 5×1"),
        *((f"{number}.mp4", "the video has 5 frames, 33 are wanted") for number in range(3)),
    }


def test_images_stay_images_at_a_stated_length(tmp_path: Path, folder: Path) -> None:
    assert ReconstructionOptions(protocol="davis").video_of((1, 32, 48)) == (1, 512, 512)
    write_video(folder / "3.mp4", np.full((1, 32, 48, 3), 100, np.uint8), 8)
    found = evaluated(tmp_path / "a", folder, {"sizes": [[5, 32, 48], [1, 32, 48]]}, frames=3).metrics["clips"]
    assert [row["video"][0] for row in found] == [3, 3, 3, 1]
    assert found[3]["temporal_difference_error"] is None


def test_the_protocol_says_the_size_and_the_plan_holds_it(tmp_path: Path) -> None:
    options = ReconstructionOptions(protocol="davis")
    assert options.video_of((5, 32, 48)) == (33, 512, 512)
    with pytest.raises(ValueError, match="'protocol: davis' says 'frames' and 'size'"):
        ReconstructionOptions(protocol="davis", frames=9)
    vae = make_part("latent", {"use": "video_vae", "ratio": "8x32x32"}, installed()).build()
    spec = vae.plan(Spec(video=(17, 64, 64)))
    assert isinstance(spec.latent, ComponentSpec)
    assert ReconstructionEvaluation(options).plan(spec) == spec
    with pytest.raises(
        UserError, match=r"the data's clips have 17 frames, 33 are wanted. Give the step fewer 'frames'"
    ):
        ReconstructionEvaluation(options).plan(replace(spec, longest=17))
    with pytest.raises(UserError, match=r"30 frames are not 1 \+ 8·k"):
        ReconstructionEvaluation(ReconstructionOptions(frames=30)).plan(spec)
    with pytest.raises(UserError, match="SSIM needs 11 a side"):
        ReconstructionEvaluation(ReconstructionOptions()).plan(replace(spec, video=(17, 8, 64)))
