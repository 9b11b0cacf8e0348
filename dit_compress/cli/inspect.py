"""``dit-compress inspect``: what a model consists of."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dit_compress.cli.options import PluginFiles, registry, show
from dit_compress.core.errors import UserError
from dit_compress.core.limits import MAX_CELLS
from dit_compress.core.progress import say, speak

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.search.budget import Price
    from dit_compress.structure.facts import Axis


def inspect(
    target: Annotated[str, typer.Argument(help="A bundle or run folder, a diffusers folder, or a class of diffusers.")],
    size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(min=1, max=MAX_CELLS, help="Latent cells T H W that FLOPs are for; the smallest if absent."),
    ] = None,
    peer: Annotated[
        bool, typer.Option("--peer", help="Say where Torch-Pruning's own dependency graph agrees with these axes.")
    ] = False,
    plugin: PluginFiles = None,
) -> None:
    """Show what a model consists of: axes, parameters and FLOPs by component, what can be removed and what stays.

    Weights that lie in the folder are looked through for NaN and infinity at the end.
    """
    speak()
    say(f"reading {target}")
    from dit_compress.pruning.target import empty_denoiser, weights_folder
    from dit_compress.structure.files.finite import need_finite_files

    registry(plugin)
    show(axes_table(empty_denoiser(target), size, peer=peer))
    if folder := weights_folder(target):
        need_finite_files(folder)


def axes_table(denoiser: Denoiser, size_THW: tuple[int, int, int] | None = None, *, peer: bool = False) -> Table:
    """Lay out axes by component, those alike in one row: units, parameters and FLOPs of one call; what stays, and why.

    size_THW: latent cells of that call; the smallest example if None. A block's figures include its heads and channels.
    peer: with what Torch-Pruning's graph says to each.
    """
    from dit_compress.model.figures import count_parameters
    from dit_compress.search.budget import axis_kind, classes, inside, parameter_price
    from dit_compress.structure.compact import block_axes
    from dit_compress.structure.files.pruned import log_of
    from dit_compress.structure.nesting import nesting_of

    structure, module = denoiser.structure(), denoiser.module
    axes = [axis for level in _granularities().values() for axis in level.axes(structure)]
    known = {axis.name for axis in axes}
    axes += [axis for axis in block_axes(structure) if axis.name not in known]
    size = size_THW or denoiser.example_size
    prices = [parameter_price(module, axes), _flops(denoiser, axes, size)]
    totals = [None if price is None else price.of(axes, {}) for price in prices]
    title = f"{type(module).__name__}: {count_parameters(module):,} parameters"
    if totals[1] is not None:
        title += f"; {totals[1] / 1e9:,.3f} GFLOPs a call, latent {'x'.join(map(str, size))}"
    if (nesting := nesting_of(log_of(module))) is not None:
        title += f"; nested widths {nesting}"
    columns = ["axis", "level", "units", "parameters/unit", "share", "MFLOPs/unit", "share"]
    verdicts: Mapping[str, str] = {}
    if peer:
        verdicts, said = _peer(denoiser, axes)
        columns, title = [*columns, "torch-pruning"], f"{title}\n{said}"
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
        table.add_row(
            _named(alike),
            axis.level,
            str(axis.units),
            *cells(each, units),
            *([_counted(alike, verdicts)] if peer else []),
        )
    fixed = [None if price is None else price.fixed for price in prices]
    table.add_row("remainder", "–", "–", *cells(fixed, 1))
    for refusal in structure.refusals:
        table.add_row(refusal.path or type(module).__name__, "–", "–", "–", f"stays: {refusal.reason}")
    return table


def _flops(denoiser: Denoiser, axes: Sequence[Axis], size: tuple[int, int, int]) -> Price | None:
    """Count the FLOPs of a call by component; None for a model that does not run on the meta device."""
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


def _peer(denoiser: Denoiser, axes: Sequence[Axis]) -> tuple[Mapping[str, str], str]:
    """Return what Torch-Pruning's graph says to each axis, and a line with the counts."""
    from dit_compress.measure.peer import compare

    say("tracing Torch-Pruning's graph")
    verdicts, why = compare(denoiser, axes)
    return verdicts, f"torch-pruning: {_counted(axes, verdicts)}{f'; it builds no graph ({why})' if why else ''}"


def _counted(axes: Sequence[Axis], verdicts: Mapping[str, str]) -> str:
    """Return ``agrees 18, differs 1``."""
    found = Counter(verdicts[axis.name] for axis in axes)
    return ", ".join(f"{verdict} {count}" for verdict, count in found.most_common())


def _share(part: float | None, whole: float | None) -> str:
    return f"{100 * part / whole:.1f}%" if part is not None and whole else "–"


def _named(alike: Sequence[Axis]) -> str:
    """Return ``blocks.0–39.ffn``: the name of the first axis, with the blocks of all."""
    from dit_compress.structure.edits import as_ranges

    name = f"{alike[0].name.partition(':')[2]}{_stream(alike[0])}"
    if len(alike) == 1 or alike[0].block is None:
        return name
    paths = dict.fromkeys(axis.block_path for axis in alike)
    head, _, first = alike[0].block_path.rpartition(".")
    if any(not path.removeprefix(f"{head}.").isdigit() for path in paths):
        return f"{','.join(paths)}{name.removeprefix(alike[0].block_path)}"
    blocks = as_ranges(sorted(int(path.removeprefix(f"{head}.")) for path in paths))
    spans = ",".join(str(start) if stop - start == 1 else f"{start}–{stop - 1}" for start, stop in blocks)
    return f"{head}.{spans}{name.removeprefix(f'{head}.{first}')}"


def _stream(axis: Axis) -> str:
    """Which modules an axis is of, where its name only counts (``blocks.0.#2``): `` (txt_mlp)``."""
    if "#" not in axis.name:
        return ""
    owners = [member.tensor.removeprefix(f"{axis.block_path}.").rpartition(".")[0] for member in axis.members]
    return f" ({', '.join(dict.fromkeys(owners))})"


def _granularities() -> dict[str, Any]:
    from dit_compress.plugin.registry import installed
    from dit_compress.recipe import make_part

    names = [entry.plugin.name for entry in installed().entries() if entry.kind == "granularity"]
    return {name: make_part("granularity", name, installed()).build() for name in names}
