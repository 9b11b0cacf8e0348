"""The whole chain through the command line: run, reuse, change, force, and every other command on its result."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command import SMOKE, finish, quiet, real, start

from dit_compress.core.errors import UserError
from dit_compress.core.files import publish, read_json, sha256_file, write_json
from dit_compress.data.video import read_video
from dit_compress.model.bundle import Bundle
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load
from dit_compress.run import pipeline
from dit_compress.run.pipeline import Runner

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[str], str]

pytestmark = pytest.mark.slow(70)
STEPS = ["base", "vae", "round-trip", "teacher", "pruned", "affine", "student", "quality", "speed", "files"]
BUNDLES = ["base", "vae", "teacher", "pruned", "affine", "student"]
AFTER_VAE = STEPS[1:]


def tree(folder: Path) -> dict[str, str]:
    """Every file's checksum."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------ one run


def test_every_step_is_finished_and_nothing_is_half_written(smoke: Path) -> None:
    assert read_json(smoke / "run.json")["steps"] == STEPS
    for step in STEPS:
        record = read_json(smoke / "steps" / step / "step.json")
        assert record["name"] == step
        assert (record["bundle"] is not None) == (step in BUNDLES)
        assert (smoke / "steps" / step / "bundle").is_dir() == (step in BUNDLES)
    left = [str(path) for path in smoke.rglob("*") if ".partial" in path.name or path.name == "job.json"]
    assert left == []


def test_nothing_was_pickled(smoke: Path) -> None:
    kinds = {path.suffix for path in smoke.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".npy", ".mp4", ".yaml", ".html", ".lock", ""}


def test_the_pruned_model_has_the_shape_the_recipe_asks_for(smoke: Path) -> None:
    student = Bundle.open(smoke / "steps" / "student" / "bundle")
    structure = student.spec.build_denoiser().to("meta").structure()
    assert structure.main.length == 3
    assert {attention.heads for attention in structure.attentions} == {3}
    assert {feed_forward.width for feed_forward in structure.feed_forwards} == {96}
    flow = student.flow
    assert (flow.num_steps, flow.guidance) == (4, 1.0)


def test_the_lineage_names_every_step_oldest_first(smoke: Path) -> None:
    lineage = Bundle.open(smoke / "steps" / "student" / "bundle").lineage
    assert [record["step"] for record in lineage] == BUNDLES
    assert [record["kind"] for record in lineage] == ["base", "latent", "distill", "prune", "distill", "distill"]
    for record in lineage:
        assert record["seed"] == 0
        assert record["threads"] == 1
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in record["sources"].values())
    search = lineage[3]["parts"]["step"]["options"]["search"]
    assert (search["use"], search["temperature"]) == ("groupwise", [4.0, 0.1])
    assert lineage[4]["inputs"].keys() == {"input", "teacher"}
    assert not re.search(r"20\d\d-\d\d-\d\d|seconds", json.dumps(lineage)), "no times: they would change the checksum"


def test_an_unchanged_component_is_a_link_not_a_copy(smoke: Path) -> None:
    weights = [
        smoke / "steps" / step / "bundle" / "latent" / "diffusion_pytorch_model.safetensors" for step in BUNDLES[1:]
    ]
    assert len({path.stat().st_ino for path in weights}) == 1


def test_training_changed_the_weights_and_only_those(smoke: Path) -> None:
    before, after = (Bundle.open(smoke / "steps" / step / "bundle") for step in ("pruned", "affine"))
    assert before.digest("denoiser") != after.digest("denoiser")
    assert before.digest("latent") == after.digest("latent")
    assert before.digest("text") == after.digest("text")
    assert Bundle.open(smoke / "steps" / "vae" / "bundle").digest("text") != before.digest("text")


def test_summary_and_report_hold_the_figures(smoke: Path) -> None:
    summary = read_json(smoke / "summary.json")
    steps = {step["name"]: step for step in summary["steps"]}
    assert list(steps) == STEPS
    assert summary["pending"] == []
    assert steps["pruned"]["metrics"]["params_after"] == steps["student"]["model"]["params"]
    assert steps["round-trip"]["metrics"] == read_json(smoke / "steps" / "round-trip" / "step.json")["metrics"]
    assert steps["speed"]["metrics"]["times_faster"] > 1
    page = (smoke / "report.html").read_text()
    assert all(step in page for step in STEPS)
    assert "adversarial share" in page
    assert not re.search(r"<(?:script|link|img|video|source)[^>]+(?:src|href)=[\"']?https?:", page), (
        "not self-contained"
    )


def test_the_exported_model_is_an_ordinary_one(smoke: Path) -> None:
    config = read_json(smoke / "steps" / "files" / "files" / "transformer" / "config.json")
    assert (config["layers"], config["heads"], config["cross_heads"], config["ffn"]) == (3, 3, 3, 96)


