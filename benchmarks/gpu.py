"""What training takes on one GPU: seconds a step and memory by option, the attention kernel, tests, sampling.

    python benchmarks/gpu.py [--out FILE.md] [--minutes 10]          # or: sh benchmarks/gpu.sh

The width of the 2B model with 4 of its blocks, random weights, bfloat16, one clip of 121x576x1024 (9,216 tokens) a
step: 50 steps each of flow matching, distillation with features and adversarial distillation, then some with each
option of ``docs/scale.md``. Beside a peak stands what docs/scale.md expects: state of the roles, and 34 to 50 bytes a
token and channel for each block that a backward pass goes through, 4 for one that is recomputed. Before that the tests
that need a GPU run, and after the 50 steps ``server_to_mobile.py``. What no time is left for is listed as not run, what
fails with its message. Several processes (``bf16_gather``, ``shard``) are not measured: that takes several GPUs.

The table is written anew after each row, so that nothing is lost. Without a GPU: said so, the same at toy size.
The last line is one JSON object. Exit status 1 where a row failed.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.data.samples import Samples
from dit_compress.model.flow import Flow
from dit_compress.model.text import Captions
from dit_compress.plugin.registry import installed, use
from dit_compress.recipe import make_part
from dit_compress.step.context import Context
from dit_compress.step.world import World
from dit_compress.train import compiled
from dit_compress.train.loop import draw_batch, fit
from dit_compress.train.memory import state_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dit_compress.model.denoiser import Denoiser

ROOT = Path(__file__).parents[1]
OUT, DRY_OUT = ROOT / "benchmarks" / "measured-gpu.md", ROOT / "runs" / "gpu-dry-run.md"
GIB = 2**30
BYTES_KEPT, BYTES_RECOMPUTED = (34, 50), 4
"""A token, channel and block keeps so much under bfloat16, as docs/scale.md counts: all of a block, or its input."""
KINDS: dict[str, dict[str, Any]] = {
    "flow": {"use": "flow"},
    "affine": {"use": "affine"},
    "adversarial": {"use": "adversarial", "discriminator_warmup": 0, "ema": 0.0},
}
BACKWARD_BLOCKS = {"flow": 1, "affine": 1, "adversarial": 2}
"""The generator's depth that a backward pass goes through at once, in times: its own, and the judge's (frozen ones
too)."""
OPTIONS: dict[str, dict[str, Any]] = {
    "deterministic: false": {"deterministic": False},
    "checkpoint_activations": {"checkpoint_activations": True},
    "images: 0.25": {"images": 0.25},
    "muon_lr": {"muon_lr": 0.02},
    "float32": {"bf16": False},
    "compile": {"compile": True},
    "compile, deterministic: false": {"compile": True, "deterministic": False},
    "compile, checkpoint_activations": {"compile": True, "checkpoint_activations": True},
}


@dataclass(frozen=True)
class Scale:
    """The sizes of a run: on a GPU, and a toy's that goes through the same lines on a CPU.

    skipped: steps at the start whose times don't count: kernels are chosen, code is compiled.
    backend: what ``torch.compile`` is given; the toy's blocks are traced, and not compiled for minutes.
    """

    device: str
    model: dict[str, Any]
    latent: tuple[int, int, int, int]
    text: dict[str, Any]
    steps: int
    option_steps: int
    skipped: int
    backend: str


LARGE = Scale("cuda", {"preset": "2b", "layers": 4}, (128, 16, 18, 32), {"width": 4096}, 50, 20, 5, "inductor")
TOY = Scale(
    "cpu",
    {"layers": 4, "heads": 2, "head_width": 12, "ffn": 32, "channels": 8, "text_width": 16},
    (8, 2, 2, 2),
    {"width": 16, "layers": 1, "heads": 2},
    3,
    3,
    1,
    "eager",
)


@dataclass
class Table:
    """Rows of the table, written after each; ``until``: the clock's time after which nothing is begun."""

    out: Path
    until: float
    head: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        """Add a row and write the file."""
        self.rows.append(row)
        print("  ".join(f"{name} {_shown(value)}" for name, value in row.items() if value is not None), flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text("\n".join([*self.head, "", *self.lines()]) + "\n", "utf-8")

    def lines(self) -> Iterator[str]:
        """Yield the Markdown table."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        yield f"| {' | '.join(names)} |"
        yield f"|{'---|' * len(names)}"
        for row in self.rows:
            yield f"| {' | '.join(_shown(row.get(name)) for name in names)} |"

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.until - time.monotonic()

    def attempt(self, what: str, options: str, needs: float, measure: Callable[[], dict[str, Any]]) -> None:
        """Add what is measured, or why it is not; ``needs``: seconds without which it is not begun."""
        if self.left() < needs:
            self.add(what=what, options=options, note="not run: no time left")
            return
        started = time.monotonic()
        signal.alarm(max(1, int(self.left())) if math.isfinite(self.until) else 0)
        try:
            found = measure()
        except OutOfTimeError:
            found = {"note": "not finished: no time left"}
        except Exception as error:  # noqa: BLE001 - the next row must not go with this one
            found = {"note": f"failed: {type(error).__name__}: {(str(error) or '–').splitlines()[0][:200]}"}
        signal.alarm(0)
        self.add(what=what, options=options, **found, minutes=(time.monotonic() - started) / 60)


class OutOfTimeError(Exception):
    """The minutes are over."""


def _out_of_time(_number: int, _frame: Any) -> None:
    raise OutOfTimeError


def main() -> int:
    """Measure all, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _out_of_time)
    use()
    scale = LARGE if torch.cuda.is_available() else TOY
    if scale is TOY:
        print("no GPU here: a dry run on the CPU at toy size; its figures mean nothing", flush=True)
    out = given.out or (OUT if scale is LARGE else DRY_OUT)
    until = time.monotonic() + 60 * given.minutes if scale is LARGE else math.inf
    table = Table(out, until, head_of(scale))
    if scale is LARGE:
        table.attempt("pytest -m gpu", "", 60, lambda: tests(min(120.0, table.left())))
    compiled.BACKEND = scale.backend
    training = Training(scale)
    for kind in KINDS:
        table.attempt(kind, "bf16", 30, lambda kind=kind: training.measure(kind, {}, scale.steps))  # type: ignore[misc]
    if scale is LARGE:
        table.attempt("server_to_mobile.py", "", 60, lambda: sampling(min(150.0, table.left())))
    for name, options in OPTIONS.items():
        for kind in KINDS:
            needs = 1.5 * scale.option_steps * training.usual.get(kind, 1.0) + (60 if "compile" in options else 10)
            measure = lambda kind=kind, options=options: training.measure(kind, options, scale.option_steps)  # noqa: E731
            table.attempt(kind, name, needs, measure)
    failed = [row for row in table.rows if str(row.get("note", "")).startswith("failed")]
    print(out)
    print(json.dumps({"device": table.head[0].removeprefix("# "), "rows": len(table.rows), "failed": len(failed)}))
    return 1 if failed else 0


