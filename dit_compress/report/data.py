"""A run folder, read into typed data. What is not there yet is simply left out."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.report.layouts import Layout, read_layout
from dit_compress.report.trials import Trials, read_trials

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


WARNED = "warning, "
"""How a note of a step begins that is a warning."""


@dataclass(frozen=True)
class Series:
    """One logged quantity over the steps of a training."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Video:
    """One generated clip: the caption, the column it stands in, and its mp4."""

    caption: str
    column: str
    path: Path


@dataclass(frozen=True)
class AxisLayout:
    """The place of an axis: its level, how many units it had, its stack and block (None for a block axis)."""

    name: str
    level: str
    units: int
    stack: str
    block: int | None

    @property
    def leaf(self) -> str:
        """The name that distinguishes axes of one level and block: ``attn1``, ``attn2``."""
        path = self.name.partition(":")[2]
        return path.removeprefix(f"{self.stack}.{self.block}.") if self.block is not None else path


@dataclass(frozen=True)
class Pruning:
    """The decision of a prune step, and how the search came to it.

    kept: axis name → units that stay. snapshots: (search step, axis name → probability of each part to stay).
    comparison: of a search's start with its result: which stays, the held-out loss of both.
    """

    axes: tuple[AxisLayout, ...]
    kept: dict[str, frozenset[int]]
    snapshots: tuple[tuple[int, dict[str, list[float]]], ...] = ()
    chosen: dict[str, list[float]] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)

    def kept_units(self, axis: AxisLayout) -> frozenset[int]:
        """Return the units of an axis that stay; all where the plan does not name it."""
        return self.kept.get(axis.name, frozenset(range(axis.units)))

    def stays(self, axis: AxisLayout) -> bool:
        """Tell whether the block that holds an axis stays."""
        block_axis = next((item for item in self.axes if item.block is None and item.stack == axis.stack), None)
        return axis.block is None or block_axis is None or axis.block in self.kept_units(block_axis)


