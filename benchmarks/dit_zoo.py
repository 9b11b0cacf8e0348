"""Every transformer of diffusers that can be built small on a CPU: is what is removed removed exactly?

    python benchmarks/dit_zoo.py [CLASS ...] [--no-peer] [--workers 2]

For each class, without any code written for it: structure from one call; removal of blocks, heads and FFN channels;
masked against compact in float64 (at most 1e-10) and float32 (at most 1e-5), against a reference that does not use
the toolkit's masks; the same after saving and reloading; units counted against a table read from the sources
(``zoo/truth.py``). A level missed or refused is not exact. Mutations (a stale head count, a norm that is not
rescaled, gates that belong to other values, deletion where an index counts blocks) must be rejected by the proof.
The width of the stream stands in a column of its own: exact, or refused with the reason below the row.
Torch-Pruning's result stands beside it (one head and one channel per stack, given our attributes).

The last line is one JSON object. Exit status 1 where a goal is missed: 57 classes with blocks and with FFN exact, 52
with heads, 52 on all levels, nothing silently wrong, every mutation rejected.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import diffusers
import torch

sys.path.insert(0, str(Path(__file__).parent / "zoo"))

import judge
import models
from truth import TRUTH

GOALS = {"classes": 59, "blocks_exact": 57, "ffn_exact": 57, "heads_exact": 52, "exact_all_levels": 52}


def main() -> int:
    """Print one row per class, and one JSON object."""
    arguments = parsed()
    names = arguments.classes or sorted(TRUTH)
    verdicts = []
    start = time.monotonic()
    print(f"{'class':42}{'block':>10}{'head':>10}{'ffn':>10}{'width':>10}  peer")
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=fresh, initializer=prepare) as pool:
        for verdict, seconds in pool.map(tried, names, [not arguments.no_peer] * len(names)):
            verdicts.append(verdict)
            show(verdict, seconds)
    figures = summed(verdicts, peer=not arguments.no_peer)
    met = not figures["silently_wrong"] and not figures["mutations_missed"]
    met = met and (bool(arguments.classes) or all(figures[key] >= goal for key, goal in GOALS.items()))
    print(json.dumps({**figures, "seconds": round(time.monotonic() - start)}))
    return 0 if met else 1


def prepare() -> None:
    """Set up a worker."""
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)


def tried(name: str, peer: bool) -> tuple[judge.Verdict, float]:  # noqa: FBT001 - mapped over
    """Try one class; return the verdict and the processor time it took."""
    start = time.process_time()
    verdict = judge.judge(name, TRUTH[name])
    if peer:
        verdict.peer = peer_of(name)
    return verdict, time.process_time() - start


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Exactness over the transformers of diffusers.")
    parser.add_argument("classes", nargs="*", help="classes; all of them if absent")
    parser.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--workers", type=int, default=1, help="processes; each on one thread")
    found = parser.parse_args()
    if unknown := sorted(set(found.classes) - TRUTH.keys()):
        parser.error(f"not in the zoo: {', '.join(unknown)}")
    return found


def peer_of(name: str) -> str:
    """Return Torch-Pruning's result; a word where it is not installed."""
    from dit_compress.structure.observe.discover import observe
    from dit_compress.structure.record import Call

    try:
        from peer import peer
    except ImportError:
        return "torch-pruning is not installed"
    module, inputs = models.build(name)
    try:
        return peer(name, observe(module, Call((), inputs, recorded=True)))
    except judge.FAILS as error:
        return type(error).__name__


def show(verdict: judge.Verdict, seconds: float) -> None:
    """Print a row, and what needs a word."""
    cells = []
    for level in judge.LEVELS:
        error = verdict.error.get(level)
        text = "refused" if error is None else f"{error:.0e}"
        cells.append(f"{text:>9}{' ' if verdict.exact(level) else '!'}")
    cells.append(f"{verdict.width if verdict.width_exact else 'refused':>9} ")
    print(f"{verdict.name:42}{''.join(cells)}  {verdict.peer}  ({seconds:.0f} s)", flush=True)
    for level in judge.LEVELS:
        if not verdict.counted.get(level):
            print(f"    {level}: units differ from the source")
        elif level in verdict.error and not verdict.exact(level):
            more = f"reloads {verdict.reloads.get(level)}, changes the output {verdict.acts.get(level)}"
            print(f"    {level}: float32 {verdict.single.get(level)}, {more}")
    for text in dict.fromkeys([*verdict.refused, *verdict.wrong]):
        print(f"    {text}")
    if not verdict.width_exact:
        print(f"    width: {verdict.width}")
    for name, rejected in verdict.mutations.items():
        if not rejected:
            print(f"    mutation not rejected: {name}")


def summed(verdicts: list[judge.Verdict], *, peer: bool) -> dict[str, int | None]:
    """Sum up the figures."""
    exact = {level: [v for v in verdicts if v.exact(level)] for level in judge.LEVELS}
    mutations = [rejected for v in verdicts for rejected in v.mutations.values()]
    return {
        "classes": len(verdicts),
        "blocks_exact": len(exact["block"]),
        "ffn_exact": len(exact["ffn"]),
        "heads_exact": len(exact["head"]),
        "exact_all_levels": sum(all(v.exact(level) for level in judge.LEVELS) for v in verdicts),
        "width_exact": sum(v.width_exact for v in verdicts),
        "refused": sum(bool(v.refused) for v in verdicts),
        "silently_wrong": sum(bool(v.wrong) for v in verdicts),
        "mutations": len(mutations),
        "mutations_missed": mutations.count(False),
        "torch_pruning_exact": sum(v.peer == "exact" for v in verdicts) if peer else None,
    }


if __name__ == "__main__":
    sys.exit(main())
