"""A stranger's package, installed offline, adds a granularity, a search, an exporter and a transform; the engine is unchanged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import Done, finish, quiet, real, start
from fresh import run_fresh

from dit_compress.core.files import read_json

pytestmark = pytest.mark.slow(15)

HERE = Path(__file__).parent

RECIPE = """\
name: stranger
model: {{from: {teacher}}}
data: {{use: shapes, num_clips: 8, num_test: 2, frames: 9, size: [64, 64]}}
steps:
  - transform: gate
    name: gated
  - distill: {{use: flow, steps: 2, batch: 4, warmup: 0, lr: 0.01}}
    name: trained
  - prune: {{use: trilevel, levels: {{block: {{remove: 1}}, ffn_pair: {{keep: 0.5}}}}, search: last}}
    name: pruned
  - export: graph
    name: files
"""

RELOAD = """\
import sys
import torch
from dit_compress.model.bundle import Bundle
from dit_compress.model.cut import example_output
torch.set_num_threads(1)
before, gated, pruned = (Bundle.open(path).denoiser() for path in sys.argv[1:])
assert torch.equal(example_output(before), example_output(gated)), "a gate of zero changes nothing"
blocks = pruned.module.transformer_blocks
gates = [float(block.stranger_gate) for block in blocks]
assert len(gates) == 3 and all(gates), gates
ungated = example_output(pruned)
with torch.no_grad():
    for block in blocks:
        block.stranger_gate.zero_()
assert not torch.equal(ungated, example_output(pruned)), "the gates act"
print([found.width for found in pruned.structure().feed_forwards])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages, installed as a user would on a machine without network."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
        str(HERE / "stranger"),
        str(HERE / "broken"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def run(site: Path, smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that uses all three."""
    folder = tmp_path_factory.mktemp("stranger")
    recipe = folder / "stranger.yaml"
    recipe.write_text(RECIPE.format(teacher=smoke / "steps" / "teacher" / "bundle"))
    wanted = ("run", recipe, "--out", folder / "run", "--threads", "1")
    done = finish(start(*wanted, log=folder / "log", site=site))
    assert done.status == 0, done.printed
    return folder / "run"


def elsewhere(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site)}


def test_the_package_is_installed_and_not_ours(site: Path) -> None:
    assert (site / "dit_stranger" / "transform_gate" / "gate.py").is_file()
    assert not (site / "dit_compress").exists()
    engine = Path(__file__).parents[2] / "dit_compress"
    assert not [path for path in engine.rglob("*.py") if "dit_stranger" in path.read_text()]


def test_its_plugins_are_listed_and_the_broken_ones_told(site: Path) -> None:
    done = real("plugins", env=elsewhere(site))
    assert done.status == 0
    for kind, name in (
        ("granularity", "ffn_pair"),
        ("export", "graph"),
        ("transform", "gate"),
        ("search", "last"),
        ("search", "random"),
    ):
        assert re.search(
            rf"^\s*{kind}\s+{name}\s.*{'dit-stranger 1.0' if name != 'random' else 'dit-compress'}",
            done.printed,
            re.MULTILINE,
        ), name
    broken = [line for line in done.printed.splitlines() if line.startswith("broken:")]
    assert sorted(broken) == [
        "broken: export_gone (dit-broken): No module named 'dit_broken.export_gone'. "
        "Install 'dit_broken.export_gone', or uninstall 'dit-broken'",
        "broken: search_broken (dit-broken): No module named 'no_such_package'. "
        "Install 'no_such_package', or uninstall 'dit-broken'",
        "broken: search_typo (dit-broken): there is no hook 'serach'. Did you mean 'search'?",
    ]


def test_a_broken_plugin_is_an_error_only_where_it_is_named(site: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: x\nmodel: {use: video_dit}\nsteps:\n"
        "  - prune: {use: trilevel, levels: {block: {remove: 1}}, search: broken}\n"
    )
    done = finish(start("check", recipe, log=tmp_path / "log", site=site))
    assert done.status == 2
    assert done.printed == (
        f"{recipe}:4: the search plugin 'broken' (dit-broken) is broken: "
        "No module named 'no_such_package'. Install 'no_such_package', or uninstall 'dit-broken'\n"
    )


def test_without_the_package_the_recipe_is_refused(run: Path) -> None:
    done = real("check", run / "recipe.yaml")
    assert done.status == 2
    assert "unknown transform plugin 'gate'" in done.printed
    assert "unknown granularity plugin 'ffn_pair'" in done.printed


def test_the_schema_knows_its_options(site: Path, tmp_path: Path) -> None:
    done = finish(start("schema", log=tmp_path / "log", site=site))
    assert "Numbers per gate." in json.dumps(json.loads(done.printed))


def test_the_log_holds_gate_and_pruning_in_order(run: Path) -> None:
    data = read_json(run / "steps" / "pruned" / "bundle" / "bundle.json")
    log = data["components"]["denoiser"]["log"]
    assert [(entry["name"], entry["revision"]) for entry in log] == [("gate", 1), ("prune", 1)]
    assert log[0]["data"] == {"stack": "transformer_blocks", "stream": 0, "output": None, "width": 1}
    kept = log[1]["data"]["kept"]
    assert {name.partition(":")[0] for name in kept} == {"block", "ffn_pair"}
    assert kept["block:transformer_blocks"] == {"of": 4, "units": [[1, 4]]}, "its search keeps the last"
    assert all(record["units"] == [[32, 64]] for name, record in kept.items() if name.startswith("ffn_pair"))
    assert {record["of"] for name, record in kept.items() if name.startswith("ffn_pair")} == {64}
    assert data["lineage"][-1]["parts"]["step"]["options"]["levels"]["ffn_pair"] == {"keep": 0.5}


def test_the_bundle_reloads_in_a_fresh_process(run: Path, site: Path, smoke: Path, tmp_path: Path) -> None:
    bundles = [
        smoke / "steps" / "teacher" / "bundle",
        *(run / "steps" / step / "bundle" for step in ("gated", "pruned")),
    ]
    made = run_fresh(RELOAD, *bundles, folder=tmp_path, path=[site])
    assert made.status == 0, made.printed
    assert made.printed.splitlines()[-1] == "[64, 64, 64]"


def test_without_the_package_the_bundle_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    done: Done = finish(start("inspect", run, log=tmp_path / "log"))
    assert done.status == 2
    assert quiet(done.printed).startswith("unknown transform plugin 'gate'")


def test_its_export_is_proven_by_its_own_runner(run: Path) -> None:
    manifest = read_json(run / "steps" / "files" / "files" / "manifest.json")
    assert manifest["passed"] is True
    assert manifest["fidelity"] == "interpreter"
    assert manifest["load_order"] == ["text_encoder", "dit_step", "vae_decoder"]
    rows = [row for artifact in manifest["artifacts"] for row in artifact["proof"]]
    assert {(row["component"], row["input_set"]) for row in rows} >= {("dit_step", "typical"), ("vae_decoder", "zero")}
    assert all(row["verdict"] == "passed" for row in rows)
    files = {file["path"] for artifact in manifest["artifacts"] for file in artifact["files"]}
    assert files >= {"dit_step.graph/graph.json", "dit_step.graph/weights.safetensors"}


def test_the_report_holds_its_steps(run: Path) -> None:
    summary = read_json(run / "summary.json")
    assert [(step["name"], step["plugin"]) for step in summary["steps"]] == [
        ("gated", "gate"), ("trained", "flow"), ("pruned", "trilevel"), ("files", "graph"),
    ]  # fmt: skip
    assert (run / "report.html").is_file()
