"""The command line. Imports no torch at start."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dit_compress.cli.prune import prune
from dit_compress.core.errors import UserError
from dit_compress.core.progress import hush
from dit_compress.core.version import __version__
from dit_compress.plugin import defaults

if TYPE_CHECKING:
    from dit_compress.recipe.model import Recipe

app = typer.Typer(
    help="Turn a large video Diffusion Transformer into one that a phone can run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
PluginFiles = Annotated[
    list[str] | None, typer.Option("--plugin", help="A Python file with a plugin; may be repeated.")
]
RunFolder = Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/<name> if absent.")]
PackageFolder = Annotated[Path, typer.Argument(help="An exported package: a folder with manifest.json.")]
AllowUnverified = Annotated[
    bool, typer.Option("--allow-unverified", help="Exit 0 also where an exported file was not executed.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; results are bit for bit at an equal number.")]


def main() -> None:
    """Entry point: a user's mistake is one message and exit status 2."""
    hush()
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    except (typer.Exit, SystemExit) as leave:
        raise SystemExit(getattr(leave, "exit_code", getattr(leave, "code", 0))) from None
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None
    except Exception as error:
        # A wrong option. Typer may bring a click of its own, whose exceptions are not those of the package click.
        if not hasattr(error, "format_message") or not hasattr(error, "show"):
            raise
        error.show()
        raise SystemExit(2) from None
    if status:  # typer.Exit comes back as a number
        raise SystemExit(status)


@app.command()
def run(
    recipe: RecipePath,
    out: RunFolder = None,
    only: Annotated[str | None, typer.Option(help="Run just this step (its inputs must be finished).")] = None,
    force: Annotated[list[str] | None, typer.Option(help="Run this step again; may be repeated.")] = None,
    threads: Threads = None,
    allow_unverified: AllowUnverified = False,  # noqa: FBT002 - a switch
    plugin: PluginFiles = None,
) -> None:
    """Run a recipe. Finished steps are reused; after a kill the same command continues."""
    from dit_compress.run import torchrun as launch
    from dit_compress.run.pipeline import Runner

    crew = launch.Crew() if launch.processes() > 1 else None
    if crew is not None and crew.rank:
        raise typer.Exit(crew.follow())
    status = 2
    try:
        parsed = _load(recipe, plugin)
        folder = out or Path("runs") / parsed.name
        say = Console(stderr=True, highlight=False, soft_wrap=True).print
        runner = Runner(
            parsed,
            folder,
            threads or launch.default_threads(),
            plugin or (),
            frozenset(force or ()),
            lambda text: say(text, markup=False),
            crew=crew,
        )
        runner.run(only)
        status = 0
    finally:
        if crew is not None:
            crew.dismiss(status)
    typer.echo(folder / "report.html")
    _need_proven(folder, parsed, allow_unverified=allow_unverified)


@app.command()
def check(
    recipe: RecipePath,
    deep: Annotated[bool, typer.Option("--deep", help="Plan every step, and ask the exporters, too.")] = False,  # noqa: FBT002 - a switch
    plugin: PluginFiles = None,
) -> None:
    """Validate a recipe: every error at once, with its line. Reads no data and no weights."""
    parsed = _load(recipe, plugin)
    if deep:
        from dit_compress.run.plan import plan as planned

        for row in planned(parsed):
            for note in row.notes:
                typer.echo(f"{row.node.name}: {note}")
    typer.echo(f"{recipe}: {len(parsed.steps)} steps, no errors")


