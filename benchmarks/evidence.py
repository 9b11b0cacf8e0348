"""Hold a finished run of recipes/shapes.yaml against the quality goals; the last line is one JSON object.

    dit-compress run recipes/shapes.yaml && python benchmarks/evidence.py runs/shapes

Every figure comes from the run's summary.json. Exit status 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

ATTRIBUTES = ("count", "shape", "colour", "size", "direction", "speed", "background")


def figures(run: Path) -> dict[str, float]:
    """Return the figures the goals speak of."""
    steps: dict[str, dict[str, Any]] = {
        step["name"]: step for step in json.loads((run / "summary.json").read_text("utf-8"))["steps"]
    }
    metrics = {name: step.get("metrics") or {} for name, step in steps.items()}
    real, trip = metrics["real-clips"], metrics["round-trip"]
    accuracy = {
        name: metrics[name]["attribute_accuracy"]
        for name in ("teacher-40", "teacher-4", "undistilled-4", "compact-4", "student-4")
    }
    teacher, student = (steps[name]["model"]["params"] for name in ("teacher", "student"))
    return {
        "vae_above_pca_db": metrics["vae"]["above_pca_db"],
        "vae_worst_attribute_kept": min(trip[f"accuracy.{name}"] / real[f"accuracy.{name}"] for name in ATTRIBUTES),
        **{f"accuracy_{name.replace('-', '_')}": value for name, value in accuracy.items()},
        "student_share_of_teacher": accuracy["student-4"] / accuracy["teacher-40"],
        "params_kept": student / teacher,
        "times_faster": metrics["speed"]["times_faster"],
        "minutes": sum(step.get("seconds") or 0 for step in steps.values()) / 60,
    }


def goals(found: dict[str, float]) -> dict[str, bool]:
    """Judge each goal of the evidence run, met or not."""
    return {
        "VAE at least 2 dB above PCA": found["vae_above_pca_db"] >= 2,
        "VAE keeps 0.95 of every attribute": found["vae_worst_attribute_kept"] >= 0.95,
        "teacher at least 0.90": found["accuracy_teacher_40"] >= 0.90,
        "4 unguided steps clearly worse than 40 guided": found["accuracy_teacher_4"]
        <= found["accuracy_teacher_40"] - 0.05,
        "student at least 0.9 of the teacher": found["student_share_of_teacher"] >= 0.9,
        "student above the undistilled model": found["accuracy_student_4"] > found["accuracy_undistilled_4"],
        "at most half of the parameters": found["params_kept"] <= 0.5,
        "at least 20 times faster": found["times_faster"] >= 20,
        "within 60 minutes": found["minutes"] <= 60,
    }


def main() -> int:
    """Print the figures, the goals, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/shapes"))
    found = figures(parser.parse_args().run)
    met = goals(found)
    for name, value in found.items():
        print(f"{name:32} {value:.4g}")
    for name, good in met.items():
        print(f"{'met   ' if good else 'MISSED'} {name}")
    print(
        json.dumps(
            {
                **{k: round(v, 4) for k, v in found.items()},
                "met": sum(met.values()),
                "goals": len(met),
                "machine": platform.machine(),
            }
        )
    )
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
