"""What can't work: one clear message with file and line or path, exit status 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from command import BEGINNING, SMOKE, Done, finish, start
from toy import context_in, part, tiny_bundle

from dit_compress.cli import app as cli
from dit_compress.core.errors import UserError
from dit_compress.core.files import disk_errors, full_disk, sha256_file, write_json
from dit_compress.data.clips import write_captions
from dit_compress.data.encode import pixel_cache
from dit_compress.data.video import write_video
from dit_compress.model.bundle import WEIGHTS, Bundle, write_bundle
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.testing.steps import tiny_bundle as whole_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow(40)
HEAD = """\
name: small
model: {use: video_dit, preset: tiny, layers: 2, heads: 2, head_width: 16, channels: 32, text_width: 16}
text: {use: words, width: 16, layers: 1, heads: 2}
data: {use: shapes, num_clips: 4, num_test: 2, frames: 9, size: [64, 64]}
steps:
  - latent: {use: video_vae, channels: 32, steps: 2}
    name: vae
"""


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Done:
    """The command in this process, for what is refused before a worker starts."""
    monkeypatch.setattr(sys, "argv", ["dit-compress", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    printed = capsys.readouterr()
    assert printed.out == ""
    return Done(left.value.code, printed.err)


def test_a_recipe_that_compiles_is_refused_where_nothing_can_be_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first step, which compiles nothing."""
    import torch

    from dit_compress.train import compiled

    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", no_compiler)
    torch._dynamo.reset()
    text = HEAD + "  - distill: {use: flow, steps: 2, batch: 2, warmup: 0, compile: true}\n"
    done = command(capsys, monkeypatch, "run", recipe(tmp_path, text), "--out", tmp_path / "run", "--threads", "1")
    assert done.status == 2
    assert "r.yaml:8: nothing can be compiled on this machine: No working C++ compiler found. Install a" in done.printed
    assert "Traceback" not in done.printed
    assert not (tmp_path / "run").exists()


