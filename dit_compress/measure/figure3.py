"""Figure 3 of the paper for any bundle: measured, as JSON and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, write_json
from dit_compress.model.bundle import Bundle
from dit_compress.plugin import defaults
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load, make_part
from dit_compress.search.importance import top
from dit_compress.search.levels import found_axes, named_levels
from dit_compress.search.problem import SearchProblem, Selection
from dit_compress.step.context import Context
from dit_compress.structure.modulation import need_any_timestep, timetable_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress.measure.quality import Grid
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis, Kept

REPORT = "sensitivity.json"
FIGURE = "sensitivity.png"


@dataclass(frozen=True)
class Settings:
    """The points to measure. shares: of each level, removed. size: latent cells (T, H, W); the recipe's if None.

    search: which units go; by data where there is some, else by their weights, if None. each: curves of each axis, too.
    table: where to write a latency table of the whole model, if anywhere.
    """

    levels: Sequence[str] = defaults.LEVELS
    search: str | None = None
    shares: Sequence[float] = (0.125, 0.25, 0.375, 0.5)
    samples: int = 64
    size: tuple[int, int, int] | None = None
    rounds: int = 7
    each: bool = False
    table: Path | None = None


def sensitivity(target: str, out: Path, settings: Settings) -> dict[str, Any]:
    """Measure, write ``sensitivity.json`` and ``sensitivity.png`` into ``out``, give the report.

    Quality is the flow-matching loss on a fixed grid where the target belongs to a run with data, else the
    drift from the whole model's velocity.
    """
    from dit_compress.measure.figure import four_panels
    from dit_compress.measure.latency import machine
    from dit_compress.measure.sensitivity import masked_loss, measure, quality_curves

    shares = sorted(settings.shares)
    if not shares or not 0 < shares[0] <= shares[-1] < 1:
        raise UserError(f"shares to remove must lie between 0 and 1, got {list(shares)}")
    context, denoiser = opened(target, out)
    levels = axes_of(denoiser, settings.levels)
    size = settings.size or latent_size(context, denoiser)
    if any(cells % step for cells, step in zip(size, denoiser.patch, strict=True)):
        raise UserError(f"latent {size} can't be divided by the patch {denoiser.patch}", mend="Give another --size")
    search = settings.search or best_search(context, denoiser)
    every = {axis.name: axis for found in levels.values() for axis in found}
    chooser = Chooser(search, denoiser, context, tuple(every.values()))
    if settings.table is not None:
        write_table(settings.table, context, levels, size, settings.rounds)
    grid = grid_of(context, denoiser, size, settings.samples)
    loss = masked_loss(denoiser, levels, grid)
    report = quality_curves(levels, chooser, loss, grid.name, shares, each=settings.each)
    measure(denoiser, levels, report, size, settings.rounds)
    report |= {"model": target, "size": list(size), "machine": machine(), "search": search}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / REPORT, report)
    four_panels(report, out / FIGURE)
    return report


# ------------------------------------------------------------------ what it works on


def opened(target: str, out: Path) -> tuple[Context, Denoiser]:
    """Put the bundle into a context: with the run's data where it belongs to a run, with none elsewhere."""
    bundle = Bundle.open(target)
    run = next((folder for folder in bundle.path.resolve().parents if (folder / "run.json").is_file()), None)
    shared: dict[str, Any] = {"parts": {}, "video": bundle.spec.video, "seed": 0, "manifest_digest": ""}
    if run is not None:
        recipe = load(run / "recipe.yaml", installed())
        manifest = read_json(run / "run.json").get("manifest", "")
        video = recipe.video or bundle.spec.video
        shared = {"parts": dict(recipe.shared), "video": video, "seed": recipe.seed, "manifest_digest": manifest}
    context = Context(
        name="sensitivity",
        folder=out,
        cache=(run or out) / "cache",
        bundles={"input": bundle},
        names={"input": target},
        **shared,
    )
    return context, bundle.denoiser().eval()


def axes_of(denoiser: Denoiser, names: Sequence[str]) -> dict[str, list[Axis]]:
    """Return the axes of each level that is named; UserError for an unknown level, and for one that finds nothing."""
    return found_axes(named_levels(names), denoiser)[0]


def latent_size(context: Context, denoiser: Denoiser) -> tuple[int, int, int]:
    """Return the latent cells of the bundle's video; the smallest example where it has no VAE."""
    spec = context.input.spec
    if spec.latent is None or context.video is None:
        return denoiser.example_size
    _, *size = context.latent_shape()
    return (size[0], size[1], size[2])


def grid_of(context: Context, denoiser: Denoiser, size: tuple[int, int, int], samples: int) -> Grid:
    """Return held-out clips where there are some, else noise and the whole model's answers."""
    from dit_compress.measure.quality import data_grid, drift_grid

    if not has_data(context):
        return drift_grid(denoiser, size, samples, context.input.flow)
    text = context.text()
    return data_grid(context.latents("test", text), text, context.input.flow, samples, denoiser.possible)


def has_data(context: Context) -> bool:
    """Tell whether there are clips, and what encodes them."""
    spec = context.input.spec
    return spec.latent is not None and spec.text is not None and "data" in context.parts


def best_search(context: Context, denoiser: Denoiser) -> str:
    """Return the search by data where there is some and the model can be called at any noise level."""
    looks = has_data(context) and timetable_of(denoiser.module) is None
    return defaults.SEARCH_BY_DATA if looks else defaults.SEARCH


class Chooser:
    """The units that go, by a search plugin. What ranks each unit whatever else stays does so once, for all points."""

    def __init__(self, name: str, denoiser: Denoiser, context: Context, axes: Sequence[Axis] = ()) -> None:
        part = make_part("search", name, installed())
        if part.plugin.data:
            need_any_timestep(denoiser.module, f"the search {name!r}")
        self.search = part.build()
        self.denoiser, self.context, self.scores = denoiser, context, dict[str, list[float]]()
        if axes and name in (defaults.SEARCH, defaults.SEARCH_BY_DATA):
            self.scores |= self._found(axes, {axis.name: 1 for axis in axes}).history["scores"]

    def __call__(self, axes: Sequence[Axis], keep: Mapping[str, int]) -> Kept:
        """Return the units of some axes, the others whole."""
        if not self.scores.keys() >= keep.keys():
            return dict(self._found(axes, keep).kept)
        return {axis.name: top(torch.tensor(self.scores[axis.name]), keep[axis.name]) for axis in axes}

    def _found(self, axes: Sequence[Axis], keep: Mapping[str, int]) -> Selection:
        found: Selection = self.search.search(SearchProblem(self.denoiser, tuple(axes), dict(keep)), self.context)
        return found


def write_table(
    path: Path, context: Context, levels: Mapping[str, Sequence[Axis]], size: tuple[int, int, int], rounds: int
) -> None:
    """Measure the latency table and write it."""
    from dit_compress.measure.table import measured_table

    axes = [axis for found in levels.values() for axis in found]
    table = measured_table(context.input.spec.build_denoiser().to("meta"), axes, size, rounds)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, table)
