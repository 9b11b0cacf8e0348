"""Commands on harmed files and with hostile arguments: one message each, whatever is wrong, and nothing left behind.

    python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--only KIND] [--show]

A case is one command in this process, or a reader that commands call, with a limit of time. The last line is one JSON
object: ``cases``, ``tracebacks``, ``hangs``, ``left_behind`` (files in the output place after a refusal), ``statuses``
(how many ended with which). Exit status 1 where one of the middle three is not 0. ``--show`` prints every case that
failed, and how it can be made again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import typer
from hostile import RECIPES, WORDS, Copy, header_harm, json_harm, lines_harm, material, torn, yaml_harm

from dit_compress.cli import app as cli
from dit_compress.core.errors import UserError
from dit_compress.data.clips import read_folder
from dit_compress.export.folder import read_manifest
from dit_compress.model.bundle import Bundle
from dit_compress.plugin.registry import Registry, installed
from dit_compress.recipe import load
from dit_compress.structure.files.load_pruned import edits_of
from dit_compress.structure.files.pruned import read_plan
from dit_compress.structure.files.tensor_files import open_weights, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hostile import Harm

CPU_LIMIT_S, LIMIT_S = 20, 200
"""Of one case: processor time, and time on the clock."""


class Hang(BaseException):
    """A case took too long. No Exception: nothing on the way catches it."""


class _Terminal(io.TextIOWrapper):
    """Takes UTF-8 as a pipe does; what can't be encoded is an error."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        """Everything that was printed."""
        self.flush()
        return self.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]


@dataclass
class Case:
    """One case at work. folder: its own; copies: of material, kept from case to case; printed: what it said."""

    random: Random
    material: Path
    folder: Path
    copies: dict[str, Copy] = field(default_factory=dict)
    printed: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """The output place, an empty folder."""
        return self.folder / "out"

    def harm(self, name: str, file: str, how: Harm) -> Path:
        """Return a copy of some material with one file harmed."""
        data = how(self.random, (self.material / name / file).read_bytes())
        return self.harmed(name, {file: data})

    def harmed(self, name: str, files: Mapping[str, bytes]) -> Path:
        """Return a copy of some material with other bytes in these files."""
        if name not in self.copies:
            self.copies[name] = Copy(self.material / name, self.folder.parent / "copies" / name)
        for file, data in files.items():
            self.copies[name].harm(file, data)
        return self.copies[name].folder

    def command(self, *words: Any) -> int:
        """Run a command here; its exit status."""
        self.said = [str(word) for word in words]
        printed, errors, before = _Terminal(), io.StringIO(), sys.argv
        sys.argv = ["dit-compress", *self.said]
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
                cli.main()
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else 0
        finally:
            sys.argv, self.printed = before, printed.text() + errors.getvalue()
        return 0


# ------------------------------------------------------------------ kinds of cases


def read(case: Case, reader: Callable[[], Any]) -> int:
    """Return what a command would end with that only reads."""
    try:
        reader()
    except UserError as error:
        case.printed = str(error)
        return 2
    return 0


def check(case: Case) -> int:
    """``check`` of a recipe."""
    return case.command("check", _recipe(case))


def recipe(case: Case) -> int:
    """Return the reader of recipes, without the search for plugins."""
    path = _recipe(case)
    return read(case, lambda: load(path, installed()))


def _recipe(case: Case) -> Path:
    source, path = case.random.choice(sorted(RECIPES.glob("*.yaml"))), case.folder / "r.yaml"
    path.write_bytes(yaml_harm(case.random, source.read_bytes()))
    return path


def captions(case: Case) -> int:
    """Return the reader of captions, without decoding a video."""
    folder = case.harm("clips", "captions.jsonl", lines_harm)
    return read(case, lambda: read_folder(folder, frames=9, size=(64, 64)))


def header(case: Case) -> int:
    """Return the reader of safetensors headers."""
    folder = case.harm("ltx", "diffusion_pytorch_model.safetensors", header_harm)
    return read(case, lambda: read_header(folder / "diffusion_pytorch_model.safetensors"))


def shards(case: Case) -> int:
    """Return the reader of weights in shards, whose index says something else."""
    folder = case.harm("shards", "diffusion_pytorch_model.safetensors.index.json", json_harm)
    return read(case, lambda: open_weights(folder))


def manifest(case: Case) -> int:
    """Return the reader of manifests."""
    folder = case.harm("package/files", "manifest.json", json_harm)
    return read(case, lambda: read_manifest(folder, whole=True))


def record(case: Case) -> int:
    """Return the reader of a bundle's record."""
    folder = case.harm("bundle", "bundle.json", json_harm)
    return read(case, lambda: Bundle.open(folder))


def pruning(case: Case) -> int:
    """Return the reader of what was pruned."""
    folder = case.harm("pruned", "pruning.json", json_harm)
    return read(case, lambda: edits_of(read_plan(folder)))


