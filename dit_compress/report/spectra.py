"""The report's pictures of latent spectra: power by frequency, before and after where there are two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.report.svg import ACCENT, WARM, as_svg, drawing, headline, place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup

    from dit_compress.report.data import Step

WIDTH, HEIGHT = 330, 190
STYLES = {"own": (ACCENT, "-"), "against": (WARM, "--")}


def spectrum_picture(step: Step) -> Markup | None:
    """Draw an evaluation's latent spectra; None for an evaluation without."""
    found: Mapping[str, Any] | None = step.metrics.get("latent_power")
    if not isinstance(found, dict) or not {"frequency", "own"} <= set(found):
        return None
    labels = {"own": step.source or step.name, "against": step.inputs.get("against", "against")}
    with drawing(WIDTH, HEIGHT) as figure:
        axes = place(figure, 44, 34, WIDTH - 54, HEIGHT - 62)
        for name, (colour, dash) in STYLES.items():
            points = [(at, value) for at, value in zip(found["frequency"], found.get(name, ()), strict=False) if value]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker="o", markersize=3,
                          label=labels[name])  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_xlabel("frequency, of the finest")
        axes.set_ylabel("power")
        if axes.lines:
            axes.legend(frameon=False, fontsize=7.5)
        headline(figure, step.name, note(step))
        return as_svg(figure, f"{step.name}-power", f"power of the latents of {labels['own']} by frequency")


def note(step: Step) -> str:
    """Say the share of the upper half, and what it was before."""
    shares = [step.metrics.get(name) for name in ("against_upper_share", "upper_share")]
    return " → ".join(f"{share:.1%}" for share in shares if isinstance(share, int | float)) + " above half"