PLANNED = {
    "frames not 1 + 8k": ("frames: 9", "frames: 10", "r.yaml:6: 10 frames are not 1 + 8·k. Take 9 or 17 frames"),
    "height not divisible": (
        "size: [64, 64]", "size: [72, 64]", "r.yaml:6: 72×64 pixels can't be divided by the ratio 32×32. Take 64×64",
    ),
    "width not divisible": (
        "size: [64, 64]", "size: [64, 80]", "r.yaml:6: 64×80 pixels can't be divided by the ratio 32×32. Take 64×64",
    ),
    "VAE and DiT differ": (
        "use: video_vae, channels: 32", "use: video_vae, channels: 48",
        "r.yaml:6: the denoiser takes 32 latent channels, the VAE gives 48. "
        "Set 'channels: 48' in 'model', or 'channels: 32' in the latent step",
    ),
    "budget out of reach": (
        "    name: vae\n", "    name: vae\n  - prune: {use: trilevel, budget: {params: 10}, search: magnitude}\n",
        "r.yaml:8: no plan comes within 1% of 10 parameters from below: what can't be removed weighs 24,488. The nearest",
    ),
    "more blocks removed than there are": (
        "    name: vae\n",
        "    name: vae\n  - prune: {use: trilevel, levels: {block: {remove: 2}}, search: magnitude}\n",
        "r.yaml:8: block:transformer_blocks has 2 units and would keep 0. Keep 1 to 2",
    ),
    "above the limit": (
        "    name: vae\n",
        "    name: vae\n  - prune: {use: trilevel, levels: {block: {remove: 1}}, limit: {params: 9}, search: magnitude}\n",
        "r.yaml:8: the pruned model has ",
    ),
    "captions of another width": (
        "text: {use: words, width: 16", "text: {use: words, width: 32",
        "r.yaml:3: the text encoder gives embeddings of width 32, the model takes 16. "
        "Give 'width' of 'text' and 'text_width' of 'model' the same value",
    ),
    "no clips": (
        "data: {use: shapes, num_clips: 4, num_test: 2, frames: 9, size: [64, 64]}\n", "",
        "r.yaml:5: step 'vae' needs clips. Name a 'data' source in the recipe",
    ),
    "a teacher of another VAE": (
        "    name: vae\n",
        "    name: vae\n  - distill: {use: flow, steps: 2}\n    name: server\n"
        "  - latent: {use: video_vae, channels: 32, steps: 3}\n    name: other\n    input: base\n"
        "  - distill: {use: affine, steps: 2}\n    teacher: server\n",
        "r.yaml:13: the teacher 'server' knows the latents of step 'vae', the input those of step 'other'. "
        "Name a teacher that was trained on the latents of the step's input",
    ),
    "knowledge of nobody": (
        "    name: vae\n", "    name: vae\n  - distill: {use: affine, steps: 2}\n",
        "r.yaml:8: step 'affine' has no teacher. Add 'teacher: <an earlier step>'",
    ),
    "a teacher of a VAE that does not look at it": (
        "    name: vae\n",
        "    name: vae\n  - latent: {use: video_vae, channels: 32, steps: 2}\n    name: other\n    teacher: vae\n",
        "r.yaml:8: the teacher 'vae' belongs to 'features' above 0 in 'losses'. Take 'teacher' out, or give that",
    ),
    "a teacher that is no ancestor": (
        "    name: vae\n",
        "    name: vae\n  - prune: {use: trilevel, levels: {block: {remove: 1}}, search: magnitude}\n    name: small\n"
        "  - distill: {use: affine, steps: 2}\n    input: vae\n    teacher: small\n",
        "r.yaml:10: the student does not descend from this teacher: another model, or pruned otherwise. "
        "Name the bundle the student was pruned from as 'teacher', or take 'use: scaled', which learns from any teacher of",
    ),
    "a guide's weights without a guide": (
        "    name: vae\n",
        "    name: vae\n  - distill: {use: dmd, output_weight: 2, feature_weight: 0.5}\n    teacher: vae\n",
        "r.yaml:8: 'output_weight' and 'feature_weight' belong to a guide, and the step has none. "
        "Add 'guide: <an earlier step>', or leave out what does nothing\n",
    ),
    "options of a training in a search": (
        "    name: vae\n",
        "    name: vae\n  - prune:\n      use: trilevel\n      levels: {block: {remove: 1}}\n      search:\n"
        "        use: groupwise\n        lora: null\n"
        "        objective: {use: flow, steps: 9, weight_decay: 0.1, lr: 1e-3, ema: 0.5, guidance: 2, shift: 2}\n",
        "r.yaml:14: 'steps', 'weight_decay', 'ema', 'guidance' of the 'objective' of a search would do nothing: it asks "
        "for losses alone. Leave out what does nothing; the search has such options of its own\n",
    ),
    "a search that measures trains nothing": (
        "    name: vae\n",
        "    name: vae\n  - prune:\n      use: trilevel\n      levels: {block: {remove: 1}}\n"
        "      search: {use: taylor, objective: {use: flow, lr: 1e-3, caption_dropout: 0.5}}\n",
        "r.yaml:11: 'lr' of the 'objective' of a search would do nothing: it asks for losses alone. Leave out what does "
        "nothing\n",
    ),
    "terms balanced by a training that there is not": (
        "    name: vae\n",
        "    name: vae\n  - prune:\n      use: trilevel\n      levels: {block: {remove: 1}}\n"
        "      search: {use: taylor, objective: {use: affine, kd_share: 0.2}}\n",
        "r.yaml:11: terms are balanced by 'kd_share' of the 'objective' of a search that trains nothing. Give the weight "
        "itself\n",
    ),
    "an objective that a search can't drive": (
        "    name: vae\n",
        "    name: vae\n  - prune:\n      use: trilevel\n      levels: {block: {remove: 1}}\n"
        "      search: {use: greedy, objective: scaled}\n",
        "r.yaml:11: 'scaled' can't be the 'objective' of a search: it learns from the bundle in the slot 'teacher', and a "
        "search has none. Name another 'distill' plugin\n",
    ),
    "options that do nothing beside the others": (
        "    name: vae\n",
        "    name: vae\n  - distill: {use: adversarial, r1_kind: approximate, renoise: grid, renoise_mean: 0, "
        "teacher_steps: 9}\n",
        "r.yaml:8: distill 'adversarial': 'renoise_mean' belongs to 'renoise: logit_normal'; 'r1_kind' belongs to 'r1' "
        "above 0; 'teacher_steps' belongs to 'teacher_samples' above 0: leave out what does nothing, or give that\n",
    ),
    "distribution of nobody": (
        "    name: vae\n", "    name: vae\n  - distill: {use: dmd}\n",
        "r.yaml:8: step 'dmd' has no teacher. Add 'teacher: <an earlier step>'",
    ),
    "a guide of other steps": (
        "    name: vae\n",
        "    name: vae\n  - distill: {use: flow, steps: 2, sampling_steps: 8, guidance: 1}\n    name: guide\n"
        "  - distill: {use: dmd}\n    input: vae\n    teacher: vae\n    guide: guide\n",
        "r.yaml:10: the guide is sampled at other sigmas than the student will be: 1 0.955 0.9 0.833 0.75 0.643 0.5 0.3 "
        "against 1 0.9 0.75 0.5. Set 'sampling_steps' to the guide's, or name a guide that was distilled to these steps",
    ),
    "a guide of another VAE": (
        "    name: vae\n",
        "    name: vae\n  - distill: {use: flow, steps: 2, sampling_steps: 4, guidance: 1}\n    name: guide\n"
        "  - latent: {use: video_vae, channels: 32, steps: 3}\n    name: other\n    input: base\n"
        "  - distill: {use: dmd}\n    teacher: other\n    guide: guide\n",
        "r.yaml:13: the guide 'guide' knows the latents of step 'vae', the input those of step 'other'. "
        "Name a guide that was trained on the latents of the step's input",
    ),
    "a critic that trains alone": (
        "    name: vae\n", "    name: vae\n  - distill: {use: dmd, steps: 20}\n",
        "r.yaml:8: distill 'dmd': the critic warms up for 20 of 20 steps, and the student is never trained",
    ),
    "gradients through steps that aren't there": (
        "    name: vae\n", "    name: vae\n  - distill: {use: reward, reward: reader, last_steps: 50}\n",
        "r.yaml:8: 'last_steps: 50' is more than there are sampling steps, 40. Set 'last_steps' to 40 or less",
    ),
    "rewards of what has no pixels": (
        "  - latent: {use: video_vae, channels: 32, steps: 2}\n    name: vae\n",
        "  - latent: {use: given, channels: 32}\n    name: vae\n  - distill: {use: reward, reward: shapes}\n",
        "r.yaml:8: 'latent: {use: given}' can't show pixels",
    ),
    "samples of nobody": (
        "    name: vae\n", "    name: vae\n  - distill: {use: adversarial, teacher_samples: 4}\n",
        "r.yaml:8: step 'adversarial' has no teacher. Add 'teacher: <an earlier step>'",
    ),
    "features of nobody": (
        "channels: 32, steps: 2", "channels: 32, steps: 2, losses: {features: 1.0}",
        "r.yaml:6: step 'vae' has no teacher. Add 'teacher: <an earlier step>'",
    ),
    "discriminator deeper than its generator": (
        "    name: vae\n", "    name: vae\n  - distill: {use: adversarial, frozen_blocks: 1}\n",
        "r.yaml:8: 1 frozen and 2 learnable blocks are more than the generator's 2. Lower 'frozen_blocks' or",
    ),
    "head deeper than its generator": (
        "    name: vae\n",
        "    name: vae\n  - distill: {use: adversarial, discriminator: {use: light_resblock3d, frozen_blocks: 3}}\n",
        "r.yaml:8: 3 frozen blocks are more than the generator's 2. Lower 'frozen_blocks'",
    ),
    "a generator that is never trained": (
        "    name: vae\n", "    name: vae\n  - distill: {use: adversarial, steps: 20}\n",
        "r.yaml:8: distill 'adversarial': the discriminator warms up for 20 of 20 steps, and the generator is never ",
    ),
    "a model that can't be made": (
        "{use: video_dit, preset: tiny, layers: 2, heads: 2, head_width: 16, channels: 32, text_width: 16}",
        "{use: diffusers, class_name: LTXVideoTransformer3DModel, config: {num_layer: 2}}",
        "r.yaml:2: LTXVideoTransformer3DModel takes no 'num_layer'. Remove it from 'config'",
    ),
    "levels of nothing": (
        "    name: vae\n", "    name: vae\n  - prune: {use: trilevel, levels: {}, search: magnitude}\n",
        "r.yaml:8: prune 'trilevel': 'levels' is empty: name at least one, such as block: {remove: 1}",
    ),
    "a model against itself": (
        "    name: vae\n", "    name: vae\n  - evaluate: latency\n    against: vae\n",
        "r.yaml:9: 'against' names 'vae', which the step reads itself. Name another step",
    ),
    "a video of no size": (
        "use: shapes, num_clips: 4, num_test: 2, frames: 9, size: [64, 64]", "use: videos, path: x, frames: 9, size: [0, 64]",
        "r.yaml:4: expected a number above 0 for 'size.0' of data 'videos', got 0. Raise it",
    ),
    "a best that is never looked for": (
        "    name: vae\n", "    name: vae\n  - distill: {use: flow, steps: 99, validation: {result: best}}\n",
        "r.yaml:8: 'validation' of distill 'flow': 'every: 100' never comes in 99 steps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_what_the_plan_refuses(
    verb: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, message = PLANNED[name]
    assert HEAD.count(old) == 1
    path = recipe(tmp_path, HEAD.replace(old, new))
    done = command(capsys, monkeypatch, verb, path, "--out", tmp_path / "run")
    assert done.status == 2
    assert done.printed.startswith(f"{tmp_path}/{message}")
    assert done.printed.count("\n") == 1
    assert sorted(item.name for item in tmp_path.iterdir()) == ["r.yaml"]


CHECKED = (
    "captions of another width", "no clips", "knowledge of nobody", "samples of nobody", "features of nobody",
    "a guide's weights without a guide", "options of a training in a search", "a search that measures trains nothing",
    "an objective that a search can't drive", "options that do nothing beside the others",
)  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_what_check_refuses_already(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, message = PLANNED[name]
    done = command(capsys, monkeypatch, "check", recipe(tmp_path, HEAD.replace(old, new)))
    assert done.status == 2
    assert done.printed.startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize("verb", [["check"], ["check", "--deep"], ["plan"]])
def test_a_training_without_captions(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = HEAD.replace("text: {use: words, width: 16, layers: 1, heads: 2}\n", "# none\n")
    path = recipe(tmp_path, text + "  - distill: {use: flow, steps: 2}\n")
    done = command(capsys, monkeypatch, *verb, path)
    assert done.status == 2
    assert done.printed == f"{path}:8: step 'flow' needs a text encoder. Name a 'text' in the recipe\n"


def from_bundle(folder: Path, teacher: Path, channels: int = 32) -> Path:
    """A recipe whose student, of another VAE, learns from a bundle."""
    head = HEAD.replace("channels: 32, text_width", f"channels: {channels}, text_width")
    head = head.replace("width: 16", "width: 24").replace(
        "video_vae, channels: 32", f"video_vae, channels: {channels}, ratio: 4x16x16"
    )
    return recipe(folder, f"{head}  - distill: {{use: affine, steps: 2}}\n    teacher: {teacher}\n")


@pytest.mark.parametrize("case", ["other channels", "another VAE", "other captions"])
def test_a_teacher_that_does_not_fit(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = whole_bundle(tmp_path / "teacher")
    codec = made.spec.need_latent()
    if case != "other captions":  # a VAE whose record says how it was trained
        entry = {"kind": "latent", "seed": 0, "parts": {"step": {"plugin": "video_vae", "options": {"steps": 9}}}}
        modules: dict[str, Any] = {"denoiser": made.denoiser().module, "text": made.text(), "latent": made.codec()}
        made = write_bundle(tmp_path / "teacher", made.spec, modules, base=None, lineage=[entry])
    channels = codec.config["channels"] if case != "other channels" else 32
    assert codec.config["channels"] != 32
    path, width = from_bundle(tmp_path, made.path, channels), made.spec.build_denoiser().module.config["text_width"]
    mend = "Name a teacher that was trained on the latents of the step's input"
    expected = {
        "other channels": f"the teacher '{made.path}' takes {codec.config['channels']} latent channels, "
        f"the step's input has 32. {mend}",
        "another VAE": f"the teacher '{made.path}' knows the latents of {made.path}, the input those of step 'vae'. {mend}",
        "other captions": f"the text encoder gives embeddings of width 24, the model takes {width}. "
        "Give 'width' of 'text' and 'text_width' of 'model' the same value",
    }[case]
    done = command(capsys, monkeypatch, "plan", path)
    assert done.printed.splitlines()[-1] == f"{path}:8: {expected}"  # a library may have spoken before
    assert done.status == 2


def test_a_teacher_whose_patch_does_not_divide_the_latents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"layers": 1, "heads": 2, "head_width": 16, "channels": 32, "text_width": 16, "patch": [1, 3, 3]}
    model = part("model", "video_dit", **options)
    module = model.create()
    spec = Spec(denoiser=ComponentSpec("model", "video_dit", model.config_of(module)))
    made = write_bundle(tmp_path / "teacher", spec, {"denoiser": module}, base=None, lineage=[])
    path = recipe(tmp_path, f"{HEAD}  - distill: {{use: scaled, steps: 2}}\n    teacher: {made.path}\n")
    done = command(capsys, monkeypatch, "plan", path)
    assert done.printed == (
        f"{path}:8: latent (2, 2, 2) can't be divided by the patch (1, 3, 3) of the teacher '{made.path}'. "
        "Name another teacher, or change the video size\n"
    )
    assert done.status == 2


def test_a_guide_of_another_vae_is_seen_when_the_step_starts(tmp_path: Path) -> None:
    student = whole_bundle(tmp_path / "student")
    codec: Any = student.codec()
    next(codec.parameters()).add_(0.1)
    modules: dict[str, Any] = {"denoiser": student.denoiser().module, "text": student.text(), "latent": codec}
    guide = write_bundle(tmp_path / "guide", student.spec, modules, base=None, lineage=[])
    context = context_in(tmp_path / "step", input=student, teacher=student, guide=guide)
    with pytest.raises(UserError, match="the guide knows the latents of another VAE than the student's. Name a guide"):
        part("distill", "dmd").run(context)


def test_a_teacher_of_another_vae_is_seen_when_the_step_starts(tmp_path: Path) -> None:
    """Equal channels, equal config, other weights: no plan knows it."""
    student = whole_bundle(tmp_path / "student")
    codec: Any = student.codec()
    next(codec.parameters()).add_(0.1)
    modules: dict[str, Any] = {"denoiser": student.denoiser().module, "text": student.text(), "latent": codec}
    teacher = write_bundle(tmp_path / "teacher", student.spec, modules, base=None, lineage=[])
    context = context_in(tmp_path / "step", input=student, teacher=teacher)
    step = part("distill", "affine", steps=1)
    with pytest.raises(UserError) as refused:
        step.run(context)
    assert str(refused.value) == (
        f"{teacher.path}: the teacher knows the latents of another VAE than the student's. "
        "Name a teacher that was trained on the latents of the step's input"
    )


def test_a_problem_is_told_once() -> None:
    """As where an exporter refuses one operator at each call of the module that it stands in."""
    first, second = (UserError("no such operator", where=where, mend="Rewrite it") for where in ("a.up", "a.down"))
    told = str(UserError.join([first, second, first])).splitlines()
    assert told == ["a.up: no such operator. Rewrite it", "a.down: no such operator. Rewrite it"]


def test_independent_problems_come_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two branches fail, each for its own reason; what follows from the first is not told as well."""
    branches = """\
  - prune: {use: trilevel, budget: {params: 10}, search: magnitude}
    name: small
    input: vae
  - distill: {use: affine, steps: 2}
    input: small
    teacher: vae
  - prune: {use: trilevel, levels: {head: {remove: 2}}, search: magnitude}
    name: other
    input: vae
"""
    done = command(capsys, monkeypatch, "plan", recipe(tmp_path, HEAD + branches))
    lines = done.printed.splitlines()
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines] == ["r.yaml:8", "r.yaml:14"]
    assert "would keep 0" in lines[1]


def test_a_refused_change_leaves_an_earlier_run_as_it_was(smoke: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(smoke, tmp_path / "run"))
    before = {path: sha256_file(path) for path in run.rglob("*") if path.is_file()}
    text = SMOKE.read_text().replace("block: {remove: 1}", "block: {remove: 4}")
    done = finish(start("run", recipe(tmp_path, text), "--out", run, "--threads", "1", log=tmp_path / "log"))
    assert done.status == 2
    assert "block:transformer_blocks has 4 units and would keep 0" in done.printed
    assert {path: sha256_file(path) for path in run.rglob("*") if path.is_file()} == before


# ------------------------------------------------------------------ data


def clips(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", np.zeros((9, 64, 64, 3), np.uint8), 8)
    write_captions(folder, [{"file": f"{name}.mp4", "caption": f"clip {name}"} for name in "ab"])
    return folder


def damage(folder: Path, how: str) -> None:
    if how == "nothing there":
        shutil.rmtree(folder)
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "a file":
        shutil.rmtree(folder)
        folder.write_text("")
    elif how == "caption without clip":
        (folder / "b.mp4").unlink()
    elif how == "broken clip":
        (folder / "b.mp4").write_bytes(b"no video")
    elif how == "no JSON":
        (folder / "captions.jsonl").write_text("{\n")


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("nothing there", "clips"),
        ("empty", "clips"),
        ("a file", "clips"),
        ("caption without clip", "b.mp4"),
        ("broken clip", "b.mp4"),
        ("no JSON", "captions.jsonl:1"),
    ],
)
def test_bad_data(
    how: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clips(tmp_path / "clips")
    damage(folder, how)
    text = HEAD.replace("use: shapes, num_clips: 4, num_test: 2", f"use: videos, path: {folder}")
    done = command(capsys, monkeypatch, "run", recipe(tmp_path, text), "--out", tmp_path / "run", "--threads", "1")
    assert done.status == 2
    assert named in done.printed
    assert str(folder) in done.printed
    assert "Traceback" not in done.printed
    left = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left <= {".lock"}


# ------------------------------------------------------------------ bundles


def changed_byte(bundle: Path) -> None:
    path = bundle / "denoiser" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def newer(bundle: Path) -> None:
    data = json.loads((bundle / "bundle.json").read_text())
    write_json(bundle / "bundle.json", {**data, "schema": 99})


def truncated(bundle: Path) -> None:
    path = bundle / "denoiser" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-9])


def outside(bundle: Path) -> None:
    data = json.loads((bundle / "bundle.json").read_text())
    data["components"]["denoiser"]["files"]["../../x"] = {"bytes": 0, "sha256": ""}
    write_json(bundle / "bundle.json", data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (changed_byte, f"denoiser/{WEIGHTS}: the checksum differs from the one written. Copy the bundle again"),
        (truncated, f"denoiser/{WEIGHTS}: truncated or changed: "),
        (newer, "bundle.json: written with schema 99; this toolkit ("),
        (outside, "bundle.json: component 'denoiser' names a file outside its folder"),
    ],
)
def test_a_run_from_a_damaged_bundle(harm: Any, message: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle").path
    harm(bundle)
    prune = "  - prune: {use: trilevel, levels: {block: {remove: 1}}, search: magnitude}\n    name: pruned\n"
    path = recipe(tmp_path, f"name: small\nmodel: {{from: {bundle}}}\nsteps:\n{prune}")
    done = finish(start("run", path, "--out", tmp_path / "run", "--threads", "1", log=tmp_path / "log"))
    assert done.status == 2
    assert f"{bundle}/{message}" in done.printed
    assert "Traceback" not in done.printed
    assert not (tmp_path / "run" / "steps" / "pruned").exists()
    assert not list((tmp_path / "run").rglob(WEIGHTS))


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "no.yaml"), "no.yaml"),
        (("inspect", "NoSuchTransformer3DModel"), "NoSuchTransformer3DModel"),
        (("inspect", "no/such/folder"), "no/such/folder: neither a bundle, a run, nor a diffusers folder"),
        (("generate", "x", "--model", "nowhere"), "nowhere: no bundle here (bundle.json is missing)"),
        (("report", "nowhere"), "nowhere: not a run folder (run.json is missing)"),
        (
            ("plugins", "--plugin", "none.py"),
            "none.py: not a Python file. Give --plugin the .py file of a local plugin",
        ),
        (("run", SMOKE, "--only", "studnet", "--out", "{run}"), "no step 'studnet'. The steps are ['base', 'vae', "),
        (("run", SMOKE, "--threads", "0"), "Invalid value for '--threads'"),
        (("fly",), "No such command 'fly'"),
    ],
)
def test_unknown_names(
    arguments: tuple[Any, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(argument).replace("{run}", str(tmp_path / "run")) for argument in arguments]
    done = command(capsys, monkeypatch, *given)
    assert done.status == 2
    assert message in done.printed
    assert "Traceback" not in done.printed
    assert not (tmp_path / "run" / "steps").exists()


def test_an_unknown_plugin_is_told_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, HEAD.replace("use: video_vae", "use: video_vea"))
    done = command(capsys, monkeypatch, "check", path)
    assert done.status == 2
    assert done.printed.startswith(f"{path}:6: unknown latent plugin 'video_vea'. Did you mean 'video_vae'? Known: ")


# ------------------------------------------------------------------ places to write

VIDEO = ("generate", "x", "--model", "nowhere", "--out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*VIDEO, "folder"), "folder: this is a folder. Name a file"),
        ((*VIDEO, "file/v.mp4"), "file/v.mp4: can't be written: Not a directory. Name another place"),
        (
            (*VIDEO, "/proc/1/none/v.mp4"),
            "/proc/1/none/v.mp4: can't be written: No such file or directory. Name another",
        ),
        ((*VIDEO, "x" * 300), f"{'x' * 300}: can't be written: File name too long. Name another place"),
        ((*VIDEO, "v.mp4", "--fps", "1e12"), "Invalid value for '--fps'"),
        ((*VIDEO, "v.mp4", "--fps", "nan"), "Invalid value for '--fps'"),
        ((*VIDEO, "v.mp4", "--size", "0", "0"), "Invalid value for '--size'"),
        ((*VIDEO, "v.mp4", "--size", "-8", "8"), "Invalid value for '--size'"),
        (("play", "nowhere", "x", "--out", "folder"), "folder: this is a folder. Name a file"),
        (
            ("encode", SMOKE, "--vae", "nowhere", "--out", "/dev/null/x"),
            "/dev/null/x: can't be written: Not a directory",
        ),
        (("run", SMOKE, "--out", "file"), "file: this is a file. Name a folder"),
        (("prune", "folder", "--remove", "block=1", "--out", "file/x"), "file/x: can't be written: Not a directory"),
    ],
)
def test_a_place_is_tried_before_anything_is_opened(
    arguments: tuple[Any, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    done = command(capsys, monkeypatch, *arguments)
    assert done.status == 2
    assert message in done.printed
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


# ------------------------------------------------------------------ a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 2.5 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = (
        mount
        and subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=2560k", "tmpfs", place], check=False, capture_output=True
        ).returncode
        == 0
    )
    if not made:
        pytest.skip("only root may mount a small disk; the other tests of a full disk run anywhere")
    yield place
    subprocess.run(["umount", place], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.parametrize(
    ("size", "named"), [("100k", "disk/run"), ("700k", "steps/base.partial/bundle"), ("2560k", "cache/pixels-train-")]
)
def test_a_full_disk_is_one_message_and_more_space_continues(disk: Path, size: str, named: str, tmp_path: Path) -> None:
    """While clips are written, while a bundle is, while the cache is; then the same command goes on."""
    resize(disk, size)
    arguments = ("run", recipe(tmp_path, BEGINNING), "--out", disk / "run", "--threads", "1", "--yes")
    done = finish(start(*arguments, log=tmp_path / "log"))
    last = done.printed.splitlines()[-1]
    assert done.status == 2
    assert "Traceback" not in done.printed
    assert str(disk) in last
    assert named in last
    assert "no space left on the disk. Free some space (" in last
    for bundle in disk.rglob("bundle"):
        assert Bundle.open(bundle).denoiser() is not None
    assert not list(disk.rglob("*.npy.partial"))
    if size == "700k":
        resize(disk, "20m")
        done = finish(start(*arguments, "--only", "base", log=tmp_path / "log"))
        assert done.status == 0, done.printed
        assert (disk / "run" / "steps" / "base" / "step.json").is_file()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_anywhere(number: int, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"^{tmp_path}/x/y: no space left on the disk. Free some space"),
        full_disk(tmp_path / "x" / "y"),
    ):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_in_the_words_of_a_library(tmp_path: Path) -> None:
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(UserError, match="no space left on the disk"), full_disk(tmp_path):
        raise RuntimeError(words)


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="weather"), disk_errors(tmp_path):
        raise OSError(errno.EIO, "weather")
    with pytest.raises(KeyError), disk_errors(tmp_path):
        raise KeyError


def test_a_disk_that_may_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}: can't write: Read-only file system$"), disk_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_cache_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    class Clip:
        frames, size = 1, (2, 2)

        def __init__(self, index: int) -> None:
            self.index = index

        def pixels(self) -> np.ndarray:
            if self.index == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return np.full((1, 2, 2, 3), self.index, np.uint8)

    whole: list[Any] = [Clip(0), Clip(1)]
    with pytest.raises(UserError, match="no space left on the disk"):
        pixel_cache(tmp_path / "pixels.npy", [*whole, Clip(2)], lambda: None)  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []
    found = pixel_cache(tmp_path / "pixels.npy", whole, lambda: None)
    assert found.shape == (2, 1, 2, 2, 3)
    assert found[:, 0, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("share", "step", "split"),
    [
        (0, "evaluate: {use: reconstruction}", "test"),
        (0.999, "distill: {use: flow, steps: 1, batch: 1}", "train"),
        (0, "distill: {use: flow, steps: 1, batch: 1, validation: {every: 1}}", "test"),
        (0, "distill: {use: flow, steps: 1, batch: 1}", "test"),  # the VAE's own measure
    ],
)
def test_a_split_without_clips_is_refused_before_the_first_step(
    share: float,
    step: str,
    split: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = clips(tmp_path / "clips")
    data = f"use: videos, path: {folder}, test_fraction: {share}"
    text = HEAD.replace("use: shapes, num_clips: 4, num_test: 2", data) + f"  - {step}\n"
    done = command(capsys, monkeypatch, "run", recipe(tmp_path, text), "--out", tmp_path / "run", "--threads", "1")
    assert done.status == 2, done.printed
    assert done.printed.splitlines()[-1] == (
        f"{folder}: the data has no '{split}' clips. "
        "Add clips with other captions, or change what share of them is held out"
    )
    assert not (tmp_path / "run" / "steps").exists()
