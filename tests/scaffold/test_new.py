"""``dit-compress new``: what it writes installs, is found, and its own tests pass; broken in one way, they say in which."""

from __future__ import annotations

import ast
import gc
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from command import here
from warm import forkserver

from dit_compress import scaffold
from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import Registry, installed, use
from dit_compress.recipe import load
from dit_compress.scaffold import KINDS, PROJECT, SAMPLES, new_package, package_of
from dit_compress.testing.exporters import small

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow(20)
NAME = "my-own"
PACKAGES = {word: package_of(template.kind, NAME) for word, template in KINDS.items()}

# kind → file, what is there, what takes its place, the test that notices, what it says
BROKEN = {
    "exporter": (
        "graph.py",
        'zip(self.graph["outputs"], results, strict=True)}',
        'zip(self.graph["outputs"][1:], results, strict=False)}',
        "test_runner_states_what_it_is",
        "the component has the output y, the runner gives []",
    ),
    "granularity": (
        "axes.py",
        "masks=tuple(replace(point, indices=joined(point.indices)) for point in one.masks)",
        "masks=()",
        "test_a_mask_reaches_every_unit[video_dit]",
        "no mask point, the velocity does not depend on its masks",
    ),
    "distiller": (
        "distiller.py",
        'batch.streams.normal("noise", batch.x0.shape[1:])',
        "batch.x0.new_empty(batch.x0.shape).normal_()",
        "test_a_loss_draws_from_the_streams_alone",
        "gives another loss when it is computed again: draw from batch.streams",
    ),
    "latent": (
        "codec.py",
        "analysis_CP = components_CP / std_C[:, None]",
        "analysis_CP = components_CP",
        "test_latents_are_normalised",
        "has deviation",
    ),
    "search": (
        "search.py",
        "top(score, problem.keep[name])",
        "top(score, problem.keep[name] + 1)",
        "test_exactly_as_many_units_stay_as_are_asked_for",
        "block:transformer_blocks: 3 units stay, 2 were asked for",
    ),
    "discriminator": (
        "discriminator.py",
        "self.trunk.features(latent_BCTHW, sigma_B",
        "self.trunk.features(latent_BCTHW.detach(), sigma_B",
        "test_it_looks_at_the_latent[video_dit]",
        "the logits do not depend on the latent",
    ),
}


def environment(*sites: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*sites, *sys.path])), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project of each kind."""
    folder = tmp_path_factory.mktemp("projects")
    for word in KINDS:
        new_package(word, NAME, folder / word, use())
    return folder


BUILD = """\
import os, sys, tomllib
from importlib import import_module
wheels, *folders = sys.argv[1:]
for folder in folders:
    os.chdir(folder)
    with open("pyproject.toml", "rb") as file:
        backend = tomllib.load(file)["build-system"]["build-backend"]
    import_module(backend).build_wheel(wheels)
