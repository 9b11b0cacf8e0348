"""What goes wrong around a training, through the command line: one message, exit status, what is left, how it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Die, Done, finish, start
from safetensors.torch import load_file, save_file

from dit_compress.core.files import read_json, sha256_file, write_json
from dit_compress.data.clips import write_captions
from dit_compress.data.video import write_video
from dit_compress.model.bundle import Bundle
from dit_compress.train.checkpoint import write_state

pytestmark = pytest.mark.slow(20)

TRACKER = "dit_compress_plugins.tracker_jsonl.tracker:JsonlTracker.log"
STEPS = 7
HEAD = """\
name: small
model: {use: video_dit, preset: tiny, layers: 2, heads: 2, head_width: 12, ffn: 32, channels: 8, text_width: 16}
text: {use: words, width: 16, layers: 1, heads: 2}
"""
VIDEOS = "data: {{use: videos, path: {0}/clips, frames: 9, size: [32, 32], test_fraction: 0.25, workers: 1}}\n"
VAE = "  - latent: {use: video_vae, ratio: 8x16x16, channels: 8, steps: 1, batch: 2, widths: [8, 8, 8], blocks: 1}\n"
TEACHER = "  - distill: {use: flow, steps: 7, batch: 2, lr: 0.001, checkpoint_every: 2}\n    name: teacher\n"


def write_clips(folder: Path, count: int = 12) -> None:
    folder.mkdir()
    for number in range(count):
        frames = np.stack([np.full((32, 32, 3), 20 * number + frame, np.uint8) for frame in range(9)])
        write_video(folder / f"{number}.mp4", frames, 8)
    write_captions(folder, [{"file": f"{number}.mp4", "caption": f"a red circle {number}"} for number in range(count)])


def run(place: Path, *more: str | Path, die: Die | None = None, recipe: str = "recipe.yaml") -> Done:
    given = ("run", place / recipe, "--out", place / "run", "--threads", "1", *more)
    return finish(start(*given, log=place / "log", die=die))


class Half:
    """A recipe on real clips: ``whole`` ran through, ``place`` was killed in its teacher after step 5 of 7."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place, self.whole = folder, folder / "half", folder / "whole"
        write_clips(folder / "clips")
        self.text = HEAD + VIDEOS.format(folder) + "steps:\n" + VAE + TEACHER
        for place in (self.place, self.whole):
            place.mkdir()
            (place / "recipe.yaml").write_text(self.text)
        done = run(self.whole)
        assert done.status == 0, done.printed
        assert run(self.place, die=Die("teacher", TRACKER, nth=5)).status == -signal.SIGKILL
        assert [path.name for path in checkpoints(self.place)] == ["step-00000002", "step-00000004"]

    def copy(self, target: Path) -> Path:
        """The killed run, to be continued elsewhere."""
        return Path(shutil.copytree(self.place, target / "again"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Half:
    return Half(tmp_path_factory.mktemp("half"))


def checkpoints(place: Path) -> list[Path]:
    return sorted((place / "run" / "steps" / "teacher.partial" / "checkpoints").glob("step-*"))


def damage(checkpoint: Path) -> Path:
    file = next(checkpoint.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return file


def refused(done: Done, place: Path) -> str:
    """The one line of a refusal; the half-done step is as it was."""
    assert done.status == 2, done.printed
    assert "Traceback" not in done.printed
    assert not (place / "run" / "steps" / "teacher").exists()
    assert [path.name for path in checkpoints(place)] == ["step-00000002", "step-00000004"]
    return done.printed.splitlines()[-1]


# ------------------------------------------------------------------ checkpoints


def test_a_corrupted_checkpoint_falls_back_to_the_one_before_and_says_so(half: Half, tmp_path: Path) -> None:
    place = half.copy(tmp_path)
    file = damage(checkpoints(place)[-1])
    done = run(place)
    assert done.status == 0, done.printed
    said = f"teacher: checkpoint step-00000004 is damaged (the checksum of {file.name} differs); looking for the one before it"
    assert said in done.printed.splitlines()
    lines = (place / "run" / "steps" / "teacher" / "curves.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(STEPS))
    assert said.removeprefix("teacher: ") in read_json(place / "run" / "steps" / "teacher" / "step.json")["notes"]
    again, whole = (Bundle.open(each / "run" / "steps" / "teacher" / "bundle") for each in (place, half.whole))
    assert again.digest() == whole.digest()


def test_without_a_whole_checkpoint_the_step_does_not_start_afresh(half: Half, tmp_path: Path) -> None:
    place = half.copy(tmp_path)
    for checkpoint in checkpoints(place):
        damage(checkpoint)
    folder = checkpoints(place)[0].parent
    assert refused(run(place), place) == (
        f"{folder}: no checkpoint here is whole. Delete {folder} to start the step afresh"
    )


def test_a_half_done_step_of_another_recipe_is_refused_until_force(half: Half, tmp_path: Path) -> None:
    place = half.copy(tmp_path)
    (place / "recipe.yaml").write_text(half.text.replace("lr: 0.001", "lr: 0.002"))
    assert refused(run(place), place) == (
        f"{place}/run/steps/teacher.partial: step 'teacher' is half done, with other options (lr was 0.001, is 0.002). "
        "Put it back as it was to go on, or give --force teacher to begin the step anew"
    )
    assert run(place, "--force", "teacher", die=Die("teacher", TRACKER, nth=1)).status == -signal.SIGKILL
    assert checkpoints(place) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "0"}, "the checkpoint belongs to another recipe: other options, data or inputs"),
        ({"engine": 0}, "written by another version of dit-compress (format 3, engine 0; this is format 3, engine "),
    ],
)
def test_a_checkpoint_of_another_recipe_or_version(
    half: Half, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    place = half.copy(tmp_path)
    last = checkpoints(place)[-1]
    state = read_json(last / "state.json")
    del state["sha256"]
    write_state(last, state | change)
    line = refused(run(place), place)
    assert line.startswith(f"{last}: {said}")
    assert line.lower().endswith(f"delete {last.parent} to start the step afresh".lower())


# ------------------------------------------------------------------ data


def test_clips_that_change_between_runs(half: Half, tmp_path: Path) -> None:
    """A half-trained step is refused; nothing is made anew in silence."""
    place = half.copy(tmp_path)
    shutil.copytree(half.folder / "clips", place / "clips")
    (place / "recipe.yaml").write_text(half.text.replace(f"{half.folder}/clips", f"{place}/clips"))
    shutil.rmtree(place / "run")
    assert run(place, die=Die("teacher", TRACKER, nth=5)).status == -signal.SIGKILL
    write_video(place / "clips" / "3.mp4", np.zeros((12, 32, 32, 3), np.uint8), 8)
    done = run(place, "--only", "teacher")
    changed = f"1 samples changed, 0 came, 0 went (the first by name: {place}/clips/3.mp4)"
    assert f"the data has changed since the last run: {changed}; what depends on it is made anew" in done.printed
    assert done.status == 2
    done = run(place)
    assert "video_vae: running" in done.printed
    line = refused(done, place)
    assert "step 'teacher' is half done, on data that has changed since" in line
    assert line.endswith("or give --force teacher to begin the step anew")


def latents_of(half: Half, place: Path) -> Path:
    """The run's latents as a folder of their own, and a recipe that trains on them from the run's VAE."""
    cache = next((half.whole / "run" / "cache").glob("latents-train-*"))
    place.mkdir(exist_ok=True)
    folder = Path(shutil.copytree(cache, place / "latents"))
    data = f"data: {{use: latents, path: {folder}, frames: 9, size: [32, 32], test_fraction: 0}}\n"
    bundle = half.whole / "run" / "steps" / "video_vae" / "bundle"
    (place / "recipe.yaml").write_text(f"name: small\nmodel: {{from: {bundle}}}\n{data}steps:\n{TEACHER}")
    return folder


def test_latents_of_another_vae(half: Half, tmp_path: Path) -> None:
    folder = latents_of(half, tmp_path)
    index = read_json(folder / "index.json")
    write_json(folder / "index.json", index | {"made_by": {"vae": "0" * 64}})
    done = run(tmp_path)
    assert done.status == 2
    line = done.printed.splitlines()[-1]
    assert line.startswith(f"{folder}: encoded by another VAE than the bundle's (000000000000…, not ")
    assert line.endswith("Encode the samples again, or take the bundle they were encoded with")
    assert not (tmp_path / "run" / "steps" / "teacher").exists()


def test_nan_in_the_data(half: Half, tmp_path: Path) -> None:
    """Shards whose checksums are right and whose third sample is not finite."""
    folder = latents_of(half, tmp_path)
    index = read_json(folder / "index.json")
    (entry,) = index["shards"]
    tensors = load_file(folder / entry["file"])
    tensors["latent"][2, 0, 0, 0, 0] = torch.nan
    save_file(tensors, folder / entry["file"])
    entry |= {"sha256": sha256_file(folder / entry["file"]), "bytes": (folder / entry["file"]).stat().st_size}
    write_json(folder / "index.json", index)
    done = run(tmp_path)
    assert done.status == 2
    assert done.printed.splitlines()[-1] == (
        f"{folder}/{entry['file']}: the latent of sample 2 is not finite. Encode it again, or take the sample out"
    )
    assert not (tmp_path / "run" / "steps" / "teacher").exists()


# ------------------------------------------------------------------ memory

GREEDY = """\
import torch
from dit_compress.hooks import Plugin, hookimpl
from dit_compress_plugins.distill_flow import FlowOptions
from dit_compress_plugins.distill_flow.distiller import FlowDistiller


class Greedy(FlowDistiller):
    def objective(self, *given):
        made = super().objective(*given)
        inner = made.loss

        def loss(phase, batch):
            if batch.step == 5:
                torch.empty(2**58)
            return inner(phase, batch)

        made.loss = loss
        return made


@hookimpl
def distill():
    return Plugin(name="greedy", options=FlowOptions, load="greedy:Greedy", world="all", data=True)
"""


def test_memory_that_runs_out(half: Half, tmp_path: Path) -> None:
    """In the sixth step: what is held, what to lower, and the checkpoints that were written are there."""
    place = half.copy(tmp_path)
    shutil.rmtree(place / "run" / "steps" / "teacher.partial")
    (tmp_path / "greedy.py").write_text(GREEDY)
    (place / "recipe.yaml").write_text(half.text.replace("use: flow", "use: greedy"))
    line = refused(run(place, "--plugin", tmp_path / "greedy.py"), place)
    assert line.startswith(
        "out of memory on cpu: weights, gradients and optimiser of the roles take 0.00 GiB (student 0.00"
    )
    assert (
        "activations of 2 samples in 1 parts the rest. Raise 'accumulate' (now 1), or set 'checkpoint_activations: true'"
        in line
    )
    assert "or lower 'batch' (now 2). The same command then continues" in line


# ------------------------------------------------------------------ folders of weights


def test_a_changed_byte_in_a_folder_of_weights_runs_its_step_again(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    small = {"latent_channels": 8, "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
    layers = {"layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1)}
    diffusers.AutoencoderKLLTXVideo(**small, **layers).save_pretrained(tmp_path / "pipeline" / "vae")
    latent = f"  - latent: {{use: diffusers_vae, path: {tmp_path}/pipeline}}\n    name: vae\n"
    (tmp_path / "recipe.yaml").write_text(f"name: wrapped\nsteps:\n{latent}")
    first, second = run(tmp_path), run(tmp_path)
    assert first.status == second.status == 0, first.printed
    assert "vae: running" in first.printed
    assert "vae: reused" in second.printed
    before = Bundle.open(tmp_path / "run" / "steps" / "vae" / "bundle").digest()
    weights = tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1
    weights.write_bytes(content)
    third = run(tmp_path)
    assert third.status == 0, third.printed
    assert "vae: running" in third.printed
    assert Bundle.open(tmp_path / "run" / "steps" / "vae" / "bundle").digest() != before


def test_ctrl_c_is_no_fault_of_anybody(half: Half, tmp_path: Path) -> None:
    """The terminal interrupts command and worker at once: no trace, status 130, and what was trained stays."""
    place = half.copy(tmp_path)
    (place / "recipe.yaml").write_text(half.text.replace("steps: 7,", "steps: 5000,"))
    shutil.rmtree(place / "run" / "steps" / "teacher.partial")
    command = start("run", place / "recipe.yaml", "--out", place / "run", "--threads", "1", log=tmp_path / "log")
    rows = place / "run" / "steps" / "teacher.partial" / "curves.jsonl"
    end = time.monotonic() + 900
    while not rows.is_file() or rows.read_text().count("\n") < 20:
        assert command.process.is_alive(), command.log.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(command.process.pid, signal.SIGINT)
    done = finish(command)
    assert done.status == 130
    assert "Traceback" not in done.printed
    assert "KeyboardInterrupt" not in done.printed
    assert checkpoints(place)
