"""Places of bundles."""

from __future__ import annotations

from pathlib import Path

from dit_compress.core.files import read_json
from dit_compress.recipe.model import PARTIAL


def bundle_of(run: Path, source: str) -> Path:
    """Find the bundle of an input: in an earlier node's folder, or at a path."""
    folder = step_folder(run, source)
    return folder / "bundle" if (folder / "step.json").is_file() else resolve_bundle(source)


def resolve_bundle(source: str | Path) -> Path:
    """Find a bundle folder, or the last bundle of a run folder."""
    path = Path(source)
    if (path / "bundle.json").is_file() or not (path / "run.json").is_file():
        return path
    given = [name for name in read_json(path / "run.json")["steps"] if (step_folder(path, name) / "bundle").is_dir()]
    return step_folder(path, given[-1]) / "bundle" if given else path


def step_folder(run: Path, name: str) -> Path:
    """Find the folder of a finished step."""
    return run / "steps" / name


def run_and_step(folder: Path) -> tuple[str, str]:
    """Name the run and the step of a step's folder, finished or not."""
    return folder.absolute().parent.parent.name, folder.name.removesuffix(PARTIAL)