"""


@pytest.fixture(scope="module")
def site(projects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, built by their backends in one process, where pip starts three for each, and installed by pip."""
    target, wheels = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("wheels")
    build = [sys.executable, "-c", BUILD, str(wheels), *(str(projects / word) for word in KINDS)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
        "--no-compile", "--target", str(target), *map(str, wheels.iterdir()),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return target


def pytest_outcomes(wanted: list[str], folder: Path, *sites: Path) -> tuple[int | None, dict[tuple[str, str], str]]:
    """Run pytest on its own; exit status, and (module, test) → '' where it passed, else why it did not."""
    report = folder / "report.xml"
    (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")  # else the first project's settings rule them all
    status, printed = run_pytest(folder, [f"--junitxml={report}", *wanted], *sites)
    assert report.is_file(), printed
    found: dict[tuple[str, str], str] = {}
    for case in ET.parse(report).iter("testcase"):
        module = re.search(r"test_dit_\w+", case.get("classname", ""))
        assert module is not None, printed[-4000:]
        why = [f"{child.get('message')}\n{child.text}" for child in case]
        found[module[0], case.get("name", "")] = "\n".join(why)
    return status, found


def run_pytest(folder: Path, words: list[str], *sites: Path) -> tuple[int | None, str]:
    """Exit status and what is printed; in a fork that has imported torch, and is else as good as a process of its own."""
    command = ["-q", "-p", "no:cacheprovider", *words]
    process = forkserver().Process(target=_run_pytest, args=(command, folder, [str(site) for site in sites]))
    process.start()
    process.join(1800)
    return process.exitcode, (folder / "printed").read_text("utf-8")


def _run_pytest(command: list[str], folder: Path, sites: list[str]) -> None:
    from tracing import gather_once

    from dit_compress.structure.observe import stored

    stored.WORTH_SECONDS = 0.02
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    os.chdir(folder)
    sys.path[:0] = sites
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    with (folder / "printed").open("w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    torch.set_num_threads(1)
    gather_once()
    sys.exit(pytest.main(command))


@pytest.fixture(scope="module")
def outcomes(projects: Path, site: Path) -> tuple[int, dict[tuple[str, str], str]]:
    """The generated tests of all projects, in one process."""
    return pytest_outcomes([f"{word}/tests" for word in KINDS], projects, site)


@pytest.mark.parametrize("word", KINDS)
def test_the_generated_tests_pass(outcomes: tuple[int, dict[tuple[str, str], str]], word: str) -> None:
    status, found = outcomes
    own = {test: why for (module, test), why in found.items() if module == f"test_{PACKAGES[word]}"}
    assert {test: why for test, why in own.items() if why} == {}
    assert len(own) >= 7
    assert "test_it_is_installed_and_found" in own
    assert status == 0


def test_plugins_lists_them(site: Path) -> None:
    command = [sys.executable, "-m", "dit_compress", "plugins"]
    ran = subprocess.run(command, env=environment(site), check=True, capture_output=True, text=True, timeout=300)
    for word, template in KINDS.items():
        distribution = PACKAGES[word].replace("_", "-")
        assert re.search(rf"^\s*{template.kind}\s+my_own\s.*{distribution} 0\.1\.0\s*$", ran.stdout, re.MULTILINE), word
    assert "broken:" not in ran.stdout


@pytest.fixture(scope="module")
def broken(projects: Path, site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """Each package with one fault, and the test that is there to notice it."""
    folder = tmp_path_factory.mktemp("broken")
    wanted = []
    for word, (file, right, wrong, test, _) in BROKEN.items():
        shutil.copytree(projects / word, folder / word)
        path = folder / word / PACKAGES[word] / file
        assert path.read_text("utf-8").count(right) == 1, f"{word}: {file} has changed, the fault can't be put in"
        path.write_text(path.read_text("utf-8").replace(right, wrong), "utf-8")
        wanted.append(f"{word}/tests/test_{PACKAGES[word]}.py::TestMyOwn::{test}")
    status, found = pytest_outcomes(wanted, folder, *(folder / word for word in KINDS), site)
    assert status == 1
    assert len(found) == len(BROKEN)
    return found


@pytest.mark.parametrize("word", KINDS)
def test_one_fault_fails_the_generated_tests_for_a_stated_reason(broken: dict[tuple[str, str], str], word: str) -> None:
    *_, test, reason = BROKEN[word]
    assert reason in broken[f"test_{PACKAGES[word]}", test]


def test_without_installing_it_the_tests_say_what_to_run(projects: Path, tmp_path: Path) -> None:
    """By the project's own pytest settings: its code is importable, its entry point is not there."""
    folder = Path(shutil.copytree(projects / "search", tmp_path / "search"))
    status, printed = run_pytest(folder, ["tests/test_dit_search_my_own.py::test_it_is_installed_and_found"])
    assert status == 1
    assert (
        "the search plugin 'my_own' is not installed; in the folder of its pyproject.toml run: pip install" in printed
    )


# ------------------------------------------------------------------ what is written


@pytest.mark.parametrize("word", KINDS)
def test_a_project_is_whole(projects: Path, word: str) -> None:
    package, template = PACKAGES[word], KINDS[word]
    paths = (path for path in (projects / word).rglob("*") if path.is_file() and path.suffix != ".pyc")
    files = {path.relative_to(projects / word).as_posix() for path in paths}
    extra = {f"{package}/graph.py"} if word == "exporter" else set()
    assert files == {
        "pyproject.toml", "README.md", f"{package}/__init__.py", f"{package}/{template.module}.py",
        f"tests/test_{package}.py",
    } | extra  # fmt: skip
    project = tomllib.loads((projects / word / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["entry-points"] == {"dit_compress.plugins": {f"{template.kind}_my_own": package}}
    texts = {path: (projects / word / path).read_text("utf-8") for path in files}
    assert all("TODO" not in text and "NotImplementedError" not in text for text in texts.values())
    assert sum(text.count("Change this:") for path, text in texts.items() if path.endswith(".py")) >= 3
    lines = sum(len(text.splitlines()) for path, text in texts.items() if path.startswith(package))
    assert lines <= 200, "small enough to read"
    top = ast.parse(texts[f"{package}/__init__.py"]).body
    imported = {getattr(node, "module", None) for node in top if isinstance(node, ast.ImportFrom)}
    without_torch = {"typing", "pydantic", "dit_compress.export", "dit_compress.hooks", "dit_compress.train.options"}
    assert imported <= without_torch, "its __init__ imports no torch"


@pytest.fixture
def registry(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The plugins of this process, the site's among them."""
    monkeypatch.syspath_prepend(site)
    yield Registry.discover()
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES.values()]:
        del sys.modules[name]


@pytest.mark.parametrize("word", KINDS)
def test_the_recipe_of_the_readme_passes_the_check(
    registry: Registry, projects: Path, word: str, tmp_path: Path
) -> None:
    text = (projects / word / "README.md").read_text("utf-8")
    (step,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: begun\nmodel: {{use: video_dit}}\nsteps:\n  {step}", "utf-8")
    assert "my_own" in str(load(recipe, registry).steps[0].as_data())


@pytest.mark.usefixtures("registry")
def test_the_exporters_check_names_operators_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"{PACKAGES['exporter']}.exporter")
    exporter = module.MyOwnExport(importlib.import_module(PACKAGES["exporter"]).MyOwnOptions())
    assert exporter.check(small(), exporter.profile) == []
    monkeypatch.setattr(module, "KERNELS", frozenset({"aten.linear"}))
    found = exporter.check(small(), exporter.profile)
    assert "aten.silu" in {each.operator for each in found}
    assert "aten.linear" not in {each.operator for each in found}
    assert {each.severity for each in found} == {"error"}
    assert all(each.path and each.mend for each in found)
    monkeypatch.setattr(module, "KERNELS", frozenset(each.operator for each in found) | {"aten.linear"})
    assert exporter.check(small(), exporter.profile) == []


@pytest.mark.parametrize(
    ("name", "rules"), [("my-npu", "E,F,I,UP,B,SIM,PT"), ("some-neural-processor", "E4,E7,E9,F,I")]
)
def test_the_code_is_in_order(name: str, rules: str, tmp_path: Path) -> None:
    """A long name may make a line too long, and nothing else."""
    for word in KINDS:
        new_package(word, name, tmp_path / word, use())
    check = ["ruff", "check", "--isolated", "--line-length", "120", "--select", rules, "--config", f"src={list(KINDS)}"]
    ran = subprocess.run([sys.executable, "-m", *check], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_no_sample_is_left_over() -> None:
    folders = {path.name for path in SAMPLES.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {template.kind for template in KINDS.values()}
    assert {path.name for path in PROJECT.iterdir()} == {"pyproject.toml", "README.md"}


# ------------------------------------------------------------------ the command, and bad input


def test_the_command_writes_beside_you(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed, told = here(capsys, monkeypatch, "new", "exporter", "my_npu")
    assert (status, printed) == (0, "dit-export-my-npu\n")
    assert "pip install --no-deps -e dit-export-my-npu" in told
    assert [path.name for path in tmp_path.iterdir()] == ["dit-export-my-npu"]
    assert (tmp_path / "dit-export-my-npu" / "dit_export_my_npu" / "exporter.py").is_file()


REFUSED = {
    "a clash": (("exporter", "onnx"), "the export plugin 'onnx' exists already, in dit-compress. Choose another name"),
    "a clash in another spelling": (("distiller", "flow"), "the distill plugin 'flow' exists already"),
    "capitals": (
        ("search", "MyOwn"),
        "'MyOwn' is no name for a plugin: lower case letters, digits and single '-' or '_' between them. Take 'myown'",
    ),
    "a space": (("search", "my own"), "Take 'my-own'"),
    "a dot": (("search", "my.own"), "Take 'my-own'"),
    "a path": (("search", "../up"), "Take 'up'"),
    "a digit first": (("search", "9npu2"), "Take 'npu2'"),
    "not ascii": (("search", "größe"), "Take 'gr-e'"),
    "nothing": (("search", ""), "Begin with a lower case letter: my-npu"),
    "double": (("search", "my--own"), "Take 'my-own'"),
    "a newline": (("search", "my\n"), "is no name for a plugin"),
    "an unknown kind": (("exportr", "x"), "unknown kind 'exportr'. Did you mean 'exporter'? The kinds are exporter,"),
    "no template": (
        ("tracker", "x"),
        "there is no template for 'tracker'. Begin with the example in docs/plugins/tracker.md",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_is_refused_and_nothing_is_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    status, printed, told = here(capsys, monkeypatch, "new", *words)
    assert status == 2
    assert message in told
    assert "Traceback" not in told
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["a folder", "a file", "a link to nothing", "a file above"])
def test_nothing_is_written_over(there: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there == "a folder":
        out.mkdir()
    elif there == "a link to nothing":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.write_text("mine")
    wanted = out / "inside" if there == "a file above" else out
    with pytest.raises(UserError, match="not a folder" if there == "a file above" else "it exists already"):
        new_package("search", "mine", wanted, installed())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert there == "a folder" or there.startswith("a link") or out.read_text() == "mine"


def test_independent_errors_come_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        new_package("search", "random", tmp_path, use())
    assert [what for _, what, _ in raised.value.problems] == [
        "the search plugin 'random' exists already, in dit-compress",
        "it exists already",
    ]


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scaffold.rendered(KINDS["search"], "mine")
    monkeypatch.setattr(scaffold, "rendered", lambda *_: {**whole, "last": None})
    with pytest.raises(TypeError):
        new_package("search", "mine", tmp_path / "out", installed())
    assert list(tmp_path.iterdir()) == []
