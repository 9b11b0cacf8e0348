"""Public models, as twins of their pipelines: from their own folder to a stock pipeline of four steps, cell by cell.

    python benchmarks/public_models.py --out /tmp/public            # all; go on after a kill with the same command
    python benchmarks/public_models.py --out /tmp/public LTX-Video  # some

A twin has the model's classes, VAE, tokenizers and scheduler, and random weights: a cell shows that a way is open, not
what comes out of a trained model. Every model has a process of its own; one that dies is ``failed`` where it died.
A cell is ``passed``, ``refused`` (one message that says why) or ``failed``; cells that need one that did not pass are
``refused`` with its name. ``shares`` are the percentages of parameters that blocks, heads and channels are cut to: the
first that the twin has a plan for, since most of a twin can stand outside its blocks.

Claims, fixed here: at least 12 models, no cell failed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.progress import quiet

if TYPE_CHECKING:
    from collections.abc import Callable

GOAL = 12
CELLS = ("open", "inspect", "prune", "recover", "distil", "pipeline", "samples", "sigmas", "lora", "coreml")
NEEDS = {
    "inspect": "open", "prune": "open", "recover": "prune", "distil": "recover", "pipeline": "distil",
    "samples": "pipeline", "sigmas": "samples", "lora": "prune", "coreml": "prune",
}  # fmt: skip
"""The cell that must have passed before another is tried."""
SHARES = (60, 80, 95, 99)
SECONDS = 1800
"""After so many a model's process is ended, and its cell failed."""
LONGEST = 800
"""Characters of a reason that are kept, from its beginning."""
RECIPE = """name: public
model: {{from: {twin}}}
data: {{use: videos, path: {clips}, frames: {frames}, size: [64, 64], test_fraction: 0.5{first}}}
steps:
  - prune: {{use: trilevel, budget: {{params: {share}%, curves: default}}, search: magnitude}}
    name: prune
  - distill: {{use: affine, output_weight: 4.0, steps: 2, batch: 2, warmup: 0, groups: 1}}
    name: recover
{distil}
  - export: {{use: diffusers}}
    name: pipeline
"""
DISTIL = """  - distill:
      {use: dmd, sampling_steps: 4, guidance: 2.0, steps: 2, batch: 2, critic_warmup: 1, student_every: 1}
    name: distil
    teacher: base"""
EXPERT = """  - distill: {use: flow, sampling_steps: 4, guidance: 1.0, steps: 2, batch: 2, warmup: 0}
    name: distil"""
"""Of one of two experts, whose samples no distribution can be matched of: at its own sigmas, stated at four steps."""
COREML = "  - export: {use: coreml}\n    name: coreml\n"
"""Asked apart, since every command plans the whole recipe."""
IMAGES = ("FLUX", "stable-diffusion")


def main() -> int:
    """Try every model that is not in the folder yet; print the table and one JSON object."""
    from dit_compress.model.twins import TWINS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all, where none is named")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        Model(arguments.one, arguments.out / arguments.one).all()
        return 0
    names = arguments.models or list(TWINS)
    rows = {name: row_of(name, arguments.out) for name in names}
    print(table(rows))
    figures = summed(rows)
    print(json.dumps(figures))
    return 0 if not figures["failed"] and (bool(arguments.models) or figures["models"] >= GOAL) else 1


