"""The report: every figure in summary.json and on the page, nothing fetched, nothing unescaped."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dit_compress.core.errors import UserError
from dit_compress.report import write_report
from dit_compress.report.data import Series, read_run
from dit_compress.report.figures import binned, curve, families
from dit_compress.report.media import wall
from dit_compress.report.paper import compared
from dit_compress.report.proofs import proofs, verdict
from dit_compress.report.result import arms, outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCKS, HEADS, WIDTH, PARTS = 4, 6, 128, 8
EVIL = 'a <script>alert("x")</script> circle'
ATTRIBUTES = ("count", "shape", "colour", "speed")


# ------------------------------------------------------------------ a small run, as the steps would leave it


def step(run: Path, name: str, kind: str, plugin: str, **record: Any) -> Path:
    """One finished step's folder."""
    folder = run / "steps" / name
    folder.mkdir(parents=True)
    options = {"use": plugin, **record.pop("options", {})}
    flow = record.pop("flow", None)
    if flow:
        lineage = [{"torch": "2.9.0+cpu", "device": "x86_64", "seed": 0, "threads": 2}]
        write(folder / "bundle" / "bundle.json", {"flow": flow, "lineage": lineage})
        record["bundle"] = f"{len(name):02d}" * 32
    parts = {"step": {"plugin": plugin, "kind": kind, "revision": 1, "options": options, "parts": {}}}
    base = {
        "key": "k" + name,
        "name": name,
        "kind": kind,
        "parts": parts,
        "inputs": {},
        "metrics": {},
        "files": {},
        "model": None,
        "bundle": None,
        "seconds": 12.5,
        "peak_memory_mib": 900,
        "threads": 2,
        "quality": {"shapes": "attribute_accuracy"}.get(plugin),
        "headline": {"shapes": "attribute_accuracy", "reconstruction": "psnr_db"}.get(plugin),
        "curves": "curves.jsonl",
    }
    write(folder / "step.json", {**base, **record})
    return folder


def write(path: Path, data: Any) -> None:
    """JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), "utf-8")


def log_curves(folder: Path, names: tuple[str, ...], num_steps: int = 300) -> None:
    """Falling losses with noise."""
    noise = np.random.default_rng(len(folder.name))
    rows = []
    for index in range(num_steps):
        fall = math.exp(-3 * index / num_steps)
        rows.append({"step": index} | {name: (0.2 + fall) * (1 + 0.15 * noise.normal()) for name in names})
    (folder / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 300, "lo', "utf-8")


def reconstructed(clip: str, psnr_db: float) -> dict[str, Any]:
    """A clip's row of a reconstruction; an image where the PSNR is not 27.5."""
    temporal = 2.25 if psnr_db == 27.5 else None
    return {"clip": clip, "video": [17, 96, 96], "psnr_db": psnr_db, "ssim": 0.91234, "worst_frame": 16,
            "worst_frame_psnr_db": 21.0, "temporal_difference_error": temporal}  # fmt: skip


def leave_videos(folder: Path, captions: tuple[str, ...], *columns: str, name: str = "videos") -> None:
    """Video files (of no real content) and their index."""
    index = []
    for row, caption in enumerate(captions):
        for place, column in enumerate(columns):
            file = f"{row}_{place}.mp4"
            (folder / name).mkdir(exist_ok=True)
            (folder / name / file).write_bytes(f"{folder.name} {file}".encode())
            index.append({"caption": caption, "column": column, "file": file})
    write(folder / name / "videos.json", index)
    record = json.loads((folder / "step.json").read_text("utf-8"))
    write(folder / "step.json", record | {"files": record["files"] | {name: f"{name}/videos.json"}})


def layout() -> list[dict[str, Any]]:
    """The axes of a small DiT."""
    axes = [{"name": "block:blocks", "level": "block", "units": BLOCKS, "stack": "blocks", "block": None}]
    for block in range(BLOCKS):
        for level, leaf, count in (("head", "attn1", HEADS), ("head", "attn2", HEADS), ("ffn", "ff", WIDTH)):
            axes.append(
                {
                    "name": f"{level}:blocks.{block}.{leaf}",
                    "level": level,
                    "units": count,
                    "stack": "blocks",
                    "block": block,
                }
            )
    return axes