def head_of(scale: Scale) -> list[str]:
    """Return the lines above the table."""
    cuda = scale.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()} (dry run at toy size: no GPU)"
    memory = f"{torch.cuda.get_device_properties(0).total_memory / GIB:.0f} GiB, " if cuda else ""
    how = (
        f"{memory}torch {torch.__version__}, CUDA {torch.version.cuda}. Latent {list(scale.latent)}, one clip a step; "
        f"{scale.steps} steps with bf16, {scale.option_steps} with each option (bf16 besides). Seconds a step are the "
        f"median without the first {scale.skipped}; the first step holds what is compiled. How: `benchmarks/gpu.py`."
    )
    return [f"# {name}", "", how]


# ------------------------------------------------------------------ training


class Training:
    """Short trainings of one model. usual: seconds a step by kind, as measured first."""

    def __init__(self, scale: Scale) -> None:
        self.scale, self.device = scale, torch.device(scale.device)
        self.usual: dict[str, float] = {}
        torch.manual_seed(0)
        maker = make_part("model", {"use": "video_dit", **scale.model}, installed()).build()
        self.denoiser: Denoiser = maker.denoiser(maker.create())
        self.width = self.denoiser.stream_width()
        self.text = Captions(make_part("text", {"use": "words", **scale.text}, installed()).build().create())
        self.text.requires_grad_(requires_grad=False)
        captions = ["one red circle", "two blue squares"] * 4
        with torch.no_grad():
            tokens = {
                name: value.clone() for name, value in self.text.encoder(self.text.encoder.tokenize(captions)).items()
            }
        latents = np.random.default_rng(0).standard_normal((len(captions), *scale.latent), dtype=np.float32)
        self.samples = Samples(latents, captions, tokens, pixels=False)

    def measure(self, kind: str, options: dict[str, Any], steps: int) -> dict[str, Any]:
        """Train; return the row's figures."""
        gc.collect()
        if "compile" in options and self.scale is LARGE:  # the first step's seconds are those of all that is compiled
            torch.compiler.reset()
        with tempfile.TemporaryDirectory() as folder:
            context = self._context(Path(folder))
            given = {"bf16": True, "steps": steps, "batch": 1, "checkpoint_every": 10**9, **options}
            distiller = make_part("distill", {**KINDS[kind], **given}, installed()).build()
            student = copy.deepcopy(self.denoiser)
            teacher = copy.deepcopy(self.denoiser) if kind == "affine" else None
            made = distiller.objective(context, student, teacher, self.text)
            state = state_bytes(made.roles)
            clock = Clock(made)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            fit(clock, self.samples, distiller.options, context)
            peak = torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else None
            attention = self._attention(made, given) if not options else None
        taken = clock.taken()
        seconds = statistics.median(taken[self.scale.skipped :])
        self.usual.setdefault(kind, seconds)
        return {
            "s/step": seconds,
            "of bf16's": seconds / self.usual[kind],
            "first step, s": taken[0],
            "peak GiB": peak,
            "expected GiB": self._expected(kind, given, sum(state.values())),
            "attention": attention,
        }

    def _context(self, folder: Path) -> Context:
        """Return a step's surroundings; the input is what objectives ask of a bundle, without files."""
        spec = SimpleNamespace(text=None, denoiser=SimpleNamespace(plugin="video_dit", config={}, log=()), latent=None)
        bundle: Any = SimpleNamespace(flow=Flow(3.0, 4, 1.0), lineage=[{"kind": "distill", "parts": {}}], spec=spec)
        return Context(
            name="gpu",
            seed=0,
            folder=folder,
            cache=folder,
            bundles={"input": bundle, "teacher": bundle},
            world=World(device=self.device),
        )

    def _expected(self, kind: str, options: dict[str, Any], state: int) -> str:
        """Return the range of docs/scale.md for this model, in GiB."""
        blocks = BACKWARD_BLOCKS[kind] * self.denoiser.structure().main.length
        cells = self.denoiser.tokens(self.scale.latent[1:]) * self.width
        ends = []
        for kept in BYTES_KEPT:
            whole = kept * cells * (1 if options["bf16"] else 2)
            held = (
                BYTES_RECOMPUTED * cells * blocks + whole if options.get("checkpoint_activations") else whole * blocks
            )
            ends.append((state + held) / GIB)
        return f"{ends[0]:.3g} to {ends[1]:.3g}"

    def _attention(self, made: Any, options: dict[str, Any]) -> str:
        """Return the operators by which attention was computed, as torch's profiler saw them."""
        from torch.profiler import ProfilerActivity, profile

        for role in made.roles.values():
            role.module.to(self.device)
        batch = draw_batch(self.samples, 1, 0, 0).to(self.device)
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=options["bf16"])
        with profile(activities=[ProfilerActivity.CPU]) as seen, cast:
            made.loss(made.phases[-1], batch)["loss"].backward()
        names = {event.key.removeprefix("aten::") for event in seen.key_averages() if "scaled_dot_product" in event.key}
        for role in made.roles.values():
            role.module.zero_grad(set_to_none=True)
            role.module.to("cpu")
        return ", ".join(sorted(names - {"scaled_dot_product_attention"})) or "none of torch's"


