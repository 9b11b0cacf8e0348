"""Clips of several sizes: each batch of one, drawn alike by whoever draws, encoded once, trained on to equal bits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from processes import together
from toy import context_in, tiny_bundle, words

from dit_compress.cli.encode import encode_data
from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.data.buckets import Joined, bucket_at, buckets_of
from dit_compress.data.clips import Clip, write_captions
from dit_compress.data.samples import Samples, to_video
from dit_compress.data.source import data_folder
from dit_compress.data.video import write_video
from dit_compress.model.bundle import Bundle
from dit_compress.model.text import Captions
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load, make_part
from dit_compress.run.plan import plan
from dit_compress.step.workplace import Stopped
from dit_compress.step.world import World
from dit_compress.train.codec.step import round_trip_db
from dit_compress.train.loop import draw_batch, fit, on_images
from dit_compress_plugins.latent_video_vae import VideoVAEOptions
from dit_compress_plugins.latent_video_vae.step import VideoVAEStep

if TYPE_CHECKING:
    from dit_compress.recipe.model import Recipe
    from dit_compress.step.context import Context

WIDE, TALL, IMAGE = (5, 16, 32), (9, 32, 16), (1, 16, 16)
COUNTS = {WIDE: 9, TALL: 5, IMAGE: 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine wide clips, five tall and longer ones, four images: moving gratings."""
    from matplotlib.image import imsave

    folder, records = tmp_path_factory.mktemp("clips"), []
    for (frames, height, width), count in COUNTS.items():
        y, x = np.mgrid[:height, :width]
        for number in range(count):
            waves = [np.sin((x * (number % 3) + y * (number % 4) + 2 * frame) / 5) for frame in range(frames)]
            grey = (127 + 100 * np.stack(waves)).astype(np.uint8)
            video = np.stack([grey, grey // 2, 255 - grey], axis=-1)
            name = f"{height}-{number}.{'mp4' if frames > 1 else 'png'}"
            if frames > 1:
                write_video(folder / name, video, 8)
            else:
                imsave(folder / name, video[0])
            records.append({"file": name, "caption": f"clip {name}"})
    for name in folder.glob("*.png"):  # matplotlib's have an alpha channel
        from PIL import Image

        Image.open(name).convert("RGB").save(name)
    write_captions(folder, records[::2] + records[1::2])
    return folder


def data(folder: Path, **more: Any) -> dict[str, Any]:
    sizes = [list(shape) for shape in COUNTS]
    return {"use": "videos", "path": str(folder), "sizes": sizes, "test_fraction": 0.0, **more}


def load_text(path: Path, text: str) -> Recipe:
    path.write_text(text, "utf-8")
    return load(path, installed())


def context_over(folder: Path, out: Path, **more: Any) -> Context:
    context = context_in(out)
    part = context.parts["data"] = make_part("data", data(folder, **more), installed())
    part.build().prepare(data_folder(context.cache, part))
    context.video = WIDE
    inner = context.clips
    context.clips = lambda _: inner("train")  # type: ignore[method-assign]  # the test split, too
    return context


# ------------------------------------------------------------------ drawing


def test_every_bucket_goes_through_its_own_epochs_in_its_share_of_the_steps() -> None:
    counts, size = [12, 24, 3], 4
    turns: dict[int, list[int]] = {}
    for step in range(20):  # two rounds of 3 + 6 + 1
        bucket, turn = bucket_at(step, counts, size, seed=7)
        turns.setdefault(bucket, []).append(turn)
    assert {bucket: len(found) for bucket, found in turns.items()} == {0: 6, 1: 12, 2: 2}
    assert all(found == list(range(len(found))) for found in turns.values())
    rounds = [[bucket_at(step, counts, size, 7)[0] for step in range(first, first + 10)] for first in (0, 10)]
    assert rounds[0] != rounds[1]
    assert [bucket_at(step, [5], 4, 7) for step in (0, 3)] == [(0, 0), (0, 3)]


def samples_of(counts: dict[tuple[int, int, int], int]) -> Samples:
    """Samples whose numbers are their index; bucket by bucket in turn."""
    shapes = sorted(shape for shape, count in counts.items() for _ in range(count))
    clips = [Clip(Path(f"{i}.mp4"), f"{i}", None, shape[0], shape[1:]) for i, shape in enumerate(shapes)]
    buckets = buckets_of(clips)
    rows = [
        (index, np.stack([np.full((1, *shape), float(i), np.float32) for i in index]))
        for shape, index in buckets.items()
    ]
    return Samples(Joined(rows), [clip.caption for clip in clips], {}, pixels=False, buckets=buckets)


def test_a_batch_is_of_one_size_and_an_epoch_is_every_clip_once() -> None:
    samples = samples_of({(1, 2, 2): 4, (2, 2, 2): 8, (3, 4, 2): 4})
    batches = [draw_batch(samples, 4, 0, step) for step in range(8)]
    assert [len({tuple(batch.x0.shape[2:])}) for batch in batches] == [1] * 8
    assert sorted(Counter(i for batch in batches for i in batch.sample).values()) == [2] * 16
    for batch in batches:
        assert batch.x0.flatten(1)[:, 0].tolist() == [float(i) for i in batch.sample]
        parts = [draw_batch(samples, 4, 0, batch.step, part) for part in ([0, 1], [2, 3])]
        assert [*parts[0].sample, *parts[1].sample] == batch.sample  # two processes together, or two parts
    with pytest.raises(UserError, match="clips of several sizes are asked for at once"):
        samples.x0([0, 8])
    assert [len(index) for index in samples.batches(3, 10)] == [3, 1, 3, 3]


def test_images_come_in_the_share_that_the_step_says() -> None:
    samples = samples_of({(1, 2, 2): 4, (2, 2, 2): 8, (3, 4, 2): 4})
    for step in range(30):
        batch = draw_batch(samples, 4, 3, step, images=0.4)
        assert (batch.x0.shape[2] == 1) == on_images(3, step, 0.4)
    assert 5 < sum(on_images(3, step, 0.4) for step in range(30)) < 19
    without = samples_of({(2, 2, 2): 8, (3, 4, 2): 4})  # no images: first frames are taken for them
    assert {draw_batch(without, 4, 3, step, images=0.4).x0.shape[2] for step in range(9)} == {1, 2, 3}


# ------------------------------------------------------------------ a folder, encoded and trained on


def vae(context: Context, **more: Any) -> Bundle:
    options = VideoVAEOptions(
        ratio="4x16x16", channels=8, widths=(8, 8, 8), blocks=1, steps=6, batch=2, bf16=False, pca_clips=18, warmup=0,
        checkpoint_every=2, **more,
    )  # fmt: skip
    result = VideoVAEStep(options).run(context)
    assert result.bundle is not None
    return result.bundle


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return vae(context_over(folder, tmp_path_factory.mktemp("vae")))


def test_pixels_and_latents_are_those_of_each_clip(folder: Path, tmp_path: Path, trained: Bundle) -> None:
    context = context_over(folder, tmp_path, workers=0)
    clips = context.clips("train")
    assert Counter(clip.shape for clip in clips) == COUNTS
    context.bundles["input"] = trained
    pixels, latents = context.pixels("train"), context.latents("train", Captions(words().encoder))
    codec: Any = trained.codec().eval()
    for index in pixels.batches(4):
        assert pixels.x0(index).shape[2:] == clips[index[0]].shape
        with torch.no_grad():
            torch.testing.assert_close(latents.x0(index), codec.encode(pixels.x0(index)), rtol=1e-4, atol=1e-4)
    assert len(list(tmp_path.glob("pixels-train-*.npy"))) == 3
    assert len(list(tmp_path.glob("latents-train-*"))) == 3
    assert latents.captions([0, 1]) == [clips[0].caption, clips[1].caption]


def test_encoded_elsewhere_each_size_has_its_folder(folder: Path, tmp_path: Path, trained: Bundle) -> None:
    text = f"name: r\ndata: {{use: videos, path: {folder}, sizes: {[list(shape) for shape in COUNTS]}}}\nsteps:\n"
    recipe = load_text(tmp_path / "r.yaml", f"{text}  - latent: {{use: given, channels: 8}}\n")
    assert encode_data(recipe, trained.path, tmp_path / "out") == f"18 samples in {tmp_path / 'out'}"
    counts = {path.parent.name: read_json(path)["count"] for path in (tmp_path / "out").glob("*x*/index.json")}
    assert counts == {"5x16x32": 9, "9x32x16": 5, "1x16x16": 4}
    context = context_in(tmp_path / "run")
    given = {"use": "latents", "path": str(tmp_path / "out"), "sizes": [list(shape) for shape in COUNTS]}
    context.parts["data"] = make_part("data", {**given, "test_fraction": 0.0}, installed())
    context.bundles["input"] = trained
    context.video = WIDE
    latents = context.latents("train", Captions(words().encoder))
    assert sorted(tuple(latents.x0(index).shape) for index in latents.batches(99)) == [
        (4, 8, 1, 1, 1), (5, 8, 3, 2, 1), (9, 8, 2, 1, 2),
    ]  # fmt: skip


def test_a_resumed_training_gives_equal_bits(folder: Path, tmp_path: Path, trained: Bundle) -> None:
    context = context_over(folder, tmp_path)
    context.stopping.asked = True  # stops, saved, after the first step
    with pytest.raises(Stopped):
        vae(context)
    again = context_over(folder, tmp_path)
    state, resumed = (bundle.codec().state_dict() for bundle in (trained, vae(again)))
    assert state.keys() == resumed.keys()
    assert all(torch.equal(state[name], resumed[name]) for name in state)


def on_two(world: World, out: Path, folder: Path) -> None:
    context = context_over(folder, out / f"of-{world.rank}") if world.rank else context_over(folder, out)
    context.folder = context.cache = out
    context.world = world
    context.video = WIDE
    vae(context)


def test_two_processes_train_what_one_trains(folder: Path, tmp_path: Path, trained: Bundle) -> None:
    part = make_part("data", data(folder), installed())
    part.build().prepare(data_folder(tmp_path, part))
    together(on_two, tmp_path, 2, folder)
    one, two = trained.codec().state_dict(), Bundle.open(tmp_path / "bundle").codec().state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", ["flow", "affine", "scaled"])
def test_distillers_train_on_several_sizes(name: str, tmp_path: Path) -> None:
    """Latents of three shapes; a validation looks at all of them, a batch at one."""
    context, text = context_in(tmp_path), words()
    context.bundles |= {"input": tiny_bundle(tmp_path / "input"), "teacher": tiny_bundle(tmp_path / "teacher", seed=1)}
    shapes = {(1, 4, 4): 4, (2, 4, 4): 4, (3, 4, 2): 4}
    drawn = samples_of(shapes)
    rows = [
        (index, torch.randn(len(index), 8, *shape, generator=torch.Generator().manual_seed(0)))
        for shape, index in zip(sorted(shapes), drawn.buckets(), strict=True)
    ]
    captions = drawn.captions(range(12))
    real = Samples(
        Joined(rows), captions, text.encoder.tokenize(captions), pixels=False,
        buckets=dict(zip(sorted(shapes), drawn.buckets(), strict=True)),
    )  # fmt: skip
    step = make_part(
        "distill",
        {"use": name, "steps": 4, "batch": 2, "warmup": 0, "validation": {"every": 2, "samples": 9}},
        installed(),
    ).build()
    assert step.options.any_size
    student, teacher = (context.bundles[name].denoiser() for name in ("input", "teacher"))
    objective = step.objective(context, student, teacher, text)
    before = {key: value.clone() for key, value in student.module.state_dict().items()}
    from dit_compress.train.guards import Alarms
    from dit_compress.train.validation import Monitors, Validator

    validator = Validator(real, 9, 2, 0, context.world, bf16=False)
    assert [len(index) for index, _ in validator._parts()] == [2, 2, 2, 2, 1]
    fit(objective, real, step.options, context, Monitors(step.options, Alarms(context), validator, None))
    after = student.module.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[key], value) for key, value in before.items())


