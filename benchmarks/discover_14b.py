"""The time it takes to understand a full-size model, without its weights.

    python benchmarks/discover_14b.py [CLASS ...]

Each class is built at the size its own defaults give, on the meta device (WanTransformer3DModel: Wan2.1-T2V-14B), and
observed on one call. What is found is printed beside the config's own numbers, which the toolkit does not read. The
last line is one JSON object, about the first class: ``seconds`` is processor time on one thread, so that other work on
the machine does not count; ``peak_rss_gib`` is that of the whole process, torch included. Exit status 1 where a class
takes a minute or more, or where blocks, heads or channels differ from its config.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import warnings
from typing import Any

import diffusers
import torch

from dit_compress.model.figures import count_parameters
from dit_compress.pruning.target import empty_denoiser

GOAL_S = 60.0


def main() -> int:
    """Print a row per class, and one JSON object."""
    parser = argparse.ArgumentParser(description="Seconds to find the structure of a full-size model.")
    parser.add_argument("classes", nargs="*", default=["WanTransformer3DModel"], help="classes of diffusers")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    rows = [measured(name) for name in arguments.classes]
    print(json.dumps(rows[0]))
    return 0 if all(row["seconds"] < GOAL_S and row["as_configured"] for row in rows) else 1


def measured(name: str) -> dict[str, Any]:
    """Return the seconds for building and observing, and what was found."""
    wall, start = time.monotonic(), time.process_time()
    denoiser = empty_denoiser(name)
    built = time.process_time() - start
    structure = denoiser.structure()
    seconds = time.process_time() - start
    assert all(parameter.is_meta for parameter in denoiser.module.parameters())
    blocks = {stack.path: stack.length for stack in structure.stacks}
    heads = sorted({part.heads for part in structure.attentions})
    widths = sorted({part.width for part in structure.feed_forwards})
    config = {key: denoiser.module.config.get(key) for key in ("num_layers", "num_attention_heads", "ffn_dim")}
    stack = structure.main.path
    expected = {"num_layers": structure.main.length, "num_attention_heads": heads[0] if heads else 0}
    expected |= {"ffn_dim": widths[-1] if widths else 0}
    agree = all(config[key] in (None, value) for key, value in expected.items())
    row = {
        "class": name,
        "params": count_parameters(denoiser.module),
        "seconds": round(seconds, 2),
        "seconds_to_build": round(built, 2),
        "wall_seconds": round(time.monotonic() - wall, 2),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "blocks": blocks,
        "attentions": sum(part.stack == stack for part in structure.attentions),
        "feed_forwards": sum(part.stack == stack for part in structure.feed_forwards),
        "heads": heads,
        "ffn": widths,
        "refused": len(structure.refusals),
        "as_configured": agree and not structure.refusals,
    }
    print(f"{name}: {row['params'] / 1e9:.1f}B parameters, {seconds:.1f} s ({built:.1f} s to build)")
    print(f"    found: stacks {blocks}, heads {heads}, FFN channels {widths}; the config says {config}")
    for refusal in structure.refusals:
        print(f"    {refusal.path}: {refusal.reason}")
    return row


if __name__ == "__main__":
    sys.exit(main())
