"""Steps in order: reuse what is finished, run the rest in processes of their own, continue after a kill.

runs/<name>/
  recipe.yaml       the resolved recipe, every default written out
  run.json          the steps in order
  data.json         what the data held at the last run
  steps/<step>/     step.json (key, figures), bundle/, files; written as <step>.partial
  cache/            encoded data, named by content
  summary.json      every figure       report.html    the same, to look at
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import disk_errors, full_disk, need_place, read_json, sha256_data, write_json
from dit_compress.core.progress import progress
from dit_compress.core.version import SCHEMA
from dit_compress.data.source import clips_of, data_folder
from dit_compress.export.contract import is_exporter
from dit_compress.model.paths import step_folder
from dit_compress.plugin.registry import installed
from dit_compress.recipe import dump
from dit_compress.recipe.model import PARTIAL
from dit_compress.run.changes import data_change, need_same
from dit_compress.run.fit import place_of
from dit_compress.run.forks import fork
from dit_compress.run.keys import input_key, made_of, nodes
from dit_compress.run.locks import need_no_worker, one_command, one_worker
from dit_compress.run.torchrun import STOPPED, environment, how_it_ended, pass_signals_to, worker_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dit_compress.recipe.model import Recipe
    from dit_compress.run.keys import Node
    from dit_compress.run.torchrun import Crew

MANIFEST = "data.json"
"""The file of what the data held at the last run, one record a sample."""


@dataclass
class Runner:
    """One run of a recipe in a folder. ``crew``: the processes of torchrun, which steps with ``world: all`` use.

    yes: run what this machine has no room for, as far as one knows. forks: steps are forks of this process
    (:mod:`dit_compress.run.forks`), but those that export networks.
    """

    recipe: Recipe
    folder: Path
    threads: int
    plugin_files: Sequence[str] = ()
    force: frozenset[str] = frozenset()
    say: Callable[[str], None] = lambda _: None
    keys: dict[str, str] = field(default_factory=dict)
    made_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    crew: Crew | None = None
    yes: bool = False
    forks: bool = False

    def run(self, only: str | None = None) -> None:
        """Run every step that is not finished (or just ``only``), then write summary and report."""
        need_place(self.folder, "folder")
        if not (self.folder / "run.json").is_file():
            self._plan([only] if only else [node.name for node in nodes(self.recipe)])
        with disk_errors(self.folder):
            (self.folder / "cache").mkdir(parents=True, exist_ok=True)
        with full_disk(self.folder), one_command(self.folder):
            need_no_worker(self.folder)
            self._run(only)

    def _run(self, only: str | None) -> None:
        listed = nodes(self.recipe)
        unknown = ({only} if only else set()) | set(self.force)
        if unknown := unknown - {node.name for node in listed}:
            raise UserError(f"no step {sorted(unknown)[0]!r}", mend=f"The steps are {[node.name for node in listed]}")
        manifest = self.manifest()
        left = [node.name for node in listed if not finished(self.folder, node, self.key(node, manifest))]
        begun = (self.folder / "run.json").is_file()
        if left or not begun:
            self._need_splits(listed)
        if left and begun:
            self._plan([name for name in left if only in (None, name)])
        write_json(
            self.folder / "run.json",
            {"schema": SCHEMA, "name": self.recipe.name, "steps": [node.name for node in listed], "manifest": manifest},
        )
        (self.folder / "recipe.yaml").write_text(dump(self.recipe), "utf-8")
        ran, ready = 0, set()
        for place, node in enumerate(listed, 1):
            key = self.key(node, manifest)
            title = f"[{place}/{len(listed)}] {node.name}"
            if node.name not in self.force and finished(self.folder, node, key):
                self._reuse(node, title)
                ready.add(node.name)
            elif only in (None, node.name):
                _need_inputs(node, {other.name for other in listed} - ready)
                self.say(f"{title}: running")
                self._execute(node, key, manifest)
                self.say(f"{title}: {headline(self.folder, node.name)}")
                ran += 1
                ready.add(node.name)
            else:
                self.say(f"{title}: not run")
        self._conclude(changed=ran > 0)

    def _plan(self, names: Sequence[str]) -> None:
        """Refuse what can't work, or has no room here, before anything is written or paid for.

        names: the steps that are to be run.
        """
        from dit_compress.run.costs import costs, need_room
        from dit_compress.run.plan import plan
        from dit_compress.train.compiled import need_compiler
        from dit_compress.train.options import TrainOptions

        processes = self.crew.size if self.crew else 1
        rows = plan(self.recipe, processes=processes)
        for row in rows:
            if row.node.name in names and any(
                isinstance(part.options, TrainOptions) and part.options.compile for part in row.node.together
            ):
                need_compiler(place_of(self.recipe, row.node))
        if not self.yes:
            found = {name: cost for name, cost in costs(rows, self.recipe, processes).items() if name in names}
            need_room(self.recipe, found, self.folder, {row.node.name: place_of(self.recipe, row.node) for row in rows})

    def _need_splits(self, listed: Sequence[Node]) -> None:
        """Refuse data without the clips that a step looks for, before the first step runs."""
        if part := self.recipe.data:
            for split in dict.fromkeys(split for node in listed for split in node.splits):
                clips_of(part, data_folder(self.folder / "cache", part), split)

    def _conclude(self, *, changed: bool) -> None:
        """Write summary and report, where anything changed."""
        if changed or not (self.folder / "report.html").is_file():
            from dit_compress.report import write_report

            write_report(self.folder)

    def manifest(self) -> str:
        """Prepare the data and give the digest of its manifest."""
        part = self.recipe.data
        if part is None:
            return ""
        source, folder = part.build(), data_folder(self.folder / "cache", part)
        with progress("preparing data", 1) as advance:
            source.prepare(folder)
            advance()
        records = [dict(record) for record in source.manifest(folder)]
        if change := data_change(self.folder / MANIFEST, records):
            self.say(f"the data has changed since the last run: {change}; what depends on it is made anew")
        write_json(self.folder / MANIFEST, records)
        return sha256_data(records)

    def key(self, node: Node, manifest: str) -> str:
        """Return the node's key; remembered for the nodes that read it."""
        inputs = {slot: input_key(source, self.keys) for slot, source in node.inputs.items()}
        self.made_of[node.name] = made_of(node, inputs, self.recipe, manifest)
        self.keys[node.name] = sha256_data(self.made_of[node.name])
        return self.keys[node.name]

    def _reuse(self, node: Node, title: str) -> None:
        record = read_json(step_folder(self.folder, node.name) / "step.json")
        changed = [
            name for name, digest in source_digests(node).items() if record["sources"].get(name) not in (None, digest)
        ]
        note = f" (code of {', '.join(changed)} changed since; --force {node.name} reruns)" if changed else ""
        self.say(f"{title}: reused{note}")

    def _execute(self, node: Node, key: str, manifest: str) -> None:
        place = step_folder(self.folder, node.name)
        partial = place.with_name(f"{place.name}{PARTIAL}")
        begun = _begun(partial, key)
        if partial.is_dir() and begun is None:
            if node.name not in self.force:
                need_same(partial, node.name, self.made_of[node.name])
            with one_worker(self.folder):
                shutil.rmtree(partial)
        threads = (begun or {}).get("threads", self.threads)
        if threads != self.threads:
            self.say(f"{node.name}: going on with {threads} threads, as it began (not {self.threads})")
        together = self.crew if node.together else None
        with disk_errors(partial):
            partial.mkdir(parents=True, exist_ok=True)
            write_json(
                partial / "job.json",
                {
                    "key": key,
                    "made_of": self.made_of[node.name],
                    "name": node.name,
                    "run": str(self.folder),
                    "manifest": manifest,
                    "threads": threads,
                    "group": together.group() if together else None,
                    "plugin_files": [str(path) for path in self.plugin_files],
                    "sources": source_digests(node),
                    "input_keys": self.made_of[node.name]["inputs"],
                },
            )
        if together:
            status = together.lead(partial, threads, node.name)
        elif self.forks and not is_exporter(node.build()):  # what traces again where the plan traced may die in torch
            status = fork(partial, threads)
        else:
            status = spawn(worker_command(partial), threads)
        if status == STOPPED:
            raise UserError(
                f"step {node.name!r} was asked to stop",
                mend="Run the same command: it goes on from the last checkpoint",
            )
        if status == 2:
            raise SystemExit(2)
        if status:
            raise UserError(
                f"step {node.name!r} {how_it_ended(status)}",
                where=str(partial),
                mend="What it printed stands above; the same command continues from its last checkpoint",
            )