@app.command()
def plan(
    recipe: RecipePath,
    out: RunFolder = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Show what training holds on each of so many processes.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Print what each step makes of the model, without reading weights."""
    from dit_compress.cli.tables import plan_table
    from dit_compress.run.plan import plan as planned

    parsed = _load(recipe, plugin)
    _print(plan_table(planned(parsed, processes=processes or 1), parsed, out or Path("runs") / parsed.name, processes))


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(help="A bundle or run folder, a diffusers folder, or a class of diffusers.")],
    size: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Latent cells T H W that FLOPs are for; the smallest if absent.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Show what a model consists of: axes, parameters and FLOPs by component, what can be removed and what stays."""
    from dit_compress.cli.tables import axes_table, open_denoiser

    _registry(plugin)
    _print(axes_table(open_denoiser(target), size))


app.command()(prune)


@app.command()
def sensitivity(
    target: Annotated[str, typer.Argument(help="A bundle, or a run folder (its last bundle).")],
    out: Annotated[Path, typer.Option(help="Where the report and the figure go.")] = Path("sensitivity"),
    level: Annotated[
        list[str] | None, typer.Option(help=f"A level; may be repeated. {', '.join(defaults.LEVELS)} if absent.")
    ] = None,
    share: Annotated[list[float] | None, typer.Option(help="A share to remove; may be repeated.")] = None,
    search: Annotated[str, typer.Option(help="Which units go.")] = defaults.SEARCH,
    samples: Annotated[int, typer.Option(min=1, help="Clips on which quality is measured.")] = 64,
    size: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Latent cells T H W; the bundle's if absent.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Paired timings per point.")] = 7,
    each: Annotated[bool, typer.Option("--each", help="Curves of each axis, for widths of each block.")] = False,  # noqa: FBT002 - a switch
    table: Annotated[Path | None, typer.Option(help="Write a latency table of this machine, too.")] = None,
    plugin: PluginFiles = None,
) -> None:
    """Prune each level by and by; measure FLOPs, memory, latency and quality (Figure 3)."""
    from dit_compress.cli import sensitivity as figure3

    _registry(plugin)
    settings = figure3.Settings(search=search, samples=samples, size=size, rounds=rounds, each=each, table=table)
    settings = replace(settings, levels=level or settings.levels, shares=share or settings.shares)
    report = figure3.sensitivity(target, out, settings)
    _print(figure3.table_of(report))
    typer.echo(out / figure3.FIGURE)


@app.command()
def generate(
    caption: Annotated[str, typer.Argument(help="What the video shows.")],
    model: Annotated[Path, typer.Option(help="A bundle, or a run folder (its last bundle).")],
    out: Annotated[Path, typer.Option(help="The mp4 to write.")] = Path("video.mp4"),
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; the bundle's if absent.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Guidance; the bundle's if absent.")] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames, as the VAE takes them (1 + ratio·k, mostly); the bundle's if absent."),
    ] = None,
    size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width; the bundle's if absent.")] = None,
    fps: Annotated[float, typer.Option(min=1)] = 8.0,
    seed: int = 0,
    sampler: Annotated[str, typer.Option(help="A sampler plugin.")] = defaults.SAMPLER,
    plugin: PluginFiles = None,
) -> None:
    """Make a video from a caption."""
    from dit_compress.cli.generate import generate_file
    from dit_compress.recipe import make_part

    sample = make_part("sampler", {"use": sampler}, _registry(plugin), "--sampler").build().sample
    generate_file(
        caption, model, out, sample, num_steps=steps, guidance=guidance, frames=frames, size=size, fps=fps, seed=seed
    )
    typer.echo(out)


