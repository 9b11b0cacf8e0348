"""A model card of a run, as the Hugging Face Hub reads it: front matter, what was removed, every figure, the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.core.files import read_json, whole_file
from dit_compress.model.licence import CARD
from dit_compress.plugin import defaults
from dit_compress.report.data import read_run
from dit_compress.report.page import environment
from dit_compress.report.proofs import proofs
from dit_compress.report.result import outcome, sentence
from dit_compress.report.summary import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dit_compress.report.data import Run, Step
    from dit_compress.report.proofs import Proof

TEMPLATE = "card.md.j2"
TAGS = ["dit-compress", "diffusion-transformer", "model-compression"]


def write_card(folder: Path, out: Path | None = None, base_model: str | None = None) -> Path:
    """Write the card of a run.

    Args:
        folder: the run's folder.
        out: the file; ``README.md`` of the run's folder if absent.
        base_model: the repository that the first weights came from, ``org/name``: a path on this machine says nothing.

    Raises:
        UserError: the folder holds no run, or a file in it is broken.
    """
    run, path = read_run(folder), out or folder / CARD
    with whole_file(path) as partial:
        partial.write_text(card(run, licence(folder, run), base_model), "utf-8")
    return path


def card(run: Run, stated: str | None, base_model: str | None = None) -> str:
    """Render the card of a run whose result is under a licence."""
    made = environment(autoescape=False).get_template(TEMPLATE)
    return made.render(
        run=run,
        front=front_matter(run, stated, base_model),
        sentence=sentence(outcome(run)),
        sizes=list(sizes(run)),
        measured=[
            (step, name, value)
            for step in run.of_kind("evaluate")
            for name, value in flatten(step.metrics).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ],
        proven=proofs(run),
        lowest=lowest,
    )


def front_matter(run: Run, stated: str | None, base_model: str | None) -> str:
    """Return what the Hub reads, as YAML; a licence of its own stands behind ``other``."""
    import yaml

    name, _, link = (stated or "").rstrip(")").partition(" (")
    known = {"license": name} if name and not link else {"license": "other", "license_name": name or "unknown"}
    diffusers = any(step.plugin == defaults.PIPELINE for step in run.of_kind("export"))
    data: dict[str, Any] = {
        **known,
        **({"license_link": link} if link else {}),
        **({"base_model": base_model, "base_model_relation": "finetune"} if base_model else {}),
        "library_name": "diffusers" if diffusers else "dit-compress",
        "pipeline_tag": "text-to-video",
        "tags": TAGS,
    }
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def licence(folder: Path, run: Run) -> str | None:
    """Return the licence that the last bundle of a run states."""
    bundles = (folder / "steps" / step.name / "bundle" / "bundle.json" for step in reversed(run.steps))
    return next((read_json(path).get("licence") for path in bundles if path.is_file()), None)


def sizes(run: Run) -> Iterator[Step]:
    """Yield the steps that changed how large the denoiser is, the first one among them."""
    before = None
    for step in run.steps:
        if (now := step.model.get("params")) is not None and now != before:
            before = now
            yield step


def lowest(proof: Proof) -> float | None:
    """Return the lowest agreement of a file with the model, over all sets of inputs, in dB."""
    return min((check.psnr_db for check in proof.checks if check.psnr_db is not None), default=None)