def config(case: Case) -> int:
    """Commands on a folder of diffusers with another ``config.json``."""
    return _on_folder(case, case.harm("ltx", "config.json", json_harm))


def weights(case: Case) -> int:
    """Commands on a folder of diffusers with other weights."""
    return _on_folder(case, case.harm("ltx", "diffusion_pytorch_model.safetensors", header_harm))


def _on_folder(case: Case, folder: Path) -> int:
    kind = case.random.randrange(4)
    if kind == 0:
        return case.command("inspect", folder)
    if kind == 1:
        return case.command("prune", folder, "--remove", "block=1", "--dry-run")
    if kind == 2:
        return case.command("prune", folder, "--remove", "block=1", "--out", case.out / "pruned")
    path = case.folder / "r.yaml"
    step = {"prune": {"use": "trilevel", "levels": {"block": {"remove": 1}}, "search": "magnitude"}}
    path.write_text(json.dumps({"model": {"from": str(folder)}, "steps": [step]}))
    return case.command("plan", path)


def bundle(case: Case) -> int:
    """Commands on a bundle whose record says something else."""
    folder = case.harm("bundle", "bundle.json", json_harm)
    if case.random.random() < 0.5:
        return case.command("inspect", folder)
    return case.command("generate", "a", "--model", folder, "--out", case.out / "v.mp4")


HARMS = {".safetensors": header_harm, ".json": json_harm}
"""By the end of a file's name; any other is torn."""


def package(case: Case) -> int:
    """``verify`` and ``play`` of a package with a harmed file, or with two that changed places."""
    kind = case.random.randrange(3)
    source = case.material / "package" / "files"
    files = sorted(item.relative_to(source).as_posix() for item in source.rglob("*") if item.is_file())
    if kind == 0:
        folder = case.harm("package/files", "manifest.json", json_harm)
    elif kind == 1:
        file = case.random.choice([name for name in files if name != "manifest.json"])
        folder = case.harm("package/files", file, HARMS.get(Path(file).suffix, torn))
    else:
        one, other = case.random.sample(files, 2)
        swapped = {one: (source / other).read_bytes(), other: (source / one).read_bytes()}
        folder = case.harmed("package/files", swapped)
    if case.random.random() < 0.5:
        return case.command("verify", folder)
    return case.command("play", folder, "a red circle", "--out", case.out / "v.mp4")


RECIPE = """\
data: {use: shapes, num_clips: 2, num_test: 2, frames: 9, size: [64, 64]}
steps:
  - latent: {use: video_vae, channels: 16}
"""
BROKEN = """\
model: {use: video_dit, preset: tiny}
steps:
  - prune: {use: trilevel, levels: {block: {remove: 400}}, search: magnitude}
"""
COMMANDS = {
    "check": ("{recipe}", "--plugin"),
    "plan": ("{recipe}", "--out --processes --plugin"),
    "inspect": ("{ltx}", "--size/3 --plugin"),
    "prune": (
        "{ltx}",
        "--out --params --flops --latency --table --size/3 --levels --remove --keep --search --plan --dry-run/0 --seed",
    ),
    "generate": (
        "a --model {bundle} --out {out}/v.mp4",
        "--model --out --steps --guidance --frames --size/2 --fps --seed --sampler",
    ),
    "encode": ("{recipe} --vae {bundle} --out {out}/shards", "--vae --rank --world"),
    "report": ("{out}", ""),
    "verify": ("{package}", "--outputs --allow-unverified/0"),
    "play": ("{package} a --out {out}/v.mp4", "--out --text --size/3 --golden/0 --seed"),
    "new": ("exporter my-npu --out {out}/new", "--out"),
    "sensitivity": ("{nothing}", "--out --level --share --search --samples --size/3 --rounds --table"),
    "run": ("{broken} --out {out}/run", "--out --only --force --threads"),
    "fly": ("", "--out"),
}
"""What each command needs, and its options: /N is how many words one takes. ``run`` gets a recipe that no plan accepts:
places and options are tried, nothing is trained."""


def arguments(case: Case) -> int:
    """Any command with hostile options and places."""
    random = case.random
    name = random.choice(list(COMMANDS))
    known = {name: case.material / name for name in ("ltx", "bundle")}
    known |= {"package": case.material / "package" / "files", "out": case.out, "nothing": case.folder / "no"}
    for kind, text in (("recipe", RECIPE), ("broken", BROKEN)):
        known[kind] = case.folder / f"{kind}.yaml"
        known[kind].write_text(text)
    given, options = COMMANDS[name]
    words = given.format(**known).split()
    for _ in range(random.choice((1, 1, 2, 3))):
        if not options or random.random() < 0.15:
            at = random.randrange(len(words) + 1)
            words[at : at + random.randrange(2)] = [random.choice(WORDS)]
            continue
        option, _, count = random.choice(options.split()).partition("/")
        words += [option, *(random.choice(WORDS) for _ in range(int(count or 1)))]
    return case.command(name, *words)


