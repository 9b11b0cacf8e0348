"""``dit-compress prune``: a folder, a bundle or a LoRA, without a recipe."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_compress.cli.options import Seed
from dit_compress.core.errors import UserError
from dit_compress.core.limits import MAX_CELLS
from dit_compress.core.progress import say, speak
from dit_compress.plugin import defaults

if TYPE_CHECKING:
    from collections.abc import Iterable

Size = Annotated[
    str | None, typer.Option(metavar="N", help="Parameters that may stay, such as 1e9, 915_000_000 or 50%.")
]
Work = Annotated[str | None, typer.Option(metavar="N", help="FLOPs of one call that may stay, such as 2.4e13 or 50%.")]
Curves = Annotated[Path | None, typer.Option(help="A report of 'sensitivity', which decides what a budget cuts.")]
Seconds = Annotated[
    str | None, typer.Option(metavar="N", help="Seconds of one call that may stay, such as 0.05 or 50%.")
]
Table = Annotated[Path | None, typer.Option(help="Seconds per piece, a JSON file; measured here if absent.")]
Machine = Annotated[str | None, typer.Option(help="The machine that the table is for; this one if absent.")]
Cells = Annotated[
    tuple[int, int, int] | None,
    typer.Option(min=1, max=MAX_CELLS, help="Latent cells T H W of that call; a bundle's own if absent."),
]
_ALL, _COUNTS, _SHARES = ",".join(defaults.LEVELS), defaults.EXAMPLE_COUNTS, defaults.EXAMPLE_SHARES
Levels = Annotated[str | None, typer.Option(metavar="LEVEL,…", help=f"What a budget may cut; {_ALL} if absent.")]
Counts = Annotated[
    str | None,
    typer.Option(metavar="LEVEL=N,…", help=f"Units to remove, such as {_COUNTS},{defaults.EXAMPLE_STACK}."),
]
Shares = Annotated[str | None, typer.Option(metavar="LEVEL=X,…", help=f"Shares that stay, such as {_SHARES}.")]


def prune(
    path: Annotated[Path, typer.Argument(help="A diffusers folder, a bundle, a run; with --plan also a LoRA.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; must not exist yet.")] = None,
    params: Size = None,
    flops: Work = None,
    latency: Seconds = None,
    table: Table = None,
    machine: Machine = None,
    size: Cells = None,
    levels: Levels = None,
    curves: Curves = None,
    remove: Counts = None,
    keep: Shares = None,
    modulation: Annotated[
        str | None, typer.Option(metavar="rank=N|table=X,…", help="Instead of units: per-block modulation (AdaLN).")
    ] = None,
    search: Annotated[str, typer.Option(help="The search plugin that chooses the units.")] = defaults.SEARCH,
    plan: Annotated[
        Path | None, typer.Option(help="Repeat the plan of a pruned folder (or its pruning.json) instead of a search.")
    ] = None,
    *,
    heterogeneous: Annotated[
        bool, typer.Option("--heterogeneous", help="A budget gives each block widths of its own.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would stay; read and write no weights.")
    ] = False,
    seed: Seed = 0,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", help="A Python file with a plugin.")] = None,
) -> None:
    """Prune a model to a budget or to counts, without a recipe."""
    if not path.exists():
        raise UserError("there is no such path", where=str(path))
    if out is None and not dry_run:
        raise UserError("nothing says where to write", mend="Give --out, or --dry-run")
    speak()
    say(f"reading {path}")
    from dit_compress.plugin.registry import use
    from dit_compress.pruning.prune import planned

    use(plugin or ())
    if plan is not None:
        given = (params, flops, latency, table, machine, size, levels, curves, remove, keep, modulation)
        asked = any(given) or search != defaults.SEARCH or heterogeneous or dry_run or bool(seed)
        _by_plan(plan, path, out, asked=asked)
    else:
        what: dict[str, Any] = {"params": _number("--params", params), "flops": _number("--flops", flops), "size": size}
        what |= {
            "latency": _latency(_number("--latency", latency), table, machine),
            "levels": levels.split(",") if levels else None,
        }
        what |= {"heterogeneous": heterogeneous, "curves": curves}
        what |= {"remove": _counts("--remove", remove, int), "keep": _counts("--keep", keep, float), "search": search}
        what |= {"modulation": _modulation(modulation)}
        if dry_run:
            before, after = planned(path, **what)
            log = after.need_denoiser().log[len(before.need_denoiser().log) :]
            _print_plan(log, after.build_denoiser().module)
            _warn(note.partition("; ")[2] for note in after.notes[len(before.notes) :])
        else:
            _print_plan(*_pruned(path, what, out, seed))
    if not dry_run:
        typer.echo(out)


def _pruned(path: Path, what: dict[str, Any], out: Path | None, seed: int) -> tuple[Any, Any]:
    """Return the last transform-log entry of the pruned model, and the model."""
    from dit_compress.pruning.folder import read_log
    from dit_compress.pruning.prune import prune as prune_model

    assert out is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        module = prune_model(path, **what, out=out, seed=seed)
    _warn(str(item.message) for item in caught if str(item.message).startswith("level "))
    return read_log(out)[-1:], module


def _warn(notes: Iterable[str]) -> None:
    """Return what a budget left alone, and why."""
    for note in notes:
        if note:
            typer.echo(note, err=True)


def _by_plan(plan: Path, path: Path, out: Path | None, *, asked: bool) -> None:
    from dit_compress.pruning.prune import free, prune_by_plan
    from dit_compress.structure.files.load_pruned import edits_of
    from dit_compress.structure.files.lora import is_lora, prune_lora
    from dit_compress.structure.files.pruned import read_plan

    if asked or out is None:
        raise UserError("a plan says already what stays", mend="Give --plan and --out alone")
    if path.is_file() or is_lora(path):
        record = read_plan(plan)
        prune_lora(path, free(out) or out, edits_of(record), record["base"], record.get("weights"))
    else:
        prune_by_plan(plan, path, out)


def _number(option: str, text: str | None) -> float | str | None:
    """Return a number in the option's unit, or a share of the whole (``50%``) as it is."""
    if text is None or text.endswith("%"):
        return text
    unit, least, mend = _UNITS[option]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not least <= value < float("inf"):
        raise UserError(f"{option} takes a number of {unit}, got {text!r}", mend=f"Write {mend}, or 50%")
    return value