def leave_pruning(folder: Path) -> None:
    """Block 2 goes; in the others two heads of each attention and half of the channels."""
    keep = {"block": [0, 1, 3], "head": [1, 2, 4, 5], "ffn": list(range(WIDTH // 2))}
    kept = {
        axis["name"]: {"of": axis["units"], "units": [[unit, unit + 1] for unit in keep[axis["level"]]]}
        for axis in layout()
    }
    write(folder / "kept.json", {"axes": layout(), "kept": kept})
    chosen = {}
    for axis in layout():
        parts = PARTS if axis["level"] == "ffn" else axis["units"]
        stays = set(range(PARTS // 2)) if axis["level"] == "ffn" else set(keep[axis["level"]])
        chosen[axis["name"]] = [float(part in stays) for part in range(parts)]
    snapshots = [
        {"step": at, "keep": {name: [0.5 + (row - 0.5) * at / 24 for row in rows] for name, rows in chosen.items()}}
        for at in range(0, 25, 3)
    ]
    write(folder / "search.json", {"probabilities": snapshots, "chosen": chosen})


def shapes(accuracy: float) -> dict[str, Any]:
    """Metrics of an evaluate step."""
    spread = {name: round(min(1.0, accuracy + 0.02 * (place - 1)), 4) for place, name in enumerate(ATTRIBUTES)}
    return {
        "attribute_accuracy": accuracy,
        "attribute_accuracy_error": 0.03,
        "captions": 128,
        "floors": {"chance": 0.4, "best_constant": 0.55},
        "exact_match": round(accuracy**4, 4),
        "flicker": 0.0123,
        "accuracy": spread,
    }


def proof(component: str, values: dict[str, float | None], arithmetic: str = "float16") -> list[dict[str, Any]]:
    """Rows of a manifest."""
    return [
        {
            "component": component,
            "kind": "mlpackage",
            "arithmetic": arithmetic,
            "input_set": name,
            "gate_db": 50.0,
            "verdict": "refused" if value is None else "passed" if value >= 50 else "below",
            "psnr_db": value,
            "max_abs": 0.01,
            "nonfinite": 0,
        }
        for name, value in values.items()
    ]


def leave_package(folder: Path, rows: dict[str, list[dict[str, Any]]], fidelity: str = "interpreter") -> None:
    """The manifest of an exported package."""
    artifacts = [
        {
            "component": name,
            "kind": "mlpackage",
            "precision": "float16",
            "path": f"{name}.mlpackage",
            "bytes": 1_250_000,
            "fidelity": fidelity,
            "proof": each,
        }
        for name, each in rows.items()
    ]
    passed = fidelity != "none" and all(row["verdict"] == "passed" for each in rows.values() for row in each)
    write(
        folder / "files" / "manifest.json",
        {"schema": 1, "passed": passed, "fidelity": fidelity, "artifacts": artifacts},
    )


def shape_of(params: int, flops: int) -> dict[str, Any]:
    """Figures of a bundle."""
    return {
        "params": params,
        "flops": flops,
        "blocks": 4,
        "heads": [6] * 8,
        "ffn": [128] * 4,
        "tokens": 27,
        "latent_params": 1_000_000,
    }


LONG, SHORT = {"num_steps": 40, "guidance": 4.0, "shift": 3.0}, {"num_steps": 4, "guidance": 1.0, "shift": 3.0}
CAPTIONS = ("a small red circle moving left slowly on a black background", EVIL)


def tried(family: str, counts: dict[str, list[int]], losses: list[float], *, chosen: bool = False) -> dict[str, Any]:
    """One plan of a prune step's field."""
    cost = 3_600_000.0
    return {"family": family, "counts": counts, "cost": cost, "expected": 0.1, "losses": losses, "chosen": chosen}


FIELD = {
    "unit": "parameters",
    "budget": 3_630_000.0,
    "steps": 1200,
    "none": ["head alone"],
    "plans": [
        tried("block + ffn", {"block": [3, 4], "ffn": [1024, 2048]}, [0.5312, 0.4876]),
        tried("block alone", {"block": [2, 4], "ffn": [2048, 2048]}, [0.6125]),
        tried("ffn alone", {"block": [4, 4], "ffn": [256, 2048]}, [0.5401, 0.4312], chosen=True),
    ],
}
"""Three plans, of which one left after the first round."""


def trained(run: Path) -> None:
    """The steps up to the student."""
    big, small = shape_of(8_400_000, 2_310_000_000), shape_of(3_600_000, 990_000_000)
    step(run, "base", "base", "video_dit", model=big, flow=LONG)
    vae = step(
        run, "vae", "latent", "video_vae", model=big, flow=LONG, inputs={"input": "base"}, options={"ratio": "8x32x32"}
    )
    log_curves(vae, ("loss", "psnr", "grad_vae"))
    codec = step(
        run, "codec", "evaluate", "reconstruction", inputs={"input": "vae"},
        metrics={"psnr_db": 31.24, "video": [17, 96, 96], "clips": [reconstructed("b <2>", 31.3), reconstructed("a", 27.5)]},
    )  # fmt: skip
    leave_videos(codec, CAPTIONS, "real", "VAE round trip")
    leave_videos(codec, ("a",), "original", "reconstruction", name="worst")
    step(run, "real", "evaluate", "shapes", inputs={"input": "vae"}, options={"source": "real"}, metrics=shapes(0.9987))
    log_curves(
        step(run, "teacher", "distill", "flow", model=big, flow=LONG, inputs={"input": "vae"}), ("loss", "grad_student")
    )
    leave_pruning(
        step(
            run,
            "prune",
            "prune",
            "trilevel",
            model=small,
            flow=LONG,
            inputs={"input": "teacher"},
            metrics={"params_before": 8_400_000, "params_after": 3_600_000, "curves": "default", "trials": FIELD},
        )
    )
    student = step(
        run,
        "student",
        "distill",
        "adversarial",
        model=small,
        flow=SHORT,
        seconds=95.0,
        inputs={"input": "prune", "teacher": "teacher"},
        options={"steps": 300, "frozen_blocks": 2},
    )
    record = json.loads((student / "step.json").read_text("utf-8"))
    write(
        student / "step.json",
        {**record, "notes": ["something said", "warning, videos stand <still> at step 200. Lower 'lr'"]},
    )
    log_curves(student, ("discriminator/loss", "generator/loss", "generator/grad_student"))


def judged(run: Path) -> None:
    """Evaluations and export."""
    for name, of, accuracy, options in (
        ("teacher_40", "teacher", 0.934, {}),
        ("teacher_4", "teacher", 0.512, {"num_steps": 4, "guidance": 1.0}),
        ("pruned_4", "prune", 0.317, {"num_steps": 4, "guidance": 1.0}),
        ("student_4", "student", 0.871, {}),
    ):
        written = {"num_steps": None, "guidance": None, **options}
        folder = step(run, name, "evaluate", "shapes", inputs={"input": of}, options=written, metrics=shapes(accuracy))
        leave_videos(folder, CAPTIONS, f"{of}, {options.get('num_steps', 40 if of == 'teacher' else 4)} steps")
    speed = {
        "dit_call_ms": 18.25,
        "dit_call_p90_ms": 19.0,
        "decode_ms": 61.5,
        "steps": 4,
        "guidance": 1.0,
        "batch": 8,
        "sample_ms": 74.0,
        "against_sample_ms": 3145.0,
        "times_faster": 42.5,
    }
    step(run, "speed", "evaluate", "latency", inputs={"input": "student", "against": "teacher"}, metrics=speed)
    package = step(
        run,
        "phone",
        "export",
        "coreml",
        inputs={"input": "student"},
        metrics={"seconds_by_component": {"dit_step": 21.5, "vae_decoder": 33.0}},
    )
    leave_package(
        package,
        {
            "dit_step": proof("dit_step", {"typical": 64.25, "zero": 71.0, "tiny": 58.5}),
            "vae_decoder": proof("vae_decoder", {"typical": 55.0, "zero": 60.0, "tiny": 61.0}),
        },
    )


STEPS = (
    "base",
    "vae",
    "codec",
    "real",
    "teacher",
    "prune",
    "student",
    "teacher_40",
    "teacher_4",
    "pruned_4",
    "student_4",
    "speed",
    "phone",
)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A run of which nothing is finished."""
    run = tmp_path / "quickstart"
    write(run / "run.json", {"schema": 1, "name": "quickstart", "steps": list(STEPS), "manifest": ""})
    (run / "recipe.yaml").write_text("name: quickstart\nseed: 0  # <b>\n", "utf-8")
    return run


@pytest.fixture
def run(empty: Path) -> Path:
    """A finished run."""
    trained(empty)
    judged(empty)
    return empty


def listed(run: Path, *names: str) -> None:
    """Name the steps of a run."""
    write(run / "run.json", {"schema": 1, "name": "quickstart", "steps": list(names), "manifest": ""})


def page_of(run: Path) -> str:
    """The report's text."""
    return write_report(run).read_text("utf-8")


# ------------------------------------------------------------------ summary.json


def test_summary_holds_every_figure(run: Path) -> None:
    write_report(run)
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert [entry["name"] for entry in summary["steps"]] == list(STEPS)
    assert summary["pending"] == []
    by_name = {entry["name"]: entry for entry in summary["steps"]}
    assert by_name["teacher"]["model"]["flops"] == 2_310_000_000
    assert by_name["student_4"]["metrics"]["accuracy.shape"] == 0.871
    assert by_name["student"]["seconds"] == 95.0
    assert by_name["student"]["inputs"] == {"input": "prune", "teacher": "teacher"}
    assert by_name["prune"]["metrics"]["trials.plans"] == FIELD["plans"]
    assert by_name["student"]["bundle"] == "07" * 32
    assert summary["environment"]["torch"] == "2.9.0+cpu"
    assert summary["environment"]["threads"] == 2
    assert summary["total_seconds"] == pytest.approx(12 * 12.5 + 95)


def test_summary_states_the_result(run: Path) -> None:
    write_report(run)
    result = json.loads((run / "summary.json").read_text("utf-8"))["result"]
    assert (result["teacher"], result["pruned"], result["student"]) == ("teacher", "prune", "student")
    assert result["params_share"] == pytest.approx(3.6 / 8.4)
    assert result["times_faster"] == 42.5
    assert (result["teacher_quality"], result["student_quality"], result["pruned_quality"]) == (0.934, 0.871, 0.317)
    assert (result["teacher_steps"], result["student_steps"], result["pruned_steps"]) == (40, 4, 4)
    assert result["quality_share"] == pytest.approx(0.871 / 0.934)
    assert result["gained"] == pytest.approx(0.871 - 0.317)
    assert result["gained_error"] == pytest.approx(0.03 * 2**0.5)
    assert (result["captions"], result["floors"]) == (128, {"chance": 0.4, "best_constant": 0.55})
    assert result["exports_passed"] is True


def test_a_layout_is_compared_with_the_model_as_it_was(empty: Path) -> None:
    """Of equal size: what is less are the FLOPs of a call; beside them what the model cost, and its loss, unchanged."""
    before, after = shape_of(8_400_000, 2_000_000_000), shape_of(8_400_000, 1_500_000_000)
    step(empty, "base", "base", "video_dit", model=before)
    step(empty, "teacher", "distill", "flow", model=before, inputs={"input": "base"})
    folder = step(empty, "laid", "transform", "attention", model=after, inputs={"input": "teacher"})
    costs = {name: {"flops": value} for name, value in (("unchanged", 2e9), ("predicted", 1.5e9), ("measured", 1.5e9))}
    named = {"layout": {"b.0": "full", "b.1": "stride"}, "letters": {"full": "F", "stride": "S"}}
    write(folder / "layout.json", {**named, **costs, "budget": {"flops": 1.6e9}, "loss": 3.25, "present": 3.5})
    listed(empty, "base", "teacher", "laid")
    write_report(empty)
    result = json.loads((empty / "summary.json").read_text("utf-8"))["result"]
    assert (result["teacher"], result["student"], result["params_share"], result["flops_share"]) == (
        "teacher", "laid", 1.0, 0.75
    )  # fmt: skip
    page = page_of(empty)
    assert "has 100% of the teacher’s parameters and takes 75% of its FLOPs per call." in page
    assert "that of the model as it was, after an equally short training, 3.5000." in page
    row = [f'<td class="n">{value}</td>' for value in ("2,000,000,000", "1,600,000,000", *["1,500,000,000"] * 2)]
    assert f"<tr><th>FLOPs</th>{''.join(row)}</tr>" in page


def test_who_was_cut_from_an_untrained_model_is_compared_with_its_teacher(empty: Path) -> None:
    """And an evaluation that never samples has no steps to show."""
    big, small = shape_of(8_400_000, 2_000_000_000), shape_of(2_100_000, 500_000_000)
    step(empty, "given", "latent", "given", model=big)
    step(empty, "taught", "distill", "flow", model=big, flow=LONG, inputs={"input": "given"})
    step(empty, "small", "prune", "trilevel", model=small, inputs={"input": "given"})
    inputs = {"input": "small", "teacher": "taught"}
    step(empty, "student", "distill", "scaled", model=small, flow=LONG, inputs=inputs)
    judged = {
        "excess": 0.25,
        "excess_error": 0.05,
        "explained": 0.75,
        "explained_error": 0.05,
        "floors": {"linear": 0.5},
    }
    step(empty, "excess", "evaluate", "excess", inputs={"input": "student"}, metrics=judged, quality="explained")
    listed(empty, "given", "taught", "small", "student", "excess")
    found = outcome(read_run(empty))
    assert (found.teacher, found.pruned, found.student, found.params_share) == ("taught", "small", "student", 0.25)
    assert (found.student_quality, found.student_steps, found.floors) == (0.75, None, {"linear": 0.5})
    page = page_of(empty)
    assert '<p class="lead">The student has 25% of the teacher’s parameters.</p>' in page
    assert '<td class="n">0.25 ± 0.05</td></tr>' in page.replace("\n", "")
    assert "Floors of explained: linear 0.500." in page
    assert "Exact match" not in page


def test_equal_runs_give_equal_files(run: Path) -> None:
    first = (write_report(run).read_bytes(), (run / "summary.json").read_bytes())
    assert (write_report(run).read_bytes(), (run / "summary.json").read_bytes()) == first


# ------------------------------------------------------------------ the page


def test_page_shows_the_figures(run: Path) -> None:
    page = page_of(run)
    for shown in (
        "8.40M",
        "3.60M",
        "42.5×",
        "0.871",
        "0.934",
        "31.2 dB",
        "64.2",
        "58.5",
        "1.25 MB",
        "33.0 s",
        "1 min 35 s",
        "18.2",
        "74",
        "2.31",
        "+0.554 ± 0.042",
        "128 captions",
        "best constant: 0.550",
    ):
        assert shown in page, shown
    assert "The 4-step student has 43% of the teacher’s parameters, samples 42.5 times faster, keeps 93%" in page
    assert "1 of 4 (25%)" in page  # blocks removed, beside the paper's 8 of 28
    for column in ("real", "VAE round trip", "teacher, 40 steps", "student, 4 steps"):
        assert f"<th>{column}</th>" in page


def test_page_and_summary_show_what_was_warned_of(run: Path) -> None:
    """An alarm that a training raised is seen by who reads the report alone; other notes are not shown."""
    page = page_of(run)
    assert page.count("videos stand &lt;still&gt; at step 200. Lower &#39;lr&#39;") == 1
    assert "something said" not in page
    steps = json.loads((run / "summary.json").read_text("utf-8"))["steps"]
    assert [entry["warnings"] for entry in steps if entry["warnings"]] == [
        ["videos stand <still> at step 200. Lower 'lr'"]
    ]


def test_the_page_shows_what_became_of_clips(run: Path) -> None:
    section = page_of(run).partition('<section id="reconstruction">')[2].partition("</section>")[0]
    rows = section.partition("2 clips</summary>")[2]
    assert rows.index("<th>a</th>") < rows.index("<th>b &lt;2&gt;</th>")  # the worst first
    cells = re.findall(r'<td class="n">(.*?)</td>', rows)
    assert cells == [
        "17 × 96 × 96", "27.50", "0.9123", "2.25", "16", "21.00",
        "17 × 96 × 96", "31.30", "0.9123", "–", "16", "21.00",
    ]  # fmt: skip
    assert "17 × 96 × 96</small>" in section
    assert re.findall(r'aria-label="(.*?)"', section) == ["original: a", "reconstruction: a"]


def test_the_page_shows_every_plan_that_was_tried(run: Path) -> None:
    """The one that stays first, then those that went, the last to go first; a round that a plan did not see is a dash."""
    page = page_of(run)
    assert "prune: the budget was shared out by the paper’s proportions; no sensitivity was measured." in page
    table = page[page.index("Plans that were tried") : page.index("Which units went")]
    assert "healed for 1,200 steps before each round" in table
    assert "The budget is 3,630,000 parameters; nothing comes below it with head alone." in table
    assert re.findall(r"Loss after<br>([\d,]+) steps", table) == ["1,200", "2,400"]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in table.split("<tr>")[2:]]
    assert rows == [
        ["ffn alone", "4 of 4", "256 of 2,048", "3,600,000", "0.5401", "0.4312", "yes"],
        ["block + ffn", "3 of 4", "1,024 of 2,048", "3,600,000", "0.5312", "0.4876", ""],
        ["block alone", "2 of 4", "2,048 of 2,048", "3,600,000", "0.6125", "–", ""],
    ]


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (
            {
                "start": "taylor",
                "kept": "result",
                "same": False,
                "healed": 50,
                "losses": {"start": 1.01, "result": 0.98},
            },
            "On held-out data, each healed for 50 steps, the start (taylor) has a loss of 1.0100, the result of the "
            "search 0.9800: the result stays.",
        ),
        (
            {"start": "taylor", "kept": "start", "same": False, "healed": 0, "losses": {"start": 0.5, "result": 0.75}},
            "On held-out data the start (taylor) has a loss of 0.5000, the result of the search 0.7500: the start stays.",
        ),
        ({"start": "magnitude", "kept": "start", "same": True}, "The search kept its start (magnitude)."),
        ({}, None),
    ],
)
def test_page_says_what_became_of_a_searchs_start(run: Path, comparison: dict[str, Any], said: str | None) -> None:
    (path,) = run.rglob("search.json")
    write(path, {**json.loads(path.read_text()), "comparison": comparison})
    page = page_of(run)
    assert (said in page) if said else ("the start" not in page and "its start" not in page)


def test_page_shows_what_was_sampled_while_a_model_trained(run: Path) -> None:
    assert "Samples while it trained" not in page_of(run)
    (trained,) = [step for step in read_run(run).steps if step.kind == "distill" and step.curves][:1]
    place = run / "steps" / trained.name / "samples"
    place.mkdir()
    for number, content in ((2000, b"two"), (1000, b"one")):
        (place / f"step-{number:08d}.jpg").write_bytes(content)
    page = page_of(run)
    first = '<figcaption>after 1,000 steps</figcaption><img src="data:image/jpeg;base64,b25l"'
    second = '<figcaption>after 2,000 steps</figcaption><img src="data:image/jpeg;base64,dHdv"'
    assert 0 < page.index(first) < page.index(second)


def test_page_loads_nothing(run: Path) -> None:
    page = page_of(run)
    assert not re.search(r"""(src|href|action|data|poster)\s*=\s*["']?\s*(https?:)?//""", page, re.IGNORECASE)
    assert not re.search(r"""url\(\s*["']?(https?:)?//|@import""", page, re.IGNORECASE)
    assert "http://" not in page
    assert "https://" not in page


def test_page_escapes_captions_and_recipe(run: Path) -> None:
    page = page_of(run)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "# &lt;b&gt;" in page


def test_ids_on_the_page_are_unique(run: Path) -> None:
    ids = re.findall(r'<(?!use)[^>]*\bid="([^"]+)"', page_of(run))
    assert len(ids) == len(set(ids))


def test_references_inside_figures_resolve(run: Path) -> None:
    page = page_of(run)
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= ids
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= ids


@pytest.mark.parametrize("finish", [lambda _: None, trained, judged], ids=["nothing", "trained", "judged"])
def test_partial_runs_leave_sections_out(empty: Path, finish: Callable[[Path], None]) -> None:
    finish(empty)
    page = page_of(empty)
    done = len(read_run(empty).steps)
    assert page.count('class="pending"') == len(STEPS) - done
    assert ('id="pruning"' in page) == (finish is trained)
    assert ('id="export"' in page) == (finish is judged)


def test_report_needs_no_torch(run: Path) -> None:
    code = "import sys, pathlib, dit_compress.report as report\n"
    code += f"report.write_report(pathlib.Path({str(run)!r}))\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_video_outside_its_folder_is_refused(run: Path) -> None:
    write(
        run / "steps" / "codec" / "videos" / "videos.json",
        [{"caption": "x", "column": "y", "file": "../../../recipe.yaml"}],
    )
    with pytest.raises(UserError, match="outside its folder"):
        write_report(run)


# ------------------------------------------------------------------ parts


def test_arms_know_how_they_were_sampled(run: Path) -> None:
    found = {arm.step: arm for arm in arms(read_run(run))}
    assert found["real"].of is None
    assert (found["teacher_40"].num_steps, found["teacher_40"].guidance) == (40, 4.0)
    assert (found["pruned_4"].num_steps, found["pruned_4"].guidance) == (4, 1.0)
    assert found["student_4"].scores["speed"] == pytest.approx(0.911)


@pytest.mark.parametrize(
    "metrics",
    [{"clips": 16}, {"clips": [16]}, {"trials": 5}, {"widths": {"a": 3}}, {"widths": {}}, {"latent_power": [1]},
     {"accuracy": {"a": 0.5}, "floors": [0.1]}],
)  # fmt: skip
def test_somebodys_own_metrics_by_a_name_of_ours_are_figures_like_others(empty: Path, metrics: dict[str, Any]) -> None:
    trained(empty)
    step(empty, "own", "evaluate", "mine", inputs={"input": "student"}, metrics={**metrics, "best": 0.25})
    listed(empty, *STEPS, "own")
    assert "<h2>" in page_of(empty)
    written = json.loads((empty / "summary.json").read_text("utf-8"))
    assert next(each for each in written["steps"] if each["name"] == "own")["metrics"]["best"] == 0.25


def test_nested_arms_of_one_step(empty: Path) -> None:
    metrics = {"psnr_db": 30.0, "accuracy": {"real": {"shape": 1.0}, "round_trip": {"shape": 0.96}}}
    step(empty, "codec", "evaluate", "reconstruction", metrics=metrics)
    assert [(arm.label, arm.scores) for arm in arms(read_run(empty))] == [
        ("real", {"shape": 1.0}),
        ("round trip", {"shape": 0.96}),
    ]


def test_outcome_without_pruning_takes_the_last_model(empty: Path) -> None:
    step(empty, "teacher", "distill", "flow", model=shape_of(10, 10), flow=LONG)
    result = outcome(read_run(empty))
    assert (result.student, result.teacher, result.params_share) == ("teacher", None, None)


def test_an_export_below_its_gate_or_never_executed_fails(empty: Path) -> None:
    low = step(empty, "phone", "export", "coreml")
    leave_package(low, {"dit_step": proof("dit_step", {"typical": 45.0, "zero": None})})
    never = step(empty, "speed", "export", "onnx")
    leave_package(never, {"dit_step": []}, fidelity="none")
    found = read_run(empty)
    assert {each.step: each.verdict for each in proofs(found)} == {"phone": "refused", "speed": "UNVERIFIED"}
    assert [verdict(each) for each in found.of_kind("export")] == [False, False]


def test_proofs_out_of_metrics(empty: Path) -> None:
    verified = [{"inputs": "typical", "precision": "float16", "psnr_db": 48.0, "max_abs": 0.1, "nonfinite": 0}]
    component = {"name": "dit_step", "artifact": "onnx", "bytes": 10, "fidelity": "production", "verified": verified}
    step(empty, "phone", "export", "onnx", metrics={"components": [component]})
    (found,) = proofs(read_run(empty))
    assert (found.artifact, found.verdict, found.checks[0].psnr_db) == ("onnx", "below", 48.0)


def test_binned_by_hand() -> None:
    steps, low, high, smooth = binned(np.array([0, 1, 2]), np.array([1.0, math.nan, 3.0]))
    assert steps.tolist() == [0, 2]
    assert low.tolist() == high.tolist() == [1.0, 3.0]
    assert smooth[1] == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 3) / (0.9 * 0.1 + 0.1))


