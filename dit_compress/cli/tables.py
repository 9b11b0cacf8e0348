"""Tables for the terminal: a plan, a model's axes, a proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dit_compress.core.errors import UserError
from dit_compress.data.source import data_folder
from dit_compress.model.figures import BYTES_FP32, TRAIN_COPIES
from dit_compress.model.paths import resolve_bundle
from dit_compress.plugin import defaults
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.recipe.model import BASE
from dit_compress.run.keys import nodes
from dit_compress.train.options import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.export.proof import Row
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.recipe.model import Recipe
    from dit_compress.run.plan import Planned
    from dit_compress.search.budget import Price
    from dit_compress.structure.facts import Axis


def plan_table(rows: Sequence[Planned], recipe: Recipe, run: Path, processes: int | None = None) -> Table:
    """One row per step: what goes in, what comes out, and whether it is there already.

    processes: adds what student and teacher hold on each of so many while they train.
    """
    columns: tuple[str, ...] = ("step", "kind", "parameters", "GFLOPs/call", "tokens", "memory", "cached", "notes")
    if processes:
        columns = (*columns[:6], f"training, each of {processes}", *columns[6:])
    sizes = {row.node.name: row.after.get("params", 0) for row in rows}
    table = Table(*columns, title=recipe.name, box=None, title_justify="left")
    cached = _cached(recipe, run)
    for row in rows:
        table.add_row(
            row.node.name,
            row.node.kind if row.node.kind == BASE else f"{row.node.kind}: {row.node.part.name}",
            _change(row, "params", lambda value: f"{value / 1e6:,.{1 if value > 1e8 else 2}f}M"),
            _change(row, "flops", lambda value: f"{value / 1e9:,.{0 if value > 1e12 else 3}f}"),
            _change(row, "tokens", lambda value: f"{value:,}"),
            _change(row, "memory_bytes", _memory),
            *([_training(row, sizes, processes)] if processes else []),
            "yes" if row.node.name in cached else "no",
            "; ".join(row.notes),
        )
    return table


def proof_table(rows: Sequence[Row]) -> Table:
    """One row per execution of an exported file."""
    table = Table("component", "file", "arithmetic", "inputs", "dB", "gate", "verdict", box=None)
    for row in rows:
        decibel = f"{row.comparison.psnr_db:.1f}"
        table.add_row(
            row.component, row.kind, row.arithmetic, row.input_set, decibel, f"{row.gate_db:.0f}", row.verdict
        )
    return table


def _training(row: Planned, sizes: Mapping[str, int], processes: int) -> str:
    """Weights, gradients, moments and average of the student, and the teacher's weights, in float32, shared out."""
    options = row.node.part.options if row.node.kind == "distill" else None
    if not isinstance(options, TrainOptions) or row.node.part.plugin.world != "all":
        return "–"
    copies = TRAIN_COPIES + (options.ema > 0)
    weights = copies * row.after.get("params", 0) + sizes.get(row.node.inputs.get("teacher", ""), 0)
    return _memory(BYTES_FP32 * weights / processes)


def _memory(size_bytes: float) -> str:
    """Bytes as a person reads them."""
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"


def _change(row: Planned, name: str, show: Any) -> str:
    before, after = row.before.get(name), row.after.get(name)
    if after is None:
        return "–"
    return show(after) if before in (None, after) else f"{show(before)} → {show(after)}"


def _cached(recipe: Recipe, run: Path) -> set[str]:
    """Steps whose finished folder has the key this recipe gives them (data prepared earlier, as found)."""
    from dit_compress.core.files import read_json, sha256_data
    from dit_compress.run.pipeline import Runner, finished

    if not (run / "run.json").is_file():
        return set()
    runner = Runner(recipe, run, 1)
    manifest = read_json(run / "run.json").get("manifest", "")
    if recipe.data is not None:
        folder = data_folder(run / "cache", recipe.data)
        try:
            manifest = sha256_data([dict(record) for record in recipe.data.build().manifest(folder)])
        except UserError:
            return set()
    return {node.name for node in nodes(recipe) if finished(run, node, runner.key(node, manifest))}


