"""A wheel, installed without dependencies and without the editable install, is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
PLUGINS = REPOSITORY / "plugins" / "dit_compress_plugins"

LOOK = """\
import json, sys
from pathlib import Path
site, dependencies = sys.argv[1:]
# The dependencies' folder by its path alone: its .pth files, the editable install among them, are not read.
sys.path[:0] = [site]
sys.path.append(dependencies)
import dit_compress
from dit_compress.plugin.registry import Registry
from dit_compress.report import page
registry = Registry.discover()
print(json.dumps({
    "file": dit_compress.__file__,
    "plugins": sorted(f"{entry.kind}_{entry.plugin.name}" for entry in registry.entries()),
    "places": sorted({entry.module.__file__ for entry in registry.entries()}),
    "broken": [broken.reason for broken in registry.broken],
    "beside the report": sorted(path.name for path in Path(page.__file__).parent.iterdir() if path.suffix != ".py"),
    "torch": "torch" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, installed by pip."""
    target = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    return target


@pytest.fixture(scope="module")
def seen(site: Path) -> dict[str, Any]:
    """What a Python that knows only the wheel and its dependencies finds."""
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    made = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOOK, str(site), dependencies],
        cwd=site,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def folders() -> list[str]:
    """The plugins by their folders; that of ``evaluate: shapes`` has its reader as a reward and a counter, too."""
    return sorted(["counter_shapes", "reward_reader", *(path.parent.name for path in PLUGINS.glob("*/__init__.py"))])


def test_it_is_the_wheels_code_that_is_found(seen: dict[str, Any], site: Path) -> None:
    assert seen["file"] == str(site / "dit_compress" / "__init__.py")
    assert all(place.startswith(str(site)) for place in seen["places"])


def test_every_plugin_of_the_repository_is_found_and_none_is_broken(seen: dict[str, Any]) -> None:
    assert seen["plugins"] == folders()
    assert len(seen["plugins"]) >= 25
    assert seen["broken"] == []


def test_the_reports_template_is_there(seen: dict[str, Any]) -> None:
    assert set(seen["beside the report"]) >= {"template.html.j2", "style.css"}
    assert seen["torch"] is False


def test_every_file_of_both_trees_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "dit_compress", "plugins"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    present = {line.removeprefix("plugins/") for line in listed if (REPOSITORY / line).is_file()}
    assert names == present
    assert "dit_compress_plugins/__init__.py" not in names, "a namespace package: plugins may live in other wheels"


def test_the_command_is_installed(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "dit-compress = dit_compress.cli.app:main" in archive.read(entry_points).decode()


def test_its_script_answers(site: Path) -> None:
    """By the script that pip wrote, with the wheel first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    made = subprocess.run(
        [sys.executable, str(site / "bin" / "dit-compress"), "plugins"],
        env=environment,
        cwd=site,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("dit-compress 0.") == len(folders())