def test_curves_without_a_finite_value_are_drawn() -> None:
    assert "<svg" in curve(Series("loss", (0, 1), (math.nan, math.inf)), "x")


def test_families_by_level_and_attention(run: Path) -> None:
    pruning = read_run(run).step("prune").pruning
    assert list(families(pruning)) == [
        "Blocks",
        "Heads, self-attention",
        "Heads, cross-attention",
        "Channels, feed-forward",
    ]


def test_names_in_figures_are_escaped() -> None:
    svg = curve(Series("</svg><script>x</script> $a$ &", (0, 1), (1.0, 2.0)), "x")
    assert "<script" not in svg
    assert "$a$ &amp;" in svg


def test_metrics_that_are_not_numbers_do_no_harm(empty: Path) -> None:
    metrics = {"psnr_db": math.nan, "dit_call_ms": None, "note": "<b>", "nested": {"list": [1, 2]}}
    step(empty, "codec", "evaluate", "reconstruction", metrics=metrics)
    assert "&lt;b&gt;" in page_of(empty)
    text = (empty / "summary.json").read_text("utf-8")
    assert "NaN" not in text
    assert json.loads(text)["steps"][0]["metrics"]["nested.list"] == [1, 2]


def test_the_wall_shows_captions_that_can_be_compared(run: Path) -> None:
    leave_videos(run / "steps" / "student_4", (*CAPTIONS, "only here"), "student, 4 steps")
    shown = wall(read_run(run))
    assert [caption for caption, _ in shown.rows] == list(CAPTIONS)
    assert shown.left_out == 1
    assert shown.columns[:2] == ("real", "VAE round trip")