class Clock:
    """An objective that notes when each step begins; the loop waits for the GPU within every step."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.begins = inner, dict[int, float]()
        self.last = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def loss(self, phase: Any, batch: Any) -> Any:
        """Return the loss of the objective itself."""
        self.begins.setdefault(batch.step, time.perf_counter())
        return self.inner.loss(phase, batch)

    def taken(self) -> list[float]:
        """Return the seconds from each step's beginning to the next one's."""
        begins = list(self.begins.values())
        return [after - before for before, after in pairwise(begins)]


# ------------------------------------------------------------------ what other programs show


def tests(seconds: float) -> dict[str, Any]:
    """Run the tests that need a GPU."""
    files = sorted(
        str(path) for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text("utf-8")
    )
    last = _last_line([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files], seconds)
    return {"note": last}


def sampling(seconds: float) -> dict[str, Any]:
    """Run ``server_to_mobile.py``: the server's guided steps and the mobile model's four."""
    program = str(ROOT / "benchmarks" / "server_to_mobile.py")
    found = json.loads(_last_line([sys.executable, program, "--device", "cuda", "--runs", "1"], seconds))
    return {
        "note": f"server {found['server_dit_seconds']:.1f} s, mobile {found['mobile_dit_seconds']:.2f} s, "
        f"decode {found['decode_seconds']:.2f} s: DiT {found['ratio_dit']:.1f}×, end to end "
        f"{found['ratio_end_to_end']:.1f}× (the paper {found['paper_ratio']:.1f}×)"
    }


def _last_line(command: list[str], seconds: float) -> str:
    """Return what a program printed last; RuntimeError with it where it failed."""
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    lines = (ran.stdout.strip() or ran.stderr.strip() or "nothing was printed").splitlines()
    if ran.returncode:
        raise RuntimeError(f"exit status {ran.returncode}: {lines[-1]}")
    return lines[-1]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