def spawn(command: list[str], threads: int) -> int:
    """Run a worker; a signal to us goes on to it."""
    process = subprocess.Popen(command, env=environment(threads, alone=True))  # noqa: S603 - our own interpreter
    restore = pass_signals_to(process.send_signal)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        restore()


def _need_inputs(node: Node, unfinished: set[str]) -> None:
    """Raise a UserError where, with ``--only``, an input is not finished as the recipe has it now."""
    for slot, source in node.inputs.items():
        if source in unfinished:
            raise UserError(
                f"the {slot} of {node.name!r}, step {source!r}, is not finished as the recipe has it now",
                mend=f"Run it first: --only {source}",
            )


def finished(run: Path, node: Node, key: str) -> bool:
    """Tell whether a step's folder is there with this key, made from the bundles that its inputs have now.

    The key names how an input was made; after ``--force`` with changed code it may be another bundle.
    """
    path = step_folder(run, node.name) / "step.json"
    if not path.is_file():
        return False
    record = read_json(path)
    read = record.get("read", {})
    return record.get("key") == key and all(
        _given(run, source) in (None, read.get(slot)) for slot, source in node.inputs.items()
    )


def _given(run: Path, name: str) -> str | None:
    """Return digest of the bundle that a finished step gave."""
    path = step_folder(run, name) / "step.json"
    return read_json(path).get("bundle") if path.is_file() else None


def headline(run: Path, name: str) -> str:
    """Describe a finished step in a few words."""
    record = read_json(step_folder(run, name) / "step.json")
    model = record.get("model") or {}
    size = f", {model['params'] / 1e6:.2f}M parameters" if "params" in model else ""
    figures = ", ".join(
        f"{key} {value:.4g}" for key, value in record["metrics"].items() if isinstance(value, int | float)
    )
    return f"done in {record['seconds']:.0f} s{size}" + (f"; {figures}" if figures else "")


def source_digests(node: Node) -> dict[str, str]:
    """Return digest of the code of every plugin a node uses, for the record."""
    return {f"{part.kind}:{part.name}": installed().source_digest(part.kind, part.name) for part in node.inner}


def _begun(partial: Path, key: str) -> dict[str, Any] | None:
    """Return the job of a step that began with this key and did not end."""
    try:
        job = read_json(partial / "job.json")
    except UserError:
        return None
    return job if isinstance(job, dict) and job.get("key") == key else None