def row_of(name: str, out: Path) -> dict[str, list[str]]:
    """Try what a model has not tried yet, in a process of its own; return state and reason of every cell."""
    file = out / name / "cells.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = json.loads(file.read_text()) if file.is_file() else {}
    if len(found) < len(CELLS):
        print(name, file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--one", name, "--out", str(out)]
        try:
            status: int | str = subprocess.run(command, timeout=SECONDS, check=False).returncode
        except subprocess.TimeoutExpired:
            status = f"no end after {SECONDS} s"
        found = json.loads(file.read_text()) if file.is_file() else {}
        for cell in CELLS:  # the first that is missing is where the process died
            if cell not in found:
                found[cell] = ["failed", f"the process died: {status}"]
                file.write_text(json.dumps(found, indent=1))
                break
    return {cell: found.get(cell, ["refused", "the process had died"]) for cell in CELLS}


class Model:
    """One model on its way; every cell is a method, which raises where it does not pass."""

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.place, self.twin, self.run = name, place, place / "twin", place / "run"
        self.images = name.startswith(IMAGES)

    def all(self) -> None:
        """Try every cell in order, and note each at once."""
        warnings.filterwarnings("ignore")
        file = self.place / "cells.json"
        found: dict[str, list[str]] = json.loads(file.read_text()) if file.is_file() else {}
        for cell in CELLS:
            if cell in found:
                continue
            need = NEEDS.get(cell)
            start = time.monotonic()
            if need and found[need][0] != "passed":
                found[cell] = ["refused", f"needs {need!r}"]
            else:
                found[cell] = outcome(getattr(self, cell))
            spent = f"{time.monotonic() - start:.0f} s"
            print(f"  {cell}: {' '.join(found[cell])} ({spent})", file=sys.stderr, flush=True)
            file.write_text(json.dumps(found, indent=1))

    def open(self) -> None:
        """Open the twin by the stock pipeline and by the toolkit: its model, with the convention found."""
        from dit_compress.plugin.registry import installed
        from dit_compress.recipe import make_part
        from dit_compress.run.rehearsal import write_clips

        if not self.twin.exists():
            command("twin", self.name, "--out", str(self.twin))
        if not (self.place / "clips").exists():
            write_clips(self.place / "clips")
        stock(self.twin)
        make_part("model", {"use": "diffusers", "path": str(self.twin)}, installed()).build().create()

    def inspect(self) -> None:
        """Find the structure: blocks, heads and channels."""
        command("inspect", str(self.twin))

    def prune(self) -> None:
        """Prune three levels by a budget: in a call of its own, and as the step that the rest goes on from."""
        for share in SHARES:
            try:
                command("prune", str(self.twin), "--params", f"{share}%", "--out", str(self.place / f"pruned-{share}"))
            except UserError:
                if share == SHARES[-1]:
                    raise
                continue
            break
        frames, first = (1, "") if self.images else (9, ", first_frame: true" if "I2V" in self.name else "")
        distil = EXPERT if (self.twin / "transformer_2").is_dir() else DISTIL
        (self.place / "recipe.yaml").write_text(
            RECIPE.format(
                twin=self.twin, clips=self.place / "clips", frames=frames, first=first, share=share, distil=distil
            )
        )
        for name in ("base", "diffusers_vae"):
            self.step(name)
        self.step("prune")

    def recover(self) -> None:
        """Take two steps of affine distillation from the whole model."""
        self.step("recover")

    def distil(self) -> None:
        """Take two steps of distribution matching to four sampling steps; an expert (``EXPERT``) of flow matching."""
        self.step("distil")

    def pipeline(self) -> None:
        """Write a whole pipeline folder of the student."""
        self.step("pipeline")

    def samples(self) -> None:
        """Open it by the stock pipeline, and sample."""
        import numpy as np

        made = sampled(self.files, self.images)
        pixels = made.images if self.images else made.frames
        if not np.isfinite(pixels).all() or not pixels.std() > 0:
            raise AssertionError("the samples are not finite, or flat")

    def sigmas(self) -> None:
        """Compare the sigmas that it goes through with the bundle's, to 1e-6."""
        from dit_compress.model.bundle import Bundle

        bundle = Bundle.open(self.run / "steps" / "distil" / "bundle")
        pipeline = stock(self.files)
        sampled(self.files, self.images, pipeline)
        wanted, found = list(bundle.flow.sigmas()), [float(sigma) for sigma in pipeline.scheduler.sigmas]
        if len(wanted) != len(found) or max(abs(a - b) for a, b in zip(wanted, found, strict=True)) > 1e-6:
            raise AssertionError(f"sigmas {found}, the bundle's {wanted}")

    def lora(self) -> None:
        """Prune a LoRA of the whole model by the plan; the pruned model takes it."""
        import torch
        from peft import LoraConfig, get_peft_model_state_dict
        from safetensors.torch import load_file, save_file

        import dit_compress

        pruned = next(self.place.glob("pruned-*"))
        whole = stock(self.twin).transformer
        # Linears inside blocks: those that every LoRA of these models has.
        whole.add_adapter(LoraConfig(r=2, target_modules=r".*blocks.*(to_q|to_k|to_v)", init_lora_weights=False))
        tensors = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(whole).items()}
        save_file(tensors, self.place / "lora.safetensors")
        target = self.place / "lora-pruned.safetensors"
        target.unlink(missing_ok=True)
        command("prune", str(self.place / "lora.safetensors"), "--plan", str(pruned), "--out", str(target))
        small: Any = dit_compress.load(pruned)
        small.add_adapter(LoraConfig(r=2, target_modules=r".*blocks.*(to_q|to_k|to_v)"))
        shapes = {key: value.shape for key, value in get_peft_model_state_dict(small).items()}
        given = {key.removeprefix("transformer."): value for key, value in load_file(target).items()}
        wrong = [key for key, value in given.items() if shapes.get(key) != value.shape]
        if wrong or not given or not all(torch.isfinite(value).all() for value in given.values()):
            raise AssertionError(f"does not fit the pruned model: {wrong[:3]}")
        self.few_steps()

    def few_steps(self) -> None:
        """Train a LoRA of the whole model to four steps; the stock pipeline takes the file, and samples by it."""
        import numpy as np

        pipeline = stock(self.twin)
        if not hasattr(pipeline, "load_lora_weights"):
            what = f"a pruned LoRA fits, but diffusers' {type(pipeline).__name__} has no load_lora_weights"
            raise UserError(what, mend="Fold the LoRA of few steps into its model")
        text, recipe = (self.place / "recipe.yaml").read_text(), self.place / "few.yaml"
        text = text.replace("sampling_steps: 4,", "sampling_steps: 4, lr: 0.1, lora: {rank: 2},")
        recipe.write_text(text.replace("name: distil\n", "name: few\n    input: diffusers_vae\n"))
        command("run", str(recipe), "--out", str(self.run), "--only", "few", "--threads", "1")
        before = sampled(self.twin, self.images, pipeline)[0]
        pipeline.load_lora_weights(self.run / "steps" / "few")
        if np.array_equal(before, sampled(self.twin, self.images, pipeline)[0]):
            raise AssertionError("the stock pipeline samples with the LoRA what it sampled without it")

    def coreml(self) -> None:
        """Ask the Core ML exporter: every component is traced and accepted."""
        recipe = self.place / "coreml.yaml"
        recipe.write_text((self.place / "recipe.yaml").read_text() + COREML)
        command("check", "--deep", str(recipe))

    @property
    def files(self) -> Path:
        """The exported pipeline."""
        return self.run / "steps" / "pipeline" / "files"

    def step(self, name: str) -> None:
        """Run one step of the recipe; what is finished is reused."""
        command("run", str(self.place / "recipe.yaml"), "--out", str(self.run), "--only", name, "--threads", "1")


