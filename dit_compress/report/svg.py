"""Matplotlib figures as inline SVG that follows the page's colours, light and dark.

Figures are drawn in stand-in colours, which become the page's CSS variables; text stays text in the page's
font. Equal figures give equal bytes.
"""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT, WARM = "#010101", "#020202", "#030303", "#040404", "#050505"
PAPER = "#060606"
HEAT, GONE = "#1c9d8f", "#d9662f"
"""The paper of pictures made of pixels, which CSS can't recolour: it stands on light and on dark paper alike."""
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", WARM: "--warm", PAPER: "--paper"}
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 8.5, "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "xtick.color": RULE, "ytick.color": RULE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "axes.labelsize": 7.5, "xtick.major.size": 3, "ytick.major.size": 0,
    "ytick.minor.size": 0, "xtick.minor.size": 0, "lines.linewidth": 1.4, "path.simplify": True, "axes.linewidth": 0.8,
    "axes.formatter.useoffset": False, "text.parse_math": False,
}  # fmt: skip
_POINTS = 72
TITLE_DROP = 13
_IMAGE_DPI = 216
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@contextmanager
def drawing(width_pt: float, height_pt: float) -> Iterator[Figure]:
    """Make a figure of a size in points, in the report's style."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        yield Figure(figsize=(width_pt / _POINTS, height_pt / _POINTS))


def place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Make axes at a place in points from the figure's lower left corner."""
    across, up = (side * _POINTS for side in figure.get_size_inches())
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def headline(figure: Figure, text: str, note: str = "") -> None:
    """Write the figure's title at its upper left corner, a note at the right one."""
    up = figure.get_size_inches()[1] * _POINTS
    figure.text(0, (up - TITLE_DROP) / up, text, fontsize=9)
    figure.text(0.97, (up - TITLE_DROP) / up, note, fontsize=9, color=MUTED, ha="right")


def as_svg(figure: Figure, name: str, title: str) -> Markup:
    """Return the figure as an ``<svg>`` element.

    Args:
        figure: drawn in this module's colours.
        name: unique on the page; ids are made from it.
        title: what it shows, for readers who can't see it.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": "dit-compress"}):
        figure.savefig(stream, format="svg", dpi=_IMAGE_DPI, metadata=_NO_METADATA)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{_identifier(name)}-", text)
    text = re.sub(r"font: ([\d.]+px) 'DejaVu Sans'", r"font-size: \1", text).replace("'DejaVu Sans'", "inherit")
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    label = Markup.escape(title)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))  # noqa: S704 - matplotlib escapes


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
