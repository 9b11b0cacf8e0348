"""The paper's Tables 3, 4 and 5 in miniature, and the sweep of K: paired over seeds, Holm-corrected.

    python benchmarks/tables.py --table 3|5|k [--seeds 8] [--workers 2] [--out runs/tables] [--device cuda]
    python benchmarks/tables.py --table 3 --data real
    python benchmarks/tables.py --table 4 --question more|total [--teachers 8] [--students 3] [--workers 2]

Table 4 is two questions, asked in a world whose exact velocity is known (``account.py``). The others run on the world
of moving shapes. All are recipes of the toolkit, so that a killed run goes on; ``--workers`` seeds at once, one thread
each. A seed fixes first weights, data order, noise and the noise of samples; all seeds share clips and VAEs.

    3   one DiT from scratch on each of four VAE ratios of equal channels, equal steps: PSNR, tokens, ms, accuracy;
        with ``--data real`` an h3ae of each ratio and seed on real clips, no DiT trained (``real_table.py``)
    4   a teacher pruned to the size of 4 of its 6 blocks: by all levels with KD (Eq. 6) and without, heads, FFN or
        blocks alone; ``shallow`` and ``narrow`` from scratch at the same size (within 1%)
    5   the unpruned teacher distilled to 4 steps (of its own guided samples, as in recipes/shapes.yaml) against three
        discriminator heads of equal trainable size (within 10%)
    k   the same against the paper's head after K frozen blocks

Each claim says that one arm is better than another by a measure; claims stand in ``TABLES`` (of Table 4 in
``account.claims``) before any run, six a table: Holm's correction over exact one-sided sign-flip tests of 8 seeds
(smallest p 1/256) lets each hold. A claim is ``held`` where the mean paired difference is in its favour with a
corrected p < 0.05, ``reversed`` where it is against it with one. Measures: attribute accuracy of generated videos,
read from their pixels (10 guided steps in Table 3, 4 plain ones in 5 and k); ``loss``, flow matching on a fixed grid
of held-out clips and noise levels; ``energy``, the energy distance between latents sampled in 4 steps and those of
held-out clips; ``ms``, processor time of one DiT call.

Writes ``table-<N>.md`` (``table-4-<question>.md``, ``table-3-real.md``) with the paper's numbers beside; the last line
is one JSON object. A claim that fails is a result: exit status 0. Tiers: ``short`` (the default), ``full`` (larger, for
a GPU: the default of ``--device cuda``; its time was never measured), ``tiny`` (shows that the benchmark runs; nothing
is learned).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import account
import real_table
import tabled
from paired import Row, Table, judge, single_thread, status_of
from real_table import RATIOS

from dit_compress.measure.latency import machine

HEADS = ("dit_block", "resblock2d_temporal", "light_resblock3d")
JUDGES = {head: {"use": head, "frozen_blocks": 4} for head in HEADS}
SWEEP = {f"K={depth}": {"use": "dit_block", "frozen_blocks": depth} for depth in (1, 2, 4, 6)}
"""Frozen blocks of 8; half, the default of the toolkit, is what the claims of the sweep are about."""

TABLES = {
    "3": Table(
        "Table 3: VAE ratio, equal latent channels",
        {
            "4x16x16": "33.1 dB, 7,900 ms; phone: out of memory",
            "4x32x32": "30.9 dB, 920 ms; phone 3,315 ms",
            "8x32x32": "30.6 dB, 380 ms; phone 880 ms",
            "8x64x64": "28.2 dB, 90 ms; phone 155 ms",
        },
        {"psnr_db": 2, "tokens": 0, "ms": 2, "round_trip": 3, "accuracy": 3},
        (
            *((coarser, finer, "ms", -1) for finer, coarser in itertools.pairwise(RATIOS)),
            *((finer, coarser, "accuracy", 1) for finer, coarser in itertools.pairwise(RATIOS)),
        ),
        "PSNR and A100 ms a step",
        "One VAE per ratio, shared by all seeds: `psnr_db` and `round_trip` (accuracy read from decoded real clips) "
        "have no spread.",
    ),
    "5": Table(
        "Table 5: discriminator heads of equal size",
        {"dit_block": "81.63", "resblock2d_temporal": "80.14", "light_resblock3d": "77.24", "teacher": "–"},
        {"trained": 0, "accuracy": 3, "energy": 4, "displacement": 3},
        tuple(
            (HEADS[better], HEADS[other], measure, sign)
            for measure, sign in (("accuracy", 1), ("energy", -1))
            for better, other in ((0, 1), (0, 2), (1, 2))
        ),
        "VBench total",
        "`teacher` is the model before distillation in 4 plain steps, in no claim. `trained` counts the head's "
        "trainable parameters.",
    ),
    "k": Table(
        "K: how many frozen blocks the discriminator reads through",
        {**dict.fromkeys(SWEEP, "–"), "teacher": "–"},
        {"trained": 0, "accuracy": 3, "energy": 4, "displacement": 3},
        tuple(
            ("K=4", other, measure, sign)
            for measure, sign in (("accuracy", 1), ("energy", -1))
            for other in SWEEP
            if other != "K=4"
        ),
        "not swept",
        "The paper does not state K. `teacher` is the model before distillation in 4 plain steps, in no claim.",
    ),
}

_SMALL = {"preset": "small", "layers": 8, "heads": 16, "channels": 96, "preconditioned": True}
TIERS: dict[str, dict[str, Any]] = {
    "full": {
        "model": {**_SMALL, "head_width": 24, "ffn": 1152}, "text": 128, "batch": 64, "ema": 0.99,
        "data": {"num_clips": 4000, "num_test": 256, "frames": 17, "size": [96, 96]},
        "vae": {"steps": 2000, "losses": {"epsilon": 1}}, "train": {"lr": 1e-3, "muon_lr": 0.02},
        "teacher": 6000, "guided": {"num_captions": 128, "num_steps": 20},
        "plain": {"num_captions": 256, "num_steps": 4, "guidance": 1}, "ratio_steps": 6000,
        "adversarial": {"steps": 2000, "lr": 3e-4, "discriminator_lr": 3e-4, "adversarial_weight": 0.05,
                        "teacher_samples": 10000, "teacher_steps": 8},
        "ratio_data": {"num_clips": 4000, "num_test": 128, "frames": 17, "size": [128, 128]},
        "ratio_layers": 8, "ratio_vae": 2000,
    },
    "short": {
        "model": {**_SMALL, "head_width": 6, "ffn": 288}, "text": 64, "batch": 24, "ema": 0.98,
        "data": {"num_clips": 1000, "num_test": 64, "frames": 9, "size": [96, 96]},
        "vae": {"steps": 300, "losses": {"epsilon": 1}}, "train": {"lr": 2e-3, "muon_lr": 0.02},
        "teacher": 320, "guided": {"num_captions": 32, "num_steps": 10},
        "plain": {"num_captions": 64, "num_steps": 4, "guidance": 1}, "ratio_steps": 220,
        "adversarial": {"steps": 150, "lr": 5e-4, "discriminator_lr": 5e-4, "adversarial_weight": 0.05,
                        "teacher_samples": 512, "teacher_steps": 8},
        "ratio_data": {"num_clips": 800, "num_test": 48, "frames": 9, "size": [64, 128]},
        "ratio_layers": 6, "ratio_vae": 200,
    },
    "tiny": {
        "model": {**_SMALL, "head_width": 4, "ffn": 192, "channels": 32}, "text": 16, "batch": 4, "ema": 0.9,
        "data": {"num_clips": 12, "num_test": 4, "frames": 9, "size": [64, 64]},
        "vae": {"steps": 1, "widths": [8, 8, 8, 8], "blocks": 1, "pca_clips": 12}, "train": {"lr": 1e-3},
        "teacher": 2, "guided": {"num_captions": 2, "num_steps": 2},
        "plain": {"num_captions": 2, "num_steps": 2, "guidance": 1}, "ratio_steps": 2,
        "adversarial": {"steps": 2, "discriminator_warmup": 1, "teacher_samples": 4, "teacher_steps": 2},
        "ratio_data": {"num_clips": 12, "num_test": 4, "frames": 9, "size": [64, 128]},
        "ratio_layers": 2, "ratio_vae": 1,
    },
}  # fmt: skip


def main() -> int:
    """Run what has not run, write the table, print it, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=[*TABLES, "4"], required=True, help="'k' sweeps the frozen blocks")
    parser.add_argument("--seeds", type=int, default=8, help="of all tables but 4")
    parser.add_argument("--data", choices=("shapes", "real"), default="shapes", help="of Table 3")
    parser.add_argument("--question", choices=("more", "total"), help="of Table 4: steps beside a teacher, or in all")
    parser.add_argument("--teachers", type=int, default=8, help="seeds of Table 4's teachers")
    parser.add_argument("--students", type=int, default=3, help="seeds of students, for each teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"))
    parser.add_argument("--tier", choices=TIERS, help="'short' if absent; 'full' with --device cuda")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once; each has one thread")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    choose_device(parser, arguments.device)
    tier = arguments.tier or ("full" if arguments.device == "cuda" else "short")
    if (arguments.question is not None) != (arguments.table == "4"):
        parser.error("--table 4 takes --question more or total, no other table does")
    if arguments.data == "real" and arguments.table != "3":
        parser.error("--data real belongs to --table 3")
    if arguments.table == "4":
        return table_4(arguments, tier)
    out, started, real = (arguments.out / tier).resolve(), time.monotonic(), arguments.data == "real"
    table = real_table.TABLE if real else TABLES[arguments.table]
    if real:
        single_thread()
        rows = real_table.rows_of(out, tier, arguments.seeds)
    else:
        rows = rows_of(arguments.table, out, TIERS[tier], arguments.seeds, arguments.workers)
    verdicts = judge(rows, table.claims)
    minutes = round((time.monotonic() - started) / 60, 1)
    where = machine() if arguments.device == "cuda" else f"{machine().partition(',')[0]}, one thread a seed"
    text = table.markdown(rows, verdicts, f"{tier} tier; {where}; {time.strftime('%Y-%m-%d', time.gmtime())}")
    (arguments.out / f"table-{arguments.table}{'-real' if real else ''}.md").write_text(text, "utf-8")
    print(text)
    name = int(arguments.table) if arguments.table.isdigit() else arguments.table
    result: dict[str, Any] = {"table": name, "data": arguments.data, "seeds": arguments.seeds, "claims": len(verdicts)}
    result |= {name: sum(verdict[name] for verdict in verdicts) for name in ("held", "reversed")}
    print(json.dumps({**result, "arms": table.means(rows), "tier": tier, "minutes": minutes}))
    return 0