def test_the_resolved_recipe_holds_every_default_and_loads_as_the_same(smoke: Path) -> None:
    resolved = load(smoke / "recipe.yaml", installed())
    assert resolved == load(SMOKE, installed())
    text = (smoke / "recipe.yaml").read_text()
    assert "discriminator_lr: 0.0001" in text
    assert "teacher: teacher" in text


# ------------------------------------------------------------------ again


@pytest.fixture
def copied(smoke: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be changed."""
    return Path(shutil.copytree(smoke, tmp_path / "run"))


def test_a_second_run_reuses_everything_and_changes_nothing(copied: Path, tmp_path: Path) -> None:
    """And fast: no worker is started."""
    before = tree(copied)
    done = finish(start("run", SMOKE, "--out", copied, "--threads", "1", log=tmp_path / "log"))
    assert done.status == 0, done.printed
    assert done.printed.count("reused") == len(STEPS)
    assert "running" not in done.printed
    assert tree(copied) == before


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that would run: in place of a worker, the earlier result is published under the new key."""
    names: list[str] = []

    def publish_again(command: list[str], threads: int) -> int:
        partial = Path(command[-1])
        job, place = read_json(partial / "job.json"), partial.with_name(partial.name.removesuffix(".partial"))
        names.append(job["name"])
        if place.is_dir():
            shutil.copytree(place, partial, dirs_exist_ok=True)
            write_json(partial / "step.json", {**read_json(partial / "step.json"), "key": job["key"]})
        else:
            write_json(
                partial / "step.json",
                {
                    "key": job["key"],
                    "name": job["name"],
                    "kind": "base",
                    "metrics": {},
                    "seconds": 0,
                    "sources": {},
                    "parts": {},
                    "inputs": {},
                    "files": {},
                },
            )
        (partial / "job.json").unlink()
        publish(partial, place)
        return 0

    monkeypatch.setattr(pipeline, "spawn", publish_again)
    monkeypatch.setattr(Runner, "_conclude", lambda self, **_: None)
    return names


def run_again(folder: Path, change: Change = lambda text: text, only: str | None = None, **more: Any) -> None:
    recipe = folder.with_name("changed.yaml")
    recipe.write_text(change(SMOKE.read_text()))
    Runner(load(recipe, installed()), folder, 1, **more).run(only)


@pytest.mark.parametrize(
    ("old", "new", "steps"),
    [
        ("use: affine, steps: 6, batch: 8", "use: affine, steps: 6, batch: 4", STEPS[5:]),
        ("num_captions: 8", "num_captions: 9", ["quality"]),
        ("steps: 6, widths", "steps: 7, widths", AFTER_VAE),
        ("block: {remove: 1}", "block: {remove: 2}", STEPS[4:]),
        ("head_width: 16", "head_width: 32", STEPS),
        ("num_clips: 48", "num_clips: 49", AFTER_VAE),
        ("name: smoke", "name: smoke\nseed: 1", STEPS),
        ("use: jsonl", "use: jsonl, every: 2", []),
        ("name: smoke", "name: other", []),
    ],
)
def test_one_changed_option_reruns_its_step_and_what_follows(
    copied: Path, ran: list[str], old: str, new: str, steps: list[str]
) -> None:
    assert SMOKE.read_text().count(old) == 1
    run_again(copied, lambda text: text.replace(old, new))
    assert ran == steps


def test_a_forced_step_runs_again_and_equal_results_stay(copied: Path, ran: list[str]) -> None:
    run_again(copied, force=frozenset({"teacher"}))
    assert ran == ["teacher"]


def test_a_forced_step_that_gives_another_bundle_is_followed(
    copied: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of code: the keys are the same, and what was made of the old bundle is stale."""
    again = pipeline.spawn

    def other_bundle(command: list[str], threads: int) -> int:
        status = again(command, threads)
        path = Path(command[-1]).with_name(Path(command[-1]).name.removesuffix(".partial")) / "step.json"
        record = read_json(path)
        given = {step: read_json(copied / "steps" / step / "step.json")["bundle"] for step in record["inputs"].values()}
        record["read"] = {slot: given[step] for slot, step in record["inputs"].items()}
        if record["name"] in BUNDLES:
            record["bundle"] = "another " + record["bundle"]
        write_json(path, record)
        return status

    monkeypatch.setattr(pipeline, "spawn", other_bundle)
    run_again(copied, force=frozenset({"affine"}))
    assert ran == ["affine", "student", "quality", "speed", "files"]
    run_again(copied)
    assert len(ran) == 5


def test_only_one_step_runs(copied: Path, ran: list[str]) -> None:
    for step in ("affine", "student", "quality"):
        shutil.rmtree(copied / "steps" / step)
    run_again(copied, only="affine")
    assert ran == ["affine"]


def test_only_a_step_whose_inputs_are_current_runs(copied: Path, ran: list[str]) -> None:
    shutil.rmtree(copied / "steps" / "affine")
    with pytest.raises(UserError, match="the input of 'student', step 'affine', is not finished .* --only affine"):
        run_again(copied, only="student", force=frozenset({"student"}))
    with pytest.raises(UserError, match="the input of 'student', step 'affine', is not finished .* --only affine"):
        run_again(copied, lambda text: text.replace("steps: 8, batch: 8", "steps: 9, batch: 8"), only="student")
    assert ran == []


def test_a_step_that_does_not_exist_is_refused_with_the_list(copied: Path, ran: list[str]) -> None:
    for more in ({"only": "taecher"}, {"force": frozenset({"taecher"})}):
        with pytest.raises(UserError, match=r"no step 'taecher'. The steps are \['base', 'vae', "):
            run_again(copied, **more)
    assert ran == []


def test_a_failed_step_is_never_cached(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "spawn", lambda command, threads: 1)
    shutil.rmtree(copied / "steps" / "quality")
    with pytest.raises(UserError, match="step 'quality' ended with status 1"):
        run_again(copied)
    assert not (copied / "steps" / "quality").exists()


def test_changed_source_is_told_and_not_rerun(copied: Path, ran: list[str]) -> None:
    path = copied / "steps" / "teacher" / "step.json"
    record = read_json(path)
    write_json(path, {**record, "sources": dict.fromkeys(record["sources"], "0" * 64)})
    said: list[str] = []
    run_again(copied, say=said.append)
    assert ran == []
    assert "[4/10] teacher: reused (code of distill:flow changed since; --force teacher reruns)" in said


def test_a_real_worker_gives_the_same_bytes(copied: Path, smoke: Path) -> None:
    """By the installed script, in processes of its own; forced, so that it is computed and not reused."""
    done = real("run", SMOKE, "--out", copied, "--threads", "1", "--only", "teacher", "--force", "teacher")
    assert done.status == 0, done.printed
    assert "teacher: running" in done.printed
    assert done.printed.count("reused") == len(STEPS) - 1
    again, first = (Bundle.open(run / "steps" / "teacher" / "bundle") for run in (copied, smoke))
    assert again.data == first.data


# ------------------------------------------------------------------ the other commands


def test_plan_reads_no_weights_and_tells_what_is_cached(smoke: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(smoke, tmp_path / "run", ignore=shutil.ignore_patterns("*.safetensors")))
    done = finish(start("plan", SMOKE, "--out", bare, log=tmp_path / "log"))
    assert done.status == 0, done.printed
    rows = {line.split()[0]: line for line in done.printed.splitlines()[2:]}
    assert list(rows) == STEPS
    assert "0.26M → 0.17M" in rows["pruned"]
    assert all(re.search(r"\byes\b", row) for row in rows.values())
    tokens = 2 * 2 * 2
    assert f" {tokens} " in rows["student"]


def test_plan_of_a_new_run_has_nothing_cached_and_writes_nothing(tmp_path: Path) -> None:
    done = finish(start("plan", SMOKE, "--out", tmp_path / "run", log=tmp_path / "log"))
    assert done.status == 0, done.printed
    assert len(re.findall(r"\bno\b", done.printed)) == len(STEPS)
    assert not (tmp_path / "run").exists()


def test_inspect_shows_every_axis_of_a_run(smoke: Path, tmp_path: Path) -> None:
    done = finish(start("inspect", smoke, log=tmp_path / "log"))
    assert done.status == 0, done.printed
    params = read_json(smoke / "steps" / "student" / "step.json")["model"]["params"]
    table = quiet(done.printed)
    assert table.startswith(f"VideoDiT: {params:,} parameters")
    *rows, last = table.splitlines()[2:]
    assert last.startswith("looking for NaN and infinity in")
    levels = [line.split()[1] for line in rows]
    assert {level: levels.count(level) for level in set(levels)} == {"block": 1, "head": 2, "ffn": 1, "–": 1}


def test_inspect_shows_a_class_of_diffusers_at_full_size(tmp_path: Path) -> None:
    """PixArt-Alpha, 0.6B parameters, on the meta device: no weight is made."""
    done = finish(start("inspect", "PixArtTransformer2DModel", log=tmp_path / "log"))
    assert done.status == 0, done.printed
    assert done.printed.startswith("reading PixArtTransformer2DModel\n"), "the first words"
    assert quiet(done.printed).startswith("PixArtTransformer2DModel: 605,301,152 parameters")
    assert re.search(r"transformer_blocks\s+block\s+28\b", done.printed)
    assert re.search(r"transformer_blocks\.0–27\.attn1\s+head\s+16\b", done.printed)
    assert re.search(r"transformer_blocks\.0–27\.ff\s+ffn\s+4608\b", done.printed)


def test_generate_writes_a_playable_video(smoke: Path, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    wanted = ("generate", "a red circle moving left", "--model", smoke, "--steps", "2")
    done = finish(start(*wanted, "--out", video, log=tmp_path / "log"))
    assert (done.status, done.printed.strip()) == (0, str(video))
    assert read_video(video, 9, (64, 64)).shape == (9, 64, 64, 3)
    longer = tmp_path / "longer.mp4"
    done = finish(start(*wanted, "--frames", "17", "--size", "32", "96", "--out", longer, log=tmp_path / "log"))
    assert done.status == 0, done.printed
    assert read_video(longer, 17, (32, 96)).shape == (17, 32, 96, 3)


def test_the_seed_decides_what_is_generated(smoke: Path, tmp_path: Path) -> None:
    videos = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        video = tmp_path / f"{name}.mp4"
        wanted = ("generate", "a red circle", "--model", smoke / "steps" / "teacher" / "bundle", "--steps", "2")
        assert finish(start(*wanted, "--seed", seed, "--out", video, log=tmp_path / "log")).status == 0
        videos.append(video.read_bytes())
    assert videos[0] == videos[1] != videos[2]


def test_generate_takes_a_sampler_of_somebody_else(smoke: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "plugins" / "sampler.md").read_text("utf-8")
    heun = tmp_path / "heun.py"
    heun.write_text(re.findall(r"```python\n(# heun.py.*?)```", page, re.DOTALL)[0], "utf-8")
    wanted = ("generate", "a red circle", "--model", smoke / "steps" / "teacher" / "bundle", "--plugin", heun)
    videos = []
    for sampler, steps in (("euler", "2"), ("heun", "2"), ("euler", "1"), ("heun", "1")):
        video = tmp_path / f"{sampler}{steps}.mp4"
        done = finish(start(*wanted, "--steps", steps, "--sampler", sampler, "--out", video, log=tmp_path / "log"))
        assert done.status == 0, done.printed
        videos.append(read_video(video, 9, (64, 64)))
    assert len({video.tobytes() for video in videos}) == len(videos)
    done = finish(start(*wanted, "--sampler", "hein", log=tmp_path / "log"))
    assert done.status == 2
    assert "unknown sampler plugin 'hein'" in done.printed


def test_generate_refuses_a_size_that_does_not_fit(smoke: Path, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    wanted = ("generate", "a red circle", "--model", smoke, "--out", video)
    done = finish(start(*wanted, "--frames", "12", log=tmp_path / "log"))
    assert (done.status, done.printed) == (2, "12 frames are not 1 + 8·k. Take 9 or 17 frames\n")
    done = finish(start(*wanted, "--size", "50", "64", log=tmp_path / "log"))
    assert (done.status, done.printed) == (2, "50×64 pixels can't be divided by the ratio 32×32. Take 32×64\n")
    assert not video.exists()


def test_report_is_written_anew(copied: Path, tmp_path: Path) -> None:
    before = (copied / "summary.json").read_text()
    (copied / "report.html").unlink()
    (copied / "summary.json").unlink()
    done = finish(start("report", copied, log=tmp_path / "log"))
    assert (done.status, done.printed.strip()) == (0, str(copied / "report.html"))
    assert (copied / "summary.json").read_text() == before
    assert (copied / "report.html").is_file()


def test_report_of_no_run_is_refused(tmp_path: Path) -> None:
    done = finish(start("report", tmp_path, log=tmp_path / "log"))
    assert (done.status, done.printed) == (2, f"{tmp_path}: not a run folder (run.json is missing)\n")


def without_torch(*arguments: str | Path) -> str:
    """What the command prints, in a process where importing torch is an error."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['dit-compress', *sys.argv[1:]]; "
        "from dit_compress.cli.app import main; main()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_help_check_plugins_and_schema_import_no_torch() -> None:
    help_text = without_torch("--help")
    for command in ("run", "plan", "check", "inspect", "generate", "report", "plugins", "schema"):
        assert command in help_text
    assert without_torch("check", SMOKE) == f"{SMOKE}: 9 steps, no errors\n"
    listed = without_torch("plugins")
    assert re.search(r"search\s+groupwise\s+learned binary masks", listed)
    assert "broken" not in listed
    schema = json.loads(without_torch("schema"))
    assert {"name", "model", "data", "steps"} <= schema["properties"].keys()
    assert "sampling_steps" in json.dumps(schema)