def test_a_small_decoder_trains_on_several_sizes(folder: Path, tmp_path: Path, trained: Bundle) -> None:
    context = context_over(folder, tmp_path)
    context.bundles["input"] = trained
    given = {"use": "decoder", "widths": [8, 8], "frame_width": 4, "steps": 3, "batch": 2, "warmup": 0}
    step = make_part("latent", given, installed()).build()
    assert step.options.any_size
    result = step.run(context)
    codec = result.bundle.codec()
    for shape in COUNTS:
        assert codec.decode(codec.encode(torch.zeros(1, 3, *shape))).shape == (1, 3, *shape)
    assert result.metrics["psnr_db"] == pytest.approx(round_trip_db(codec, context.pixels("test")), abs=1e-3)


def test_a_vae_of_diffusers_is_finetuned_and_its_spectrum_measured_on_several_sizes(
    folder: Path, tmp_path: Path
) -> None:
    import diffusers

    torch.manual_seed(0)
    diffusers.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(tmp_path / "vae")
    context = context_over(folder, tmp_path)
    plain, tuned = (
        make_part("latent", {"use": "diffusers_vae", "path": str(tmp_path / "vae"), **given}, installed()).build()
        for given in ({}, {"finetune": {"steps": 3, "batch": 2, "lr": 1e-3, "warmup": 0}})
    )
    before, after = plain.run(replace(context, folder=tmp_path / "plain")).bundle, tuned.run(context)
    assert after.metrics["gained_db"] > 0
    assert after.metrics["psnr_db"] == pytest.approx(
        round_trip_db(after.bundle.codec(), context.pixels("test")), abs=1e-3
    )
    context.bundles |= {"input": after.bundle, "against": before}
    step = make_part("evaluate", {"use": "spectrum", "bands": 2, "batch": 4}, installed()).build()
    assert step.options.any_size
    found = step.run(context).metrics
    assert found["num_clips"] == sum(COUNTS.values())
    # Cells are 2x4, 4x2 and 2x2: above half of the largest radius are 5 of 8, 5 of 8 and 3 of 4.
    assert found["white_upper_share"] == pytest.approx((14 * 5 + 4 * 3) / (14 * 8 + 4 * 4))
    codec, video = before.codec().eval(), {shape: [] for shape in COUNTS}
    for clip in context.clips("test"):
        video[clip.shape].append(to_video(torch.from_numpy(clip.pixels()[None])))
    with torch.no_grad():
        square = [
            codec.encode(torch.cat(each)).square().mean() * each[0][0, 0, 0].numel() / 64 for each in video.values()
        ]
    cells = sum(COUNTS[shape] * shape[1] * shape[2] / 64 for shape in COUNTS)
    mean = sum(COUNTS[shape] * float(value) for shape, value in zip(COUNTS, square, strict=True)) / cells
    low, high = found["latent_power"]["against"]
    share = found["white_upper_share"]
    assert low * (1 - share) + high * share == pytest.approx(mean, rel=1e-4), "the transform keeps power"


