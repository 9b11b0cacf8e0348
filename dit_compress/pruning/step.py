"""The prune step of a call without a recipe: as asked for, and run on one denoiser."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dit_compress.core.errors import UserError
from dit_compress.plugin import defaults
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.context import Context, Result
from dit_compress.structure.compact import CompactionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from dit_compress.model.bundle import Bundle
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.plugin.options import Part

_COUNTS = "Give a budget (params, flops, latency), or counts per level (remove, keep)"


def step_part(
    *,
    params: float | None = None,
    flops: float | None = None,
    latency: float | Mapping[str, Any] | None = None,
    size: Sequence[int] | None = None,
    levels: Sequence[str] | None = None,
    remove: Mapping[str, int] | None = None,
    keep: Mapping[str, float] | None = None,
    search: str | Mapping[str, Any] = defaults.SEARCH,
) -> Part:
    """The prune step that a call asks for, validated as a recipe's would be."""
    budget: dict[str, Any] = {
        "params": None if params is None else int(params),
        "flops": flops,
        "latency": {"seconds": latency} if isinstance(latency, int | float) else latency,
    }
    budget = {name: value for name, value in budget.items() if value is not None}
    if budget and (remove or keep):
        raise UserError("a budget and counts at once", mend=_COUNTS)
    if not budget and not remove and not keep:
        raise UserError("nothing says how much to prune", mend=_COUNTS)
    if not budget and (size or levels):
        raise UserError("'size' and 'levels' go with a budget; counts name their levels", mend="Leave them out")
    options: dict[str, Any] = {"use": defaults.PRUNE, "search": search}
    if budget:
        extra = {"size": size, "levels": levels}
        options["budget"] = budget | {name: list(value) for name, value in extra.items() if value is not None}
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


@dataclass(frozen=True)
class Held:
    """A denoiser in memory where a step expects a bundle."""

    held: Denoiser
    spec: Spec

    def denoiser(self) -> Denoiser:
        """The denoiser."""
        return self.held


@dataclass
class ModelContext(Context):
    """A step's context over one denoiser in memory: what the step gives is kept here, and nothing is written."""

    given: list[dict[str, Any]] = field(default_factory=list)

    def give(
        self,
        modules: dict[str, nn.Module],  # noqa: ARG002 - as Context.give
        *,
        log: Sequence[dict[str, Any]] = (),
        flow: Flow | None = None,  # noqa: ARG002
        spec: Spec | None = None,  # noqa: ARG002
        metrics: dict[str, Any] | None = None,
    ) -> Result:
        """Keep the transform-log entries."""
        self.given.extend(log)
        return Result(None, metrics or {})


def find(denoiser: Denoiser, spec: Spec, part: Part, seed: int) -> list[dict[str, Any]]:
    """Transform-log entries of a prune step on a denoiser, which is pruned in place and proven."""
    with tempfile.TemporaryDirectory() as work:
        context = ModelContext(
            **world_of(Path(work), seed), bundles={"input": cast("Bundle", Held(denoiser, spec))}, names={}, record={}
        )
        run_step(part, context)
    return context.given


def world_of(work: Path, seed: int) -> dict[str, Any]:
    """What a context needs beside its bundles, where there is no run."""
    return {"name": "prune", "seed": seed, "folder": work, "cache": work, "parts": {}, "video": None}


def run_step(part: Part, context: Context) -> Result:
    """Run the step; a compaction that is not exact is a UserError."""
    try:
        return part.build().run(context)
    except CompactionError as error:
        raise UserError(f"{error}: the structure was not understood", mend="Write a model plugin for it") from error