def outcome(cell: Callable[[], None]) -> list[str]:
    """Return state and reason of a cell."""
    try:
        cell()
    except UserError as error:
        return ["refused", str(error)[:LONGEST]]
    except Exception as error:  # noqa: BLE001 - whatever it is, the cell failed
        traceback.print_exc()
        return ["failed", f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"]
    return ["passed", ""]


def command(*words: str) -> None:
    """Run a command of the toolkit, in a process of its own as users do; exit status 2 is a UserError.

    Several traces of torch.export in one process died in its garbage collection (2026-11-29, torch's own frames).
    """
    done = subprocess.run([sys.executable, "-m", "dit_compress", *words], capture_output=True, text=True, check=False)
    if done.returncode == 2 and "Traceback" not in done.stderr:
        raise UserError(first_problem(done.stderr, words))
    if done.returncode:
        raise AssertionError(f"exit status {done.returncode}: {(done.stdout + done.stderr)[-400:]}")


def first_problem(said: str, words: tuple[str, ...]) -> str:
    """Return the first problem that a command names, and how many follow: lines that begin with a path it was given.

    What it is at and what libraries print stand before them; a message without a place is the last line.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    paths = tuple(word for word in words if "/" in word)
    problems = [line for line in lines if line.startswith(paths)] or lines[-1:]
    first, *more = problems or ["it said nothing"]
    return f"{first} ({len(more)} more)" if more else first


def stock(folder: Path) -> Any:
    """Open a folder by diffusers alone; code that the folder brings is its own loader."""
    import diffusers

    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled(folder: Path, images: bool, pipeline: Any = None) -> Any:  # noqa: FBT001
    """Sample four steps by the stock pipeline."""
    import inspect

    import torch
    from PIL import Image

    pipeline = pipeline or stock(folder)
    taken = inspect.signature(pipeline.__call__).parameters
    offered = {
        "prompt": "a red ball", "height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0,
        "output_type": "np", "generator": torch.Generator().manual_seed(0), "use_resolution_binning": False,
        "complex_human_instruction": [], "image": Image.new("RGB", (64, 64), (200, 30, 30)),
        **({} if images else {"frames" if "frames" in taken else "num_frames": 9}),
    }  # fmt: skip
    with torch.no_grad():
        return pipeline(**{name: value for name, value in offered.items() if name in taken})


def table(rows: dict[str, dict[str, list[str]]]) -> str:
    """Lay the cells out in Markdown, the reasons below."""
    lines = ["| model | " + " | ".join(CELLS) + " |", "|---" * (len(CELLS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row[cell][0] for cell in CELLS) + " |" for name, row in rows.items()]
    lines += ["", *(f"- {name}, {cell}: {row[cell][0]}: {row[cell][1]}"
                    for name, row in rows.items() for cell in CELLS if row[cell][1])]  # fmt: skip
    return "\n".join(lines)


def summed(rows: dict[str, dict[str, list[str]]]) -> dict[str, int]:
    """Count the cells by state."""
    states = [state for row in rows.values() for state, _ in row.values()]
    return {"models": len(rows), "cells": len(states),
            **{state: states.count(state) for state in ("passed", "refused", "failed")}}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
