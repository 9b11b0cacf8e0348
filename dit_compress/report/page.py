"""``report.html``: one page, everything inline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.report import figures
from dit_compress.report.layouts import layout_pictures
from dit_compress.report.lineage import lineage
from dit_compress.report.media import data_uri, wall
from dit_compress.report.paper import compared
from dit_compress.report.proofs import input_sets, proofs
from dit_compress.report.reconstruction import reconstructions
from dit_compress.report.result import arms, sentence, words
from dit_compress.report.spectra import spectrum_picture
from dit_compress.report.summary import flatten
from dit_compress.report.widths import width_tables

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from dit_compress.report.data import Run, Step
    from dit_compress.report.result import Arm, Outcome

TEMPLATE = "template.html.j2"
GRADIENT = "grad_"
MINUTE, MILLION, HUNDRED_MILLION, LARGE = 60, 1e6, 1e8, 1e4


def render(run: Run, result: Outcome) -> str:
    """Render the page as text."""
    found = arms(run)
    proven = proofs(run)
    return environment().get_template(TEMPLATE).render(
        run=run,
        result=result,
        sentence=sentence(result),
        metric=words(result.quality_metric or ""),
        notes={step.name: measured(run, step) for step in run.steps},
        trainings=[(step, *curves(step)) for step in run.steps if step.curves],
        prunings=[(step, *pruning_pictures(step)) for step in run.steps if step.pruning],
        layouts=[(step, layout_pictures(step.layout, step.name)) for step in run.steps if step.layout],
        wall=wall(run),
        reconstructions=reconstructions(run),
        arms=found,
        attributes=attributes(found),
        speeds=[step for step in run.of_kind("evaluate") if "sample_ms" in step.metrics],
        width_tables=width_tables(run),
        spectra=[picture for step in run.of_kind("evaluate") if (picture := spectrum_picture(step)) is not None],
        proofs=proven,
        input_sets=input_sets(proven),
        paper=compared(run, result),
        lineage=lineage(run),
        metrics=[(step, flatten(step.metrics)) for step in run.steps if step.metrics],
    )  # fmt: skip


def environment(*, autoescape: bool = True) -> Environment:
    """Make Jinja, with autoescape for HTML, strict about names, and the page's number formats."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,  # noqa: S701 - off for Markdown alone
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {each.__name__: each for each in (millions, figure, duration, share, megabytes, data_uri)}
    return made


def measured(run: Run, step: Step) -> dict[str, list[tuple[str, str]]]:
    """Collect latency and quality that evaluate steps found of a step's bundle (or, of an evaluate step, its own).

    Figures of real clips are no property of a bundle.
    """
    found: dict[str, list[tuple[str, str]]] = {"latency_ms": [], "quality": []}
    for other in run.of_kind("evaluate"):
        if step.name not in (other.name, other.source):
            continue
        if other is not step and other.options.get("source") == "real":
            continue
        who = "" if other is step else other.name
        if isinstance(latency_ms := other.metrics.get("dit_call_ms"), int | float):
            found["latency_ms"].append((f"{latency_ms:,.1f}", who))
        if isinstance(value := other.metrics.get(key := other.headline or ""), int | float):
            found["quality"].append((f"{value:.1f} dB" if key.endswith("_db") else f"{value:.3f}", who))
    return found


def curves(step: Step) -> tuple[list[Markup], list[Markup]]:
    """Draw a training's losses, and its gradient norms."""
    drawn: tuple[list[Markup], list[Markup]] = ([], [])
    for index, series in enumerate(step.curves):
        is_gradient = series.name.rpartition("/")[2].startswith(GRADIENT)
        drawn[is_gradient].append(figures.curve(series, f"{step.name}-c{index}"))
    return drawn


def pruning_pictures(step: Step) -> tuple[list[Markup], list[Markup]]:
    """Draw the search, and what went; nothing for a step that pruned nothing."""
    if step.pruning is None:
        return [], []
    return figures.search_pictures(step.pruning, step.name), figures.unit_pictures(step.pruning, step.name)


def attributes(found: list[Arm]) -> list[str]:
    """List the attributes that any arm has, in the order of their first appearance."""
    return list(dict.fromkeys(name for arm in found for name in arm.scores))


# ------------------------------------------------------------------ formats


def millions(count: float | None) -> str:
    """Format as ``258K``, ``6.23M``, ``1,923M``, ``–``."""
    if count is None:
        return "–"
    if count < MILLION:
        return f"{count / 1e3:,.0f}K"
    return f"{count / 1e6:,.{0 if count >= HUNDRED_MILLION else 2}f}M"


def figure(value: Any) -> str:
    """Format any figure: integers in full, other numbers to four digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < LARGE else f"{value:,.0f}"
    return str(value)


def duration(seconds: float) -> str:
    """Format as ``42 s``, ``7 min 05 s``, ``1 h 12 min``."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), MINUTE)
    if minutes < MINUTE:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // MINUTE} h {minutes % MINUTE:02d} min"


def share(value: float | None) -> str:
    """Format as ``92%``."""
    return "–" if value is None else f"{value:.0%}"


def megabytes(size_bytes: int | None) -> str:
    """Format as ``1.25 MB``."""
    return "–" if size_bytes is None else f"{size_bytes / 1e6:,.2f} MB"
