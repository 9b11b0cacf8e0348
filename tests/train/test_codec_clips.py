"""Two processes train a VAE on a folder of mp4 files: together they see what one sees, each clip decoded by one."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from processes import together
from toy import context_in

from dit_compress.data.clips import Clip, write_captions
from dit_compress.data.prefetch import ClipStream
from dit_compress.data.samples import Samples
from dit_compress.data.video import write_video
from dit_compress.model.bundle import Bundle
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.context import Context
from dit_compress.step.world import World
from dit_compress.train.loop import batch_index
from dit_compress_plugins.latent_video_vae import VideoVAEOptions
from dit_compress_plugins.latent_video_vae.step import VideoVAEStep

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NUM, BATCH, STEPS = 10, 4, 4
"""More than one epoch, and batches that straddle its end."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of moving gratings."""
    folder = tmp_path_factory.mktemp("clips")
    y, x = np.mgrid[:32, :32]
    for number in range(NUM):
        waves = [np.sin((x * (number % 3) + y * (number % 4) + 2 * frame) / 5) for frame in range(5)]
        grey = (127 + 100 * np.stack(waves)).astype(np.uint8)
        write_video(folder / f"{number}.mp4", np.stack([grey, grey // 2, 255 - grey], axis=-1), 8)
    write_captions(folder, [{"file": f"{number}.mp4", "caption": f"clip {number}"} for number in range(NUM)])
    return folder


class Watched(ClipStream):
    """Notes which clips are asked for."""

    asked: list[list[int]]

    def __getitem__(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        self.asked.append([int(i) for i in index])
        return super().__getitem__(index)


class Streamed(Context):
    """A context whose training clips are noted."""

    def pixels(self, split: Any) -> Samples:
        made = super().pixels(split)
        assert made.streamed
        if split == "test":
            return made
        self.stream = Watched(self.clips("train"), 2)
        self.stream.asked = []
        return Samples(self.stream, made.captions(range(len(made))), {}, pixels=True)


def train(world: World, out: Path, clips: Path) -> None:
    """The whole step; what this process asked for and decoded into a file of its rank."""
    context = Streamed(**vars(context_in(out)))
    context.world, context.video = world, (5, 32, 32)
    data = {"use": "videos", "path": str(clips), "frames": 5, "size": [32, 32], "test_fraction": 0.0, "workers": 2}
    context.parts["data"] = make_part("data", data, installed())
    context.trackers = [make_part("tracker", "jsonl", installed())]
    context.clips = lambda _: Context.clips(context, "train")  # type: ignore[method-assign]  # the test split, too
    decoded: list[str] = []
    inner = Clip.pixels
    Clip.pixels = lambda clip: (decoded.append(clip.path.stem), inner(clip))[1]  # type: ignore[method-assign]
    options = VideoVAEOptions(
        ratio="4x16x16", channels=8, widths=(8, 8, 8), blocks=1, steps=STEPS, batch=BATCH, bf16=False, pca_clips=6,
        warmup=0, checkpoint_every=2,
    )  # fmt: skip
    try:
        VideoVAEStep(options).run(context)
    finally:
        Clip.pixels = inner  # type: ignore[method-assign]
        context.stream.close()
        notes = {"asked": context.stream.asked, "decoded": [int(name) for name in decoded]}
        (out / f"seen-{world.rank}.json").write_text(json.dumps(notes))


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    train(World(), out, folder)
    return out


@pytest.fixture(scope="module")
def two(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    together(train, out, 2, folder)
    return out


def seen(out: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((out / f"seen-{rank}.json").read_text())


def batches(asked: list[list[int]], size: int) -> list[list[int]]:
    """What was asked for by the training: shares of batches; PCA and statistics ask for six, the round trip for others."""
    return [index for index in asked if len(index) == size]


def test_two_processes_together_see_what_one_sees(alone: Path, two: Path) -> None:
    whole = batches(seen(alone)["asked"], BATCH)
    shares = [batches(seen(two, rank)["asked"], BATCH // 2) for rank in range(2)]
    assert len(whole) == len(shares[0]) == len(shares[1]) == STEPS
    assert [[*first, *second] for first, second in zip(*shares, strict=True)] == whole
    assert whole == [batch_index(NUM, BATCH, 0, step, range(BATCH)) for step in range(STEPS)]
    flat = [i for index in whole for i in index]
    assert sorted(flat[:NUM]) == list(range(NUM))  # an epoch is every clip once


def test_no_process_decodes_what_another_trains_on(two: Path) -> None:
    """The second decodes its share and what it began for the step after the last; PCA and figures are the first's."""
    wanted = Counter(i for step in range(STEPS + 1) for i in batch_index(NUM, BATCH, 0, step, range(2, 4)))
    found = Counter(seen(two, 1)["decoded"])
    assert 2 * STEPS <= found.total() <= 2 * (STEPS + 1)
    assert not found - wanted
    assert seen(two, 1)["asked"] == batches(seen(two, 1)["asked"], 2)


def test_two_processes_train_the_vae_that_one_trains(alone: Path, two: Path) -> None:
    curves = [[json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()] for out in (alone, two)]
    assert [len(lines) for lines in curves] == [STEPS, STEPS]
    for one, other in zip(*curves, strict=True):
        assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-3, abs=1e-5)
    losses = [line["loss"] for line in curves[0]]
    assert len({round(loss, 5) for loss in losses}) == STEPS
    one, other = (Bundle.open(out / "bundle") for out in (alone, two))
    state, again = (bundle.codec().state_dict() for bundle in (one, other))
    assert state.keys() == again.keys()
    for name, value in state.items():
        torch.testing.assert_close(again[name], value, rtol=2e-3, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}")