def open_denoiser(target: str) -> Denoiser:
    """A denoiser to look at: a bundle, a run, a folder of diffusers, or one of its classes (random weights)."""
    from dit_compress.model.bundle import Bundle

    path = Path(target)
    bundle = resolve_bundle(path)
    if (bundle / "bundle.json").is_file():
        return Bundle.open(bundle).spec.build_denoiser().to("meta")
    options: dict[str, Any] = {"class_name": target}
    if path.exists() or not target.isidentifier():
        from dit_compress.pruning.target import component_folder

        component_folder(path)
        options = {"path": target}
    from accelerate import init_empty_weights

    maker = make_part("model", {"use": defaults.MODEL, **options}, installed()).build()
    with init_empty_weights():
        module = maker.create()
    return maker.denoiser(module).to("meta")


def axes_table(denoiser: Denoiser, size_THW: tuple[int, int, int] | None = None) -> Table:
    """Axes by component (those alike in one row): units, parameters and FLOPs of one call; then what stays, and why.

    size_THW: latent cells of that call; the smallest example if None. A block's figures include its heads and channels.
    """
    from dit_compress.model.figures import count_parameters
    from dit_compress.search.budget import axis_kind, classes, inside, parameter_price

    structure, module = denoiser.structure(), denoiser.module
    axes = [axis for level in _granularities().values() for axis in level.axes(structure)]
    size = size_THW or denoiser.example_size
    prices = [parameter_price(module, axes), _flops(denoiser, axes, size)]
    totals = [None if price is None else price.of(axes, {}) for price in prices]
    title = f"{type(module).__name__}: {count_parameters(module):,} parameters"
    if totals[1] is not None:
        title += f"; {totals[1] / 1e9:,.3f} GFLOPs a call, latent {'x'.join(map(str, size))}"
    columns = ("axis", "level", "units", "parameters/unit", "share", "MFLOPs/unit", "share")
    table = Table(*columns, box=None, title_justify="left", title=title)

    def cells(each: list[float | None], count: int) -> list[str]:
        parameters, flops = each
        shares = [_share(None if x is None else x * count, whole) for x, whole in zip(each, totals, strict=True)]
        return [f"{parameters:,.0f}", shares[0], "–" if flops is None else f"{flops / 1e6:,.4f}", shares[1]]

    for alike in classes(axes, lambda axis: axis_kind(module, axis)):
        axis = alike[0]
        each: list[float | None] = []
        for price in prices:
            if price is None or not axis.blocks:
                each.append(None if price is None else price.units[axis.name])
                continue
            within = [one for index in range(axis.units) for one in inside(axes, axis, index)]
            whole = sum(price.blocks[axis.name]) + sum(price.units[one.name] * one.units for one in within)
            each.append(whole / axis.units)
        units = axis.units * len(alike)
        table.add_row(_named(alike), axis.level, str(axis.units), *cells(each, units))
    fixed = [None if price is None else price.fixed for price in prices]
    table.add_row("remainder", "–", "–", *cells(fixed, 1))
    for refusal in structure.refusals:
        table.add_row(refusal.path, "–", "–", "–", f"stays: {refusal.reason}")
    return table


def _flops(denoiser: Denoiser, axes: Sequence[Axis], size: tuple[int, int, int]) -> Price | None:
    """FLOPs of a call by component; None for a model that does not run on the meta device."""
    from dit_compress.search.budget import flops_price
    from dit_compress.structure.copies import meta_copy

    if any(cells % step for cells, step in zip(size, denoiser.patch, strict=True)):
        raise UserError(
            f"latent {list(size)} can't be divided by the patch {denoiser.patch}", mend="Give another --size"
        )
    try:
        return flops_price(meta_copy(denoiser), axes, size)
    except (UserError, RuntimeError, ValueError, TypeError, AttributeError):
        return None


def _share(part: float | None, whole: float | None) -> str:
    return f"{100 * part / whole:.1f}%" if part is not None and whole else "–"


def _named(alike: Sequence[Axis]) -> str:
    """``blocks.0–39.ffn``: the name of the first axis, with the blocks of all."""
    from dit_compress.structure.edits import as_ranges

    name = alike[0].name.partition(":")[2]
    if len(alike) == 1 or alike[0].block is None:
        return name
    blocks = as_ranges(sorted({axis.block for axis in alike if axis.block is not None}))
    spans = ",".join(str(start) if stop - start == 1 else f"{start}–{stop - 1}" for start, stop in blocks)
    head = f"{alike[0].stack}."
    return f"{head}{spans}{name.removeprefix(f'{head}{alike[0].block}')}"


def _granularities() -> dict[str, Any]:
    names = [entry.plugin.name for entry in installed().entries() if entry.kind == "granularity"]
    return {name: make_part("granularity", name, installed()).build() for name in names}