# ------------------------------------------------------------------ recipes


RECIPE = """name: r
model: {{use: video_dit, preset: tiny, channels: 8, text_width: 64}}
text: {{use: words, width: 64, length: 4, layers: 1, heads: 4}}
data: {{use: videos, path: {path}, sizes: {sizes}}}
steps:
  - latent: {{use: video_vae, ratio: 4x16x16, channels: 8, widths: [8, 8, 8]}}
"""


def test_the_plan_holds_every_size_to_the_ratio_and_names_steps_that_take_one(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    good = RECIPE.format(path="a", sizes=[list(shape) for shape in COUNTS])
    recipe = load_text(path, good)
    assert (recipe.video, recipe.videos) == (WIDE, tuple(COUNTS))
    assert load_text(path, good.replace("sizes:", "frames: 5, size: [16, 32], sizes:")).data == recipe.data
    plan(load_text(path, good + "  - distill: {use: flow, steps: 9}\n"))
    with pytest.raises(
        UserError, match=r"step 'adversarial' reads clips of one size \(distill: adversarial\), the data has 3"
    ):
        plan(load_text(path, good + "  - distill: {use: adversarial, steps: 90}\n    teacher: base\n"))
    with pytest.raises(UserError, match=r"6 frames are not 1 \+ 4·k"):
        plan(load_text(path, RECIPE.format(path="a", sizes=[[5, 16, 32], [6, 16, 32]])))


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("frames: 5", "data 'videos' needs 'size'"),
        ("frames: 9, size: [16, 32], sizes: [[5, 16, 32]]", "are not those of the first of 'sizes', [5, 16, 32]"),
        ("sizes: [[5, 16, 32], [5, 16, 32]]", "has one of its sizes twice"),
        ("sizes: [[5, 16]]", "sizes"),
        ("sizes: 3", "sizes"),
    ],
)  # fmt: skip
def test_sizes_that_say_nothing_are_one_message(stated: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_text(
            tmp_path / "r.yaml",
            f"name: r\ndata: {{use: videos, path: a, {stated}}}\nsteps:\n  - latent: {{use: given, channels: 8}}\n",
        )
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_step_that_takes_one_size_is_told_so_by_its_samples(folder: Path, tmp_path: Path) -> None:
    pixels = context_over(folder, tmp_path).pixels("train")
    with pytest.raises(UserError, match="Give the data one 'size' in place of 'sizes'"):
        pixels.x0(range(18))
    clip = context_over(folder, tmp_path).clips("train")[0]
    assert replace(clip, size=(8, 8)).shape == (clip.frames, 8, 8)