def test_a_step_may_be_named_by_a_number() -> None:
    from matplotlib.figure import Figure

    from dit_compress.report.svg import as_svg

    text = as_svg(Figure(figsize=(1, 1)), "4x16x16-c0", "a loss")
    assert 'id="4x16x16-c0-figure_1"' in text


def arm(run: Path, name: str, accuracy: float, *, teacher: bool, steps: int = 500, num_steps: int = 4) -> None:
    """A training of the pruned model, with its evaluation."""
    inputs = {"input": "prune", **({"teacher": "teacher"} if teacher else {})}
    step(
        run,
        name,
        "distill",
        "any",
        model=shape_of(3_600_000, 990_000_000),
        flow=SHORT,
        inputs=inputs,
        options={"steps": steps},
    )
    options = {"num_steps": num_steps, "guidance": 1.0}
    step(run, f"{name}_judged", "evaluate", "shapes", inputs={"input": name}, options=options, metrics=shapes(accuracy))


@pytest.mark.parametrize(
    ("arms_of_a_run", "ours"),
    [
        ([("plain", 0.61, False, {}), ("taught", 0.64, True, {})], "0.610 → 0.640"),
        ([("taught", 0.64, True, {}), ("plain", 0.61, False, {})], "0.610 → 0.640"),
        ([("plain", 0.61, False, {"steps": 100}), ("taught", 0.64, True, {})], None),
        ([("plain", 0.61, False, {"num_steps": 40}), ("taught", 0.64, True, {})], None),
        ([("taught", 0.64, True, {})], None),
    ],
)
def test_the_gain_by_kd_is_that_of_two_trainings_alike(empty: Path, arms_of_a_run: list[Any], ours: str | None) -> None:
    """Not of the pruned model and the trained one, which training alone makes better."""
    trained(empty)
    judged(empty)
    for name, accuracy, teacher, more in arms_of_a_run:
        arm(empty, name, accuracy, teacher=teacher, **more)
    names = [*STEPS, *(f"{name}{end}" for name, *_ in arms_of_a_run for end in ("", "_judged"))]
    write(empty / "run.json", {"schema": 1, "name": "quickstart", "steps": names, "manifest": ""})
    run = read_run(empty)
    found = {pair.what: pair.ours for pair in compared(run, outcome(run))}
    assert found.get("Pruned model trained without → with KD") == ours