@dataclass(frozen=True)
class Step:
    """One finished step: the content of step.json, and the files that only the report reads.

    quality, headline: the metrics by which models are compared, and that is shown first, as the plugin names them.
    worst: clips that came out worst, beside what they were. sheets: pictures of samples made while it trained, with the
    step of the training. warnings: what it warned of, such as a training's alarms.
    """

    name: str
    kind: str
    plugin: str
    parts: dict[str, Any]
    inputs: dict[str, str]
    model: dict[str, Any]
    metrics: dict[str, Any]
    bundle: str | None
    flow: dict[str, Any]
    seconds: float
    peak_memory_mib: int | None
    threads: int | None
    quality: str | None = None
    headline: str | None = None
    curves: tuple[Series, ...] = ()
    videos: tuple[Video, ...] = ()
    worst: tuple[Video, ...] = ()
    pruning: Pruning | None = None
    trials: Trials | None = None
    layout: Layout | None = None
    manifest: dict[str, Any] | None = None
    sheets: tuple[tuple[int, Path], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def plugin_kind(self) -> str:
        """``distill: affine``; the plugins alone for the implicit first step."""
        return self.plugin if self.kind == "base" else f"{self.kind}: {self.plugin}"

    @property
    def source(self) -> str | None:
        """The step (or path) whose bundle it reads."""
        return self.inputs.get("input")

    @property
    def options(self) -> dict[str, Any]:
        """The step's own options, defaults included."""
        return dict(self.parts.get("step", {}).get("options", {}))


@dataclass(frozen=True)
class Run:
    """A run folder. ``pending`` names the recipe's steps that are not finished."""

    name: str
    steps: tuple[Step, ...]
    pending: tuple[str, ...]
    recipe: str
    environment: dict[str, Any]

    def step(self, name: str | None) -> Step | None:
        """Return a finished step by its name."""
        return next((step for step in self.steps if step.name == name), None)

    def of_kind(self, kind: str) -> list[Step]:
        """Return the finished steps of one kind."""
        return [step for step in self.steps if step.kind == kind]


def read_run(run: Path) -> Run:
    """Read everything the report shows.

    Raises:
        UserError: ``run.json`` is missing, or a file of a finished step is not valid JSON.
    """
    if not (run / "run.json").is_file():
        raise UserError("not a run folder (run.json is missing)", where=str(run))
    listing = read_json(run / "run.json")
    folders = {name: run / "steps" / name for name in listing["steps"]}
    finished = {name: folder for name, folder in folders.items() if (folder / "step.json").is_file()}
    steps = tuple(read_step(folder) for folder in finished.values())
    recipe = run / "recipe.yaml"
    return Run(
        name=listing["name"],
        steps=steps,
        pending=tuple(name for name in folders if name not in finished),
        recipe=recipe.read_text("utf-8") if recipe.is_file() else "",
        environment=read_environment(finished.values(), steps),
    )


def read_step(folder: Path) -> Step:
    """Read one finished step's folder."""
    record = read_json(folder / "step.json")
    parts, files = record.get("parts") or {}, record.get("files") or {}
    return Step(
        name=record["name"],
        kind=record["kind"],
        plugin=" + ".join(part["plugin"] for part in parts.values()),
        parts=parts,
        inputs=record.get("inputs") or {},
        model=record.get("model") or {},
        metrics=record.get("metrics") or {},
        bundle=record.get("bundle"),
        flow=read_bundle(folder).get("flow") or {},
        seconds=record.get("seconds") or 0.0,
        peak_memory_mib=record.get("peak_memory_mib"),
        threads=record.get("threads"),
        quality=record.get("quality"),
        headline=record.get("headline"),
        curves=read_curves(folder / record["curves"]) if record.get("curves") else (),
        videos=read_videos(folder / files["videos"]) if "videos" in files else (),
        worst=read_videos(folder / files["worst"]) if "worst" in files else (),
        pruning=read_pruning(folder),
        trials=read_trials((record.get("metrics") or {}).get("trials")),
        layout=read_layout(folder),
        manifest=read_manifest(folder),
        warnings=tuple(note.removeprefix(WARNED) for note in record.get("notes") or () if note.startswith(WARNED)),
        sheets=tuple((int(path.stem.rpartition("-")[2]), path) for path in sorted(folder.glob("samples/step-*.jpg"))),
    )


def read_curves(path: Path) -> tuple[Series, ...]:
    """Read the logged quantities in the order of their first appearance; a torn last line is passed over."""
    points: dict[str, tuple[list[int], list[float]]] = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                steps, values = points.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(float(value))
    return tuple(Series(name, tuple(steps), tuple(values)) for name, (steps, values) in points.items())


def read_videos(listing: Path) -> tuple[Video, ...]:
    """List the clips a listing names, those whose file is there.

    Raises:
        UserError: a file lies outside the listing's folder.
    """
    found = []
    for entry in read_json(listing):
        path = (listing.parent / entry["file"]).resolve()
        if not path.is_relative_to(listing.parent.resolve()):
            raise UserError(f"names a file outside its folder: {entry['file']}", where=str(listing))
        if path.is_file():
            found.append(Video(str(entry["caption"]), str(entry["column"]), path))
    return tuple(found)


def read_pruning(folder: Path) -> Pruning | None:
    """Read kept.json and search.json of a prune step."""
    if not (folder / "kept.json").is_file():
        return None
    data = read_json(folder / "kept.json")
    history = read_json(folder / "search.json") if (folder / "search.json").is_file() else {}
    return Pruning(
        axes=tuple(AxisLayout(**{key: axis[key] for key in AxisLayout.__dataclass_fields__}) for axis in data["axes"]),
        kept={name: units_of(record) for name, record in data["kept"].items()},
        snapshots=tuple((row["step"], row["keep"]) for row in history.get("probabilities", [])),
        chosen=history.get("chosen", {}),
        comparison=history.get("comparison", {}),
    )


def units_of(record: dict[str, Any] | list[int]) -> frozenset[int]:
    """Read ``{"of": 8, "units": [[0, 3], [5, 6]]}`` (ranges without their end) or plain indices as a set of units."""
    entries = record["units"] if isinstance(record, dict) else record
    return frozenset(
        unit for entry in entries for unit in ([entry] if isinstance(entry, int) else range(entry[0], entry[1]))
    )


def read_bundle(folder: Path) -> dict[str, Any]:
    """Read bundle.json of a step that gives a bundle; empty for the others."""
    path = folder / "bundle" / "bundle.json"
    return dict(read_json(path)) if path.is_file() else {}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of an exported package; of one a width, the first, with all their artifacts by width."""
    path = folder / "files" / "manifest.json"
    if path.is_file():
        return dict(read_json(path))
    found = {path.parts[-3].partition("-")[2]: read_json(path) for path in folder.glob("width-*/files/manifest.json")}
    if not found:
        return None
    artifacts = [
        {**entry, "component": f"{entry['component']}, width {width}"}
        for width in sorted(found, key=float)
        for entry in found[width]["artifacts"]
    ]
    return {**next(iter(found.values())), "artifacts": artifacts}


def read_environment(folders: Iterable[Path], steps: tuple[Step, ...]) -> dict[str, Any]:
    """Describe what the steps ran on: the newest bundle's lineage, and this machine's processors."""
    environment: dict[str, Any] = dict.fromkeys(("torch", "device", "seed"))
    for folder in folders:
        if lineage := read_bundle(folder).get("lineage"):
            environment = {key: lineage[-1].get(key) for key in environment}
    threads = sorted({step.threads for step in steps if step.threads})
    return environment | {
        "threads": threads[0] if len(threads) == 1 else threads or None,
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
    }