def table_4(arguments: argparse.Namespace, tier: str) -> int:
    """Do the same for Table 4."""
    started, pairs = time.monotonic(), (arguments.teachers, arguments.students)
    text, figures = account.account(arguments.question, arguments.out, tier, pairs, arguments.workers)
    how = f"{machine().partition(',')[0]}, one thread a seed; {tier} tier; {time.strftime('%Y-%m-%d', time.gmtime())}"
    text = f"# Table 4, {arguments.question}: excess over the exact velocity\n\n{how}\n\n{text}\n"
    (arguments.out / f"table-4-{arguments.question}.md").write_text(text, "utf-8")
    print(text)
    print(json.dumps({**figures, "minutes": round((time.monotonic() - started) / 60, 1)}))
    return 0


def choose_device(parser: argparse.ArgumentParser, device: str) -> None:
    """Choose the device. Steps train on the GPU there is: hide it from a CPU's run, refuse a run on a missing one."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if not torch.cuda.is_available():
        parser.error("there is no GPU here: leave out --device cuda")


def rows_of(table: str, out: Path, sizes: dict[str, Any], seeds: int, workers: int) -> list[Row]:
    """List what seeds share, then the seeds."""
    shared_by_seeds(table, out, sizes)
    with ProcessPoolExecutor(workers, get_context("spawn"), single_thread) as pool:
        return [job.result() for job in [pool.submit(row, table, out, sizes, seed) for seed in range(seeds)]]


def shared_by_seeds(table: str, out: Path, sizes: dict[str, Any]) -> None:
    """Make clips, VAEs and latents. One thread, so that a result does not depend on how many workers there were."""
    single_thread()
    if table == "3":
        tabled.ratio_base(out, sizes, RATIOS)
    else:
        tabled.base(out, sizes)


def row(table: str, out: Path, sizes: dict[str, Any], seed: int) -> Row:
    """Compute one seed of a table."""
    if table == "3":
        return tabled.row_3(out, sizes, seed, RATIOS)
    return tabled.row_5(out, sizes, seed, SWEEP if table == "k" else JUDGES)


if __name__ == "__main__":
    sys.exit(status_of(main))