KINDS: dict[str, tuple[Callable[[Case], int], int]] = {
    "recipe": (recipe, 30), "header": (header, 15), "manifest": (manifest, 15), "captions": (captions, 10),
    "shards": (shards, 5), "record": (record, 5), "pruning": (pruning, 5), "arguments": (arguments, 6),
    "check": (check, 3), "config": (config, 2), "bundle": (bundle, 2), "weights": (weights, 1), "package": (package, 1),
}  # fmt: skip
"""Each with how many of a hundred cases."""


# ------------------------------------------------------------------ running them


@dataclass
class Found:
    """What came of some cases; failed: how each failure is made again, and what it was."""

    statuses: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=lambda: {"tracebacks": [], "hangs": [], "left_behind": []})

    def as_data(self) -> dict[str, Any]:
        """For the last line."""
        return {
            "cases": self.statuses.total(),
            **{name: len(each) for name, each in self.failed.items()},
            "statuses": dict(self.statuses),
        }


def fuzz(made: Path, work: Path, cases: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> Found:
    """Run cases of some kinds on the material ``made``, one after another in one folder below ``work``."""
    found, home = Found(), Path.cwd()
    shares = [KINDS[kind][1] for kind in kinds]
    copies: dict[str, Copy] = {}
    out = work / "case" / "out"
    out.mkdir(parents=True)
    os.chdir(out)
    try:
        with alarmed(), shared():
            for number in range(cases):
                random = Random(f"{seed}/{number}")
                kind = random.choices(kinds, shares)[0]
                case = Case(random, made, work / "case", copies)
                judge(case, KINDS[kind][0], f"--seed {seed} case {number} ({kind})", found)
                clear(case.folder, keep=case.out)
    finally:
        os.chdir(home)
        for folder in (work / "case", work / "copies"):
            shutil.rmtree(folder, ignore_errors=True)
    return found


def clear(folder: Path, keep: Path) -> None:
    """Empty a folder, of itself and the one it keeps only what is in them."""
    for entry in [*os.scandir(folder), *os.scandir(keep)]:
        if not entry.is_dir(follow_symlinks=False):
            Path(entry.path).unlink()
        elif entry.path != str(keep):
            shutil.rmtree(entry.path)


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Build the command line and look for the installed plugins once, not in every case."""
    build, discover = typer.main.get_command, Registry.discover
    whole = discover()
    typer.main.get_command = cache(build)
    Registry.discover = lambda files=(): discover(files) if files else whole  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        typer.main.get_command = build
        Registry.discover = discover  # type: ignore[method-assign]


def judge(case: Case, kind: Callable[[Case], int], name: str, found: Found) -> None:
    """Run one case; note how it ended."""
    try:
        with limited():
            status = kind(case)
    except Hang:
        found.statuses["hang"] += 1
        found.failed["hangs"].append(f"{name}: {' '.join(case.said)}\n{traceback.format_exc()}")
        return
    except Exception:  # noqa: BLE001 - just this is looked for
        found.statuses["traceback"] += 1
        found.failed["tracebacks"].append(f"{name}: {' '.join(case.said)[:500]}\n{traceback.format_exc()}")
        return
    found.statuses[str(status)] += 1
    if status not in (0, 1, 2) or "Traceback" in case.printed:
        found.failed["tracebacks"].append(
            f"{name}: {' '.join(case.said)[:500]}: status {status}\n{case.printed[:2000]}"
        )
    left = [str(item) for item in case.out.rglob("*")] if status == 2 else []
    left += [f"{name}/{file}" for name, copy in case.copies.items() if copy.harmed for file in copy.mend()]
    if left:
        found.failed["left_behind"].append(f"{name}: {' '.join(case.said)[:500]}: {left}\n{case.printed[:2000]}")


_CLOCKS = ((signal.ITIMER_PROF, signal.SIGPROF), (signal.ITIMER_REAL, signal.SIGALRM))


@contextlib.contextmanager
def alarmed() -> Iterator[None]:
    """Let what is :func:`limited` raise Hang."""

    def ring(*_: object) -> None:
        raise Hang

    before = [signal.signal(number, ring) for _, number in _CLOCKS]
    try:
        yield
    finally:
        for (_, number), handler in zip(_CLOCKS, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise Hang where what is inside takes too long."""
    for (clock, _), seconds in zip(_CLOCKS, (CPU_LIMIT_S, LIMIT_S), strict=True):
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for clock, _ in _CLOCKS:
            signal.setitimer(clock, 0)


def main() -> int:
    """Print what failed, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(KINDS), action="append", help="this kind of case; may be repeated")
    parser.add_argument("--show", action="store_true", help="print every case that failed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = material(Path(folder) / "material")
        found = fuzz(made, Path(folder), given.cases, given.seed, tuple(given.only or KINDS))
    if given.show:
        for name, each in found.failed.items():
            for text in each:
                print(f"{name}: {text}")
    print(json.dumps(found.as_data()))
    return 1 if any(found.failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
