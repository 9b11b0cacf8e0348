"""Commands on harmed files and with hostile arguments: one message each, whatever is wrong, and nothing left behind.

    python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--only KIND] [--show]

A case is one command in this process, with a limit of time. The last line is one JSON object: ``cases``, ``tracebacks``,
``hangs``, ``left_behind`` (files in the output place after a refusal), ``statuses`` (how many ended with which). Exit
status 1 where one of the middle three is not 0. ``--show`` prints every case that failed, and how it can be made again.
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
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from hostile import RECIPES, WORDS, copied, harmed, header_harm, json_harm, lines_harm, material, yaml_harm

from dit_compress.cli import app as cli
from dit_compress.core.errors import UserError
from dit_compress.data.clips import read_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    """One case at work. folder: its own; out: where it may write; printed: what it said."""

    random: Random
    material: Path
    folder: Path
    printed: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """The output place, an empty folder."""
        return self.folder / "out"

    def harm(self, name: str, file: str, how: Harm) -> Path:
        """Return a copy of some material with one file harmed."""
        copy = copied(self.material / name, self.folder / name)
        harmed(copy / file, how(self.random, (copy / file).read_bytes()))
        return copy

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


def recipe(case: Case) -> int:
    """``check`` of a recipe."""
    source = case.random.choice(sorted(RECIPES.glob("*.yaml")))
    path = case.folder / "r.yaml"
    path.write_bytes(yaml_harm(case.random, source.read_bytes()))
    return case.command("check", path)


def captions(case: Case) -> int:
    """Return the reader of captions, without decoding a video."""
    folder = case.harm("clips", "captions.jsonl", lines_harm)
    try:
        read_folder(folder, frames=9, size=(64, 64))
    except UserError as error:
        case.printed = str(error)
        return 2
    return 0


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
    text = {
        "model": {"from": str(folder)},
        "steps": [{"prune": {"use": "trilevel", "levels": {"block": {"remove": 1}}, "search": "magnitude"}}],
    }
    path.write_text(json.dumps(text))
    return case.command("plan", path)


def bundle(case: Case) -> int:
    """Commands on a bundle whose record says something else."""
    folder = case.harm("bundle", "bundle.json", json_harm)
    if case.random.random() < 0.5:
        return case.command("inspect", folder)
    return case.command("generate", "a", "--model", folder, "--out", case.out / "v.mp4")


def package(case: Case) -> int:
    """``verify`` and ``play`` of a package with a harmed file, or with two that changed places."""
    kind = case.random.randrange(3)
    source = case.material / "package" / "files"
    files = sorted(item.relative_to(source).as_posix() for item in source.rglob("*") if item.is_file())
    if kind == 0:
        folder = case.harm("package/files", "manifest.json", json_harm)
    elif kind == 1:
        file = case.random.choice([name for name in files if name != "manifest.json"])
        folder = case.harm(
            "package/files",
            file,
            header_harm if file.endswith(".safetensors") else json_harm if file.endswith(".json") else _torn,
        )
    else:
        folder = copied(source, case.folder / "package")
        one, other = (folder / name for name in case.random.sample(files, 2))
        kept = one.read_bytes()
        harmed(one, other.read_bytes())
        harmed(other, kept)
    if case.random.random() < 0.5:
        return case.command("verify", folder)
    return case.command("play", folder, "a red circle", "--out", case.out / "v.mp4")


def _torn(random: Random, data: bytes) -> bytes:
    from hostile import torn

    return torn(random, data)


OPTIONS: dict[str, tuple[str, ...]] = {
    "check": ("--deep", "--plugin"),
    "plan": ("--out", "--processes", "--plugin"),
    "inspect": ("--size 3", "--plugin"),
    "prune": (
        "--out",
        "--params",
        "--flops",
        "--latency",
        "--table",
        "--machine",
        "--size 3",
        "--levels",
        "--remove",
        "--keep",
        "--search",
        "--plan",
        "--dry-run",
        "--seed",
    ),
    "generate": ("--model", "--out", "--steps", "--guidance", "--frames", "--size 2", "--fps", "--seed", "--sampler"),
    "encode": ("--vae", "--out", "--rank", "--world"),
    "report": (),
    "verify": ("--outputs", "--allow-unverified"),
    "play": ("--out", "--text", "--size 3", "--golden", "--seed"),
    "new": ("--out",),
    "sensitivity": ("--out", "--level", "--share", "--search", "--samples", "--size 3", "--rounds", "--table"),
    "run": ("--out", "--only", "--force", "--threads"),
    "fly": ("--out",),
}
GIVEN = {
    "check": ("{recipe}",), "plan": ("{recipe}",), "inspect": ("{ltx}",), "prune": ("{ltx}",), "generate": ("a", "--model", "{bundle}", "--out", "{out}/v.mp4"),
    "encode": ("{recipe}", "--vae", "{bundle}", "--out", "{out}/shards"), "verify": ("{package}",), "play": ("{package}", "a", "--out", "{out}/v.mp4"),
    "new": ("exporter", "my-npu", "--out", "{out}/new"), "report": ("{out}",), "sensitivity": ("{nothing}",), "run": ("{broken}", "--out", "{out}/run"), "fly": (),
}  # fmt: skip
"""What each command needs. ``run`` gets a recipe that no plan accepts: places and options are tried, nothing is trained."""


def arguments(case: Case) -> int:
    """Any command with hostile options and places."""
    random = case.random
    name = random.choice(list(OPTIONS))
    path, broken = case.folder / "r.yaml", case.folder / "broken.yaml"
    path.write_text(
        "steps:\n  - latent: {use: video_vae, channels: 16}\ndata: {use: shapes, num_clips: 2, num_test: 2, frames: 9, size: [64, 64]}\n"
    )
    broken.write_text(
        "model: {use: video_dit, preset: tiny}\nsteps:\n  - prune: {use: trilevel, levels: {block: {remove: 400}}, search: magnitude}\n"
    )
    known = {
        "recipe": path,
        "broken": broken,
        "out": case.out,
        "nothing": case.folder / "no",
        "package": case.material / "package" / "files",
        "ltx": case.material / "ltx",
        "bundle": case.material / "bundle",
    }
    words = [word.format(**known) for word in GIVEN[name]]
    for _ in range(random.choice((1, 1, 2, 3))):
        if not OPTIONS[name] or random.random() < 0.15:
            at = random.randrange(len(words) + 1)
            words[at : at + random.randrange(2)] = [random.choice(WORDS)]
            continue
        option, _, count = random.choice(OPTIONS[name]).partition(" ")
        flag = option in ("--deep", "--dry-run", "--allow-unverified", "--golden")
        words += [option, *(random.choice(WORDS) for _ in range(0 if flag else int(count or 1)))]
    return case.command(name, *words)


KINDS: dict[str, tuple[Callable[[Case], int], int]] = {
    "recipe": (recipe, 40), "captions": (captions, 20), "arguments": (arguments, 20), "config": (config, 8),
    "weights": (weights, 4), "bundle": (bundle, 4), "package": (package, 4),
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
    """Run cases of some kinds on the material ``made``, each in a folder of its own below ``work``."""
    found, home = Found(), Path.cwd()
    shares = [KINDS[kind][1] for kind in kinds]
    for number in range(cases):
        random = Random(f"{seed}/{number}")
        kind = random.choices(kinds, shares)[0]
        case = Case(random, made, work / "case")
        case.out.mkdir(parents=True)
        os.chdir(case.out)
        try:
            judge(case, KINDS[kind][0], f"--seed {seed} case {number} ({kind})", found)
        finally:
            os.chdir(home)
            shutil.rmtree(case.folder, ignore_errors=True)
    return found


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
    if status == 2 and (left := [str(item) for item in case.out.rglob("*")]):
        found.failed["left_behind"].append(f"{name}: {' '.join(case.said)[:500]}: {left}\n{case.printed[:2000]}")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise Hang where what is inside takes too long."""

    def ring(*_: object) -> None:
        raise Hang

    clocks = ((signal.ITIMER_PROF, signal.SIGPROF, CPU_LIMIT_S), (signal.ITIMER_REAL, signal.SIGALRM, LIMIT_S))
    before = [signal.signal(number, ring) for _, number, _ in clocks]
    try:
        for clock, _, seconds in clocks:
            signal.setitimer(clock, seconds)
        yield
    finally:
        for (clock, number, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


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