_UNITS = {
    "--params": ("parameters", 1, "1e9 or 915_000_000"),
    "--flops": ("FLOPs", 1, "2.4e13"),
    "--latency": ("seconds", 1e-9, "0.05"),
}
"""Unit of an option's number, the least one, and an example."""


def _latency(seconds: float | str | None, table: Path | None, machine: str | None) -> dict[str, Any] | None:
    """Return a latency budget as the step's options say it."""
    if seconds is None:
        if table or machine:
            raise UserError("--table and --machine go with --latency", mend="Give --latency SECONDS")
        return None
    return {"seconds": seconds, "table": None if table is None else str(table), "machine": machine}


def _counts(option: str, text: str | None, kind: type[int] | type[float]) -> dict[str, Any]:
    """Parse ``block=8,head=12`` into ``{"block": 8, "head": 12}``."""
    found = {}
    for item in (text or "").split(",") if text else ():
        level, _, value = item.partition("=")
        try:
            found[level.strip()] = kind(value)
        except ValueError as error:
            example = _COUNTS if kind is int else _SHARES
            raise UserError(
                f"{option} takes LEVEL={'N' if kind is int else 'X'}, got {item!r}", mend=f"Write {example}"
            ) from error
    return found


def _modulation(text: str | None) -> dict[str, Any] | None:
    """Parse ``rank=64``, ``table=1.0,0.75`` or ``table=schedule`` into the step's options."""
    if text is None:
        return None
    word, _, value = text.partition("=")
    try:
        if word == "rank":
            return {"rank": int(value)}
        if word == "table":
            return {"table": value if value == "schedule" else [float(item) for item in value.split(",")]}
    except ValueError:
        pass
    raise UserError(
        f"--modulation takes rank=N or table=SIGMA,…, got {text!r}", mend="Write rank=64, or table=1.0,0.75,0.5,0.25"
    )


def _print_plan(log: Any, module: Any) -> None:
    """Print one line per level, then the size."""
    from dit_compress.model.figures import count_parameters
    from dit_compress.structure.edits import from_ranges, span

    counts: dict[str, list[tuple[int, int]]] = {}
    for entry in log:
        for name, record in entry["data"].get("kept", {}).items():
            counts.setdefault(name.partition(":")[0], []).append((record["of"], len(from_ranges(record["units"]))))
    made = [edit for entry in log for edit in entry["data"]["edits"] if edit["edit"] in ("Factor", "Tabulate")]
    for edit in made:
        if edit["edit"] == "Tabulate":
            typer.echo(f"modulation: {len(edit['modules'])} linears → tables of {len(edit['times'])} timesteps")
    ranks = [edit["rank"] for edit in made if edit["edit"] == "Factor"]
    if ranks:
        typer.echo(f"modulation: {len(ranks)} linears → rank {span(ranks)}")
    for level, pairs in counts.items():
        typer.echo(f"{level}: {span(of for of, _ in pairs)} → {span(stay for _, stay in pairs)}")
    typer.echo(f"{count_parameters(module):,} parameters stay")
