"""The first prune of a folder of diffusers: its memory against the pruned size, its time against a copy of the bytes.

    python benchmarks/first_prune.py [--params 7.15e8] [--folder DIR] [--rounds 9] [--threads 2]

A sharded folder of ``WanTransformer3DModel`` is written with random bfloat16 weights (from 5e9 parameters on with
the widths of Wan2.1-T2V-14B, else with those of the 1.3B one; the number of blocks follows). Each round, a process of
its own copies the files (read, write, fsync; a copy is deleted at once), and another prunes them with
``dit_compress.prune(folder, params="50%", out=...)``: search by magnitude, proof in float64, cutting, checksums,
loading. Both start with the source in the page cache, as far as it fits.

Memory is the largest resident set of the pruning process (``VmHWM``: pages of mapped files included), less what it was
after the imports, which is printed beside it. The module that ``prune`` returns is mapped from its files: its pages
count when they are read, so the peak after reading all of it is the one that counts; the one before stands beside. Time
is the wall time of the call, least of the rounds, with the class' structure known from the first one; the first one's
stands beside, and the processor's times against each other, which other work on the machine disturbs less. The last
line is one JSON object. Exit status 1 where a goal is missed: 1.2 times the pruned size plus a block, 3 times the copy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PEAK_GOAL, TIME_GOAL = 1.2, 3.0
LARGE = 5e9
WIDTHS = {
    False: {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960},
    True: {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824},
}
SHARDS_BYTES = {False: 500_000_000, True: 5_000_000_000}
COPY_BYTES = 16 << 20
RANDOM = 1 << 26
"""Random numbers that are drawn; weights are windows of them, each at another place."""


def empty_model(layers: int, *, large: bool) -> Any:
    """Return the model without weights."""
    import diffusers

    from dit_compress.structure.empty import empty_weights

    with empty_weights():
        return diffusers.WanTransformer3DModel(num_layers=layers, **WIDTHS[large])


def write_folder(folder: Path, params: float) -> tuple[int, int]:
    """Write config and shards; return the bytes of all weights, and of one block."""
    import torch

    from dit_compress.structure.files.tensor_files import INDEX, Described, header_bytes

    large = params >= LARGE
    fixed, block = (
        sum(p.numel() for p in module.parameters())
        for module in (empty_model(0, large=large), empty_model(1, large=large).blocks)
    )
    model = empty_model(round((params - fixed) / block), large=large)
    model.save_config(folder)
    torch.manual_seed(0)
    drawn = (torch.randn(RANDOM) / 50).bfloat16().view(torch.uint8).numpy().data
    shards: list[list[Described]] = [[]]
    for name, value in model.state_dict().items():
        if sum(item.size_bytes for item in shards[-1]) + 2 * value.numel() > SHARDS_BYTES[large]:
            shards.append([])
        shards[-1].append(Described(name, "BF16", tuple(value.shape)))
    stem, place, places = "diffusion_pytorch_model", 0, {}
    for number, shard in enumerate(shards, 1):
        file = folder / f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        places |= {item.name: file.name for item in shard}
        with file.open("wb") as handle:
            handle.write(header_bytes(shard, {"format": "pt"}))
            for item in shard:
                left = item.size_bytes
                while left:
                    place = (place + 7_654_322) % len(drawn)
                    left -= handle.write(drawn[place : place + left])
    total = sum(item.size_bytes for shard in shards for item in shard)
    (folder / f"{stem}{INDEX}").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return total, 2 * block


# ------------------------------------------------------------------ what is measured, each in a process of its own


def copy(source: Path, target: Path) -> dict[str, float]:
    """Copy the bytes; each copied file is deleted when it is on the disk."""
    target.mkdir()
    buffer, seconds = memoryview(bytearray(COPY_BYTES)), 0.0
    for file in sorted(source.glob("*.safetensors")):
        start = time.perf_counter()
        with file.open("rb", buffering=0) as reader, (target / file.name).open("wb", buffering=0) as writer:
            while count := reader.readinto(buffer):
                writer.write(buffer[:count])
            os.fsync(writer.fileno())
        seconds += time.perf_counter() - start
        (target / file.name).unlink()
    return {"seconds": seconds, "processor": time.process_time()}


def prune(source: Path, target: Path) -> dict[str, float]:
    """Prune, after everything that is imported is."""
    import diffusers
    import torch

    import dit_compress
    from dit_compress.plugin.registry import installed
    from dit_compress.pruning.step import step_part

    diffusers.WanTransformer3DModel  # noqa: B018 - imported when it is named
    step_part(params="50%").build()
    installed()
    imports, start, processor = _peak(), time.perf_counter(), time.process_time()
    module = dit_compress.prune(source, params="50%", out=target)
    found = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
    found |= {"imports": imports, "peak": _peak() - imports}
    with torch.no_grad():
        assert all(bool(torch.isfinite(part).all()) for p in module.parameters() for part in p.flatten().split(1 << 20))
    return {**found, "peak_in_use": _peak() - imports}


def _peak() -> int:
    """Return the largest resident set so far, in bytes (``ru_maxrss`` would count the parent's before the exec)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def child(work: str, source: Path, target: Path, cache: Path, threads: int) -> dict[str, float]:
    """Measure one piece of work in a process of its own."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    command = [sys.executable, __file__, "--work", work, "--folder", str(source), "--target", str(target)]
    environment = {**os.environ, "DIT_COMPRESS_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def measure(folder: Path, params: float, rounds: int, threads: int) -> dict[str, Any]:
    """Copy and prune in turn."""
    source = folder / "whole"
    source.mkdir()
    total, block = write_folder(source, params)
    print(f"{total / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} shards, {block / 1e6:.0f} MB a block")
    copies, prunes = [], []
    for _ in range(rounds):
        copies.append(child("copy", source, folder / "copied", folder / "cache", threads))
        prunes.append(child("prune", source, folder / "pruned", folder / "cache", threads))
        print(f"copy {copies[-1]['seconds']:.2f} s, prune {prunes[-1]['seconds']:.2f} s", flush=True)
    pruned = sum(file.stat().st_size for file in (folder / "pruned").glob("*.safetensors"))
    peak = max(found["peak_in_use"] for found in prunes)
    seconds, copied = (min(found["seconds"] for found in each) for each in (prunes, copies))
    processor = [min(found["processor"] for found in each) for each in (prunes, copies)]
    return {
        "peak_over_pruned": round((peak - block) / pruned, 3),
        "time_over_copy": round(seconds / copied, 2),
        "processor_over_copy": round(processor[0] / processor[1], 2),
        "peak_before_use_over_pruned": round(max(found["peak"] for found in prunes) / pruned, 3),
        "peak_mb": round(peak / 1e6),
        "imports_mb": round(max(found["imports"] for found in prunes) / 1e6),
        "whole_mb": round(total / 1e6),
        "pruned_mb": round(pruned / 1e6),
        "block_mb": round(block / 1e6),
        "seconds": round(seconds, 2),
        "seconds_of_the_first": round(prunes[0]["seconds"], 2),
        "copy_seconds": round(copied, 2),
        "threads": threads,
    }


def main() -> int:
    """Measure, print, and hold against the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=float, default=7.15e8, help="about so many parameters")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if absent")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; all if absent")
    parser.add_argument("--work", choices=("copy", "prune"), help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps({"copy": copy, "prune": prune}[given.work](given.folder, given.target)))
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = measure(Path(folder), given.params, given.rounds, given.threads)
    met = found["peak_over_pruned"] <= PEAK_GOAL and found["time_over_copy"] <= TIME_GOAL
    print(json.dumps({**found, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
