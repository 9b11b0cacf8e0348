"""One package for each nested width of a bundle, each in a folder of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dit_compress.plugin.options import Keyed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result

Widths = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]] | None,
    Keyed("widths"),
    Field(min_length=1, description="Nested widths of the bundle, a package each; the whole model if absent."),
]


def narrowed(spec: Spec, widths: Sequence[float] | None) -> list[Spec]:
    """Return a bundle without weights at each width, as it is where none are named; UserError where it has one not."""
    return [spec] if widths is None else [spec.narrowed(width) for width in widths]


def at_each(context: Context, widths: Sequence[float] | None, export: Callable[[Context], Result]) -> Result:
    """Export the input at each width, below ``width-<width>`` in the step's folder; as it is where none are named."""
    from dit_compress.step.context import Result

    if widths is None:
        return export(context)
    found: dict[str, dict[str, Any]] = {}
    files: dict[str, str] = {}
    for width in widths:
        folder, bundle = context.folder / f"width-{width:g}", context.input.narrowed(width)
        result = export(replace(context, folder=folder, bundles={**context.bundles, "input": bundle}))
        found[f"{width:g}"] = result.metrics
        files |= {f"{name}-{width:g}": f"{folder.name}/{path}" for name, path in result.files.items()}
    return Result(metrics={"passed": all(each["passed"] for each in found.values()), "widths": found}, files=files)
