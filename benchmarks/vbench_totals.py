"""VBench's published totals from its published scores, by the aggregator of ``evaluate: {use: vbench}``.

    python benchmarks/vbench_totals.py

Rows are those of VBench's leaderboard: sixteen scores, quality, semantic and total, each rounded to 0.01 as printed. A
row counts as reproduced where all three are within 0.015: half a digit of the printed total, and of the scores it was
made from. Last line: one JSON object; ``missed`` is to be 0.
"""

from __future__ import annotations

import json

from dit_compress_plugins.evaluate_vbench import DIMENSIONS
from dit_compress_plugins.evaluate_vbench.totals import totals

LEADERBOARD = {
    "CogVideoX-5B": "96.23 96.52 98.66 96.92 70.97 61.98 62.90 85.23 62.11 99.40 "
    "82.81 66.35 53.20 24.91 25.38 27.59 82.75 77.04 81.61",
    "CogVideoX-2B": "96.78 96.63 98.89 97.73 59.86 60.82 61.68 83.37 62.63 98.00 "
    "79.41 69.90 51.14 24.80 24.36 26.66 82.18 75.83 80.91",
    "HunyuanVideo": "97.37 97.76 99.44 98.99 70.83 60.36 67.56 86.10 68.55 94.40 "
    "91.60 68.68 53.88 19.80 23.89 26.44 85.09 75.82 83.24",
    "Gen-3": "97.10 96.62 98.61 99.23 60.14 63.34 66.82 87.81 53.64 96.40 "
    "80.90 65.09 54.57 24.31 24.71 26.69 84.11 75.17 82.32",
    "Kling": "98.33 97.60 99.30 99.40 46.94 61.21 65.62 87.24 68.05 93.40 "
    "89.90 73.03 50.86 19.62 24.17 26.42 83.39 75.68 81.85",
    "LTX-Video": "96.56 97.20 99.34 98.96 54.35 59.81 60.28 83.45 45.43 92.80 "
    "81.45 65.43 51.07 21.47 22.62 25.19 82.30 70.79 80.00",
    "Mochi-1": "96.99 97.28 99.40 99.02 61.85 56.94 60.64 86.51 50.47 94.60 "
    "79.73 69.24 36.99 20.33 23.65 25.15 82.64 70.08 80.13",
    "OpenSora 1.2": "96.75 97.61 99.53 98.50 42.39 56.85 63.34 82.22 51.83 91.20 "
    "90.08 68.56 42.44 23.95 24.54 26.85 81.35 73.39 79.76",
    "VideoCrafter-2.0": "96.85 98.22 98.41 97.73 42.50 63.13 67.22 92.55 40.66 95.00 "
    "92.92 35.86 55.29 25.13 25.84 28.23 82.20 73.42 80.44",
    "Gen-2": "97.61 97.61 99.56 99.58 18.89 66.96 67.42 90.92 55.47 89.20 "
    "89.49 66.91 48.91 19.34 24.12 26.17 82.47 73.03 80.58",
    "Pika": "96.94 97.36 99.74 99.50 47.50 62.04 61.87 88.72 43.08 86.20 "
    "90.57 61.03 49.83 22.26 24.22 25.94 82.92 71.77 80.69",
    "LaVie": "91.41 97.47 98.30 96.38 49.72 54.94 61.90 91.82 33.32 96.80 "
    "86.39 34.09 52.69 23.56 25.93 26.41 78.78 70.31 77.08",
    "ModelScope": "89.87 95.29 98.28 95.79 66.39 52.06 58.57 82.25 38.98 92.40 "
    "81.72 33.68 39.26 23.39 25.37 25.67 78.05 66.54 75.75",
    "T2V-Turbo (VC2)": "96.28 97.02 97.48 97.34 49.17 63.04 72.49 93.96 54.65 95.20 "
    "89.90 38.67 55.58 24.42 25.51 28.16 82.57 74.76 81.01",
    "Show-1": "95.53 98.02 99.12 98.24 44.44 57.35 58.66 93.07 45.47 95.60 "
    "86.35 53.50 47.03 23.06 25.28 27.46 80.42 72.98 78.93",
}  # fmt: skip
"""By model: the sixteen scores in the order of ``DIMENSIONS``, then quality, semantic and total, in percent."""

WITHIN = 0.015


def reproduced(row: str) -> bool:
    """Tell whether the three totals of a row come out of its scores."""
    *scores, quality, semantic, total = map(float, row.split())
    found = totals({name: score / 100 for name, score in zip(DIMENSIONS, scores, strict=True)})
    printed = {"vbench_quality": quality, "vbench_semantic": semantic, "vbench_total": total}
    return all(abs(found[name] - value) < WITHIN for name, value in printed.items())


def main() -> None:
    """Print every row's verdict, and one JSON object."""
    verdicts = {model: reproduced(row) for model, row in LEADERBOARD.items()}
    for model, held in verdicts.items():
        print(f"{model}: {'reproduced' if held else 'MISSED'}")
    print(json.dumps({"rows": sum(verdicts.values()), "missed": len(verdicts) - sum(verdicts.values())}))


if __name__ == "__main__":
    main()