@app.command()
def encode(
    recipe: Annotated[Path, typer.Argument(help="A recipe; its data is encoded.")],
    vae: Annotated[Path, typer.Option(help="A bundle with the VAE, or a run folder (its last bundle).")],
    out: Annotated[Path, typer.Option(help=f"The folder for the shards; data: {{use: {defaults.ENCODED}}} reads it.")],
    rank: Annotated[int, typer.Option(min=0, help="Which share of the shards to write …")] = 0,
    world: Annotated[int, typer.Option(min=1, help="… of how many; one machine each.")] = 1,
    plugin: PluginFiles = None,
) -> None:
    """Encode a recipe's clips once, into shards that other runs read; goes on where it was broken off."""
    from dit_compress.cli.encode import encode_data

    typer.echo(encode_data(_load(recipe, plugin), vae, out, rank=rank, world=world))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html and summary.json of a run anew."""
    from dit_compress.report import write_report

    if not (folder / "run.json").is_file():
        raise UserError("not a run folder (run.json is missing)", where=str(folder))
    typer.echo(write_report(folder))


@app.command()
def verify(
    folder: PackageFolder,
    outputs: Annotated[
        Path | None, typer.Option(help="What a device computed: safetensors, <component>/<input set>/<output>.")
    ] = None,
    allow_unverified: AllowUnverified = False,  # noqa: FBT002 - a switch
    plugin: PluginFiles = None,
) -> None:
    """Prove an exported package on its saved inputs. Needs no torch; a stronger proof than the recorded one is kept."""
    from dit_compress.cli.tables import proof_table
    from dit_compress.export.folder import below_gates
    from dit_compress.export.verifying import verify_folder

    found = verify_folder(folder, _registry(plugin), outputs)
    _print(proof_table(found.rows))
    for component, reason in found.not_executed.items():
        typer.echo(f"{component}: not executed, {reason}")
    before, after = found.recorded
    typer.echo(
        f"fidelity of this proof: {found.fidelity}; recorded: {before}" + (f" → {after}" if after != before else "")
    )
    if found.not_executed and not allow_unverified:
        typer.echo("UNVERIFIED. Verify where it can be executed, or give --allow-unverified")
    if said := below_gates([row.as_data() for row in found.rows]):
        typer.echo(said)
    executed = all(row.verdict == "passed" for row in found.rows)
    raise typer.Exit(0 if found.passed or (allow_unverified and executed) else 1)


@app.command()
def play(
    folder: PackageFolder,
    caption: Annotated[str | None, typer.Argument(help="What the video shows.")] = None,
    out: Annotated[Path, typer.Option(help="The mp4 to write.")] = Path("video.mp4"),
    text: Annotated[
        Path | None, typer.Option(help="Embeddings, where the text encoder is on a host: safetensors, text/<name>.")
    ] = None,
    size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Frames, height, width, of the files' sizes; the first if absent."),
    ] = None,
    golden: Annotated[bool, typer.Option("--golden", help="Play the golden sample, compare every stage.")] = False,  # noqa: FBT002 - a switch
    seed: int = 0,
    plugin: PluginFiles = None,
) -> None:
    """Make a video from an exported package alone: NumPy, and the runtime of its files."""
    from dit_compress.export.player import Player

    player = Player(folder, _registry(plugin), size)
    if golden:
        gate, stages = player.manifest["sample"]["gate_db"], player.golden()
        for stage, decibel in stages.items():
            typer.echo(f"{stage}: {decibel} dB")
        raise typer.Exit(0 if min(stages.values()) >= gate else 1)
    if caption is None and text is None:
        raise UserError("nothing to show", mend="Give a caption, or --golden")
    from dit_compress.data.video import write_video

    write_video(out, player.video(caption or "", seed, text), player.manifest["video"]["fps"])
    typer.echo(out)


@app.command()
def plugins(plugin: PluginFiles = None) -> None:
    """List the plugins, the broken ones with reason and mend."""
    registry = _registry(plugin)
    table = Table("kind", "name", "what", "from", box=None)
    for entry in registry.entries():
        table.add_row(entry.kind, entry.plugin.name, entry.plugin.summary, f"{entry.distribution} {entry.version}")
    _print(table)
    for broken in registry.broken:
        typer.echo(f"broken: {broken.name} ({broken.distribution}): {broken.reason}. {broken.mend}")


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="exporter, granularity, distiller, latent, search or discriminator.")],
    name: Annotated[str, typer.Argument(help="Of the plugin, as recipes will say it: my-npu.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write; dit-KIND-NAME here if absent.")] = None,
) -> None:
    """Write a small package with a working plugin, and the contract of its kind as tests."""
    from dit_compress.scaffold import new_package

    folder = new_package(kind, name, out, _registry(None))
    typer.echo(folder)
    typer.echo(f"Next: pip install --no-deps -e {folder}, then pytest {folder}; search it for 'Change this:'", err=True)


@app.command()
def schema(plugin: PluginFiles = None) -> None:
    """Print the JSON Schema of recipes, installed plugins included."""
    from dit_compress.recipe.schema import recipe_schema

    typer.echo(json.dumps(recipe_schema(_registry(plugin)), indent=1))


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn a large video Diffusion Transformer into one that a phone can run."""


def _registry(files: list[str] | None) -> Any:
    from dit_compress.plugin.registry import use

    return use(files or ())


def _load(path: Path, files: list[str] | None) -> Recipe:
    from dit_compress.recipe import load

    return load(path, _registry(files))


def _need_proven(folder: Path, recipe: Recipe, *, allow_unverified: bool) -> None:
    """Exit 1 where an export step wrote files that nothing executed, or that are below their gates."""
    from dit_compress.core.files import read_json
    from dit_compress.export.folder import UNVERIFIED, below_gates

    failed = False
    for step in recipe.steps:
        path = folder / "steps" / step.name / "files" / "manifest.json"
        manifest = read_json(path) if step.kind == "export" and path.is_file() else {}
        if manifest.get("fidelity") == "none":
            typer.echo(
                f"{step.name}: {UNVERIFIED}. Nothing executed its files; run dit-compress verify where something can"
            )
            failed |= not allow_unverified
        elif said := below_gates([row for entry in manifest.get("artifacts", ()) for row in entry["proof"]]):
            typer.echo(
                f"{step.name}: {said}. Choose more bits or float32, or train on: {path.parent} was written all the same"
            )
            failed = True
    if failed:
        raise typer.Exit(1)


def _print(table: Any) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table)
