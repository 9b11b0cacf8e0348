"""The prune step of a call without a recipe: as asked for, and run on one denoiser."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dit_compress.core.errors import UserError
from dit_compress.core.progress import say
from dit_compress.plugin import defaults
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.workplace import Workplace
from dit_compress.structure.compact import CompactionError
from dit_compress.structure.files.pruned import log_of
from dit_compress.structure.nesting import need_one_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.plugin.options import Part
    from dit_compress.step.context import Result

_COUNTS = "Give a budget (params, flops, latency), or counts per level (remove, keep)"


def asked_part(*, modulation: Mapping[str, Any] | None = None, **asked: Any) -> Part:
    """Return the prune step that a call asks for: of the modulation, or of units (see :func:`step_part`)."""
    if modulation is None:
        return step_part(**asked)
    units = signature(step_part).parameters
    given = [repr(name) for name, value in asked.items() if value and value != units[name].default]
    if given:
        raise UserError(
            f"the modulation and units at once: {', '.join(given)} {'is' if len(given) == 1 else 'are'} of units",
            mend="Leave that out, or prune twice, each by a call of its own",
        )
    return make_part("prune", {"use": defaults.MODULATION, **modulation}, installed())


def step_part(
    *,
    params: float | str | None = None,
    flops: float | str | None = None,
    latency: float | str | Mapping[str, Any] | None = None,
    size: Sequence[int] | None = None,
    levels: Sequence[str] | None = None,
    heterogeneous: bool = False,
    curves: str | Path | None = None,
    remove: Mapping[str, int] | None = None,
    keep: Mapping[str, float] | None = None,
    search: str | Mapping[str, Any] = defaults.SEARCH,
) -> Part:
    """Return the prune step that removes units, validated as a recipe's would be."""
    budget: dict[str, Any] = {
        "params": params if params is None or isinstance(params, str) else int(params),
        "flops": flops,
        "latency": {"seconds": latency} if isinstance(latency, int | float | str) else latency,
    }
    budget = {name: value for name, value in budget.items() if value is not None}
    if budget and (remove or keep):
        raise UserError("a budget and counts at once", mend=_COUNTS)
    if not budget and not remove and not keep:
        raise UserError("nothing says how much to prune", mend=_COUNTS)
    if not budget and (size or levels):
        raise UserError("'size' and 'levels' go with a budget; counts name their levels", mend="Leave them out")
    if not budget and (heterogeneous or curves):
        raise UserError("'heterogeneous' and 'curves' go with a budget", mend="Leave them out")
    options: dict[str, Any] = {"use": defaults.PRUNE, "search": search}
    if budget:
        extra = {"size": size, "levels": levels}
        options["budget"] = budget | {name: list(value) for name, value in extra.items() if value is not None}
        options["budget"] |= {"heterogeneous": heterogeneous, "curves": str(curves) if curves else None}
    else:
        counts: dict[str, dict[str, Any]] = {}
        for word, given in (("remove", remove), ("keep", keep)):
            for level, count in (given or {}).items():
                counts.setdefault(level, {})[word] = count
        options["levels"] = counts
    part: Any = make_part("prune", options, installed())
    if part.options.search.plugin.data:
        raise UserError(
            f"the search {part.options.search.name!r} looks at data, and a call without a recipe has none",
            mend=f"Take a search that needs none ({defaults.SEARCH}), or write a recipe",
        )
    return part


def need_size(part: Part, spec: Spec) -> None:
    """UserError where a budget depends on a size that neither the call nor the model's VAE states."""
    budget = part.as_data().get("budget")
    if budget and budget["params"] is None and budget["size"] is None and spec.latent is None:
        raise UserError(
            "a budget of FLOPs or seconds is for one size of the latent, and no VAE tells it",
            mend="Give 'size', its cells (T, H, W); on the command line: --size T H W",
        )


def need_schedule(part: Part) -> None:
    """UserError where a table is for the schedule of a model that is no bundle: nothing says how it is sampled."""
    if part.as_data().get("table") == "schedule":
        raise UserError(
            "'table: schedule' is a bundle's own, and nothing says how this model is sampled",
            mend="Give the sigmas, such as 1.0,0.75,0.5,0.25",
        )


class Pruning(Protocol):
    """A prune step that can work without a run."""

    def prune(self, denoiser: Denoiser, spec: Spec, place: Workplace) -> tuple[dict[str, Any], Result]:
        """Prune a denoiser in place and prove it; the entry of its transform log, figures and files in the folder."""


def find(denoiser: Denoiser, spec: Spec, part: Part, seed: int) -> list[dict[str, Any]]:
    """Find the transform-log entries of a prune step on a denoiser, which is pruned in place and proven.

    Warns of a level that a budget leaves alone.
    """
    need_size(part, spec)
    need_one_width(log_of(denoiser.module), "pruning")
    say(f"pruning {type(denoiser.module).__name__}")
    with tempfile.TemporaryDirectory() as work, understood():
        step: Pruning = part.build()
        entry, result = step.prune(denoiser, spec, Workplace(name="prune", seed=seed, folder=Path(work)))
    for note in result.metrics.get("left_alone", ()):
        warnings.warn(note, stacklevel=2)
    return [entry]


@contextmanager
def understood() -> Iterator[None]:
    """Turn a compaction that is not exact into a UserError."""
    try:
        yield
    except CompactionError as error:
        raise UserError(f"{error}: the structure was not understood", mend="Write a model plugin for it") from error
