"""Nested widths: parts of one model, each inside the next, that were trained together and can be cut out of it.

They stand in the last entry of the transform log, with the edits that cut each: no granularity and no observation is
needed to cut one. Whatever changes the model's structure appends an entry, and ends the nesting by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import LOG_NAME
from dit_compress.structure.edits import REVISION, edits_from_data, from_ranges
from dit_compress.structure.files.pruned import base_of, log_of, remember_log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from dit_compress.structure.facts import Kept

CUT_OUT = "Cut one width out first, by a prune step with 'take: 0.5' or dit_compress.load(path, width=0.5)"


@dataclass(frozen=True)
class Nesting:
    """The widths of a model, by what they keep.

    levels: what they cut, by the names of granularities. cuts: width below 1 → ``kept`` and ``edits`` as an entry of
    the log has them, rising.
    """

    levels: tuple[str, ...]
    cuts: Mapping[float, Mapping[str, Any]]

    @property
    def widths(self) -> tuple[float, ...]:
        """All of them, rising; the last is 1, the whole model."""
        return (*self.cuts, 1.0)

    def kept(self, width: float) -> Kept:
        """Return the units of a width, by axis; nothing of the whole model."""
        found = self.cuts.get(width, {"kept": {}})["kept"]
        return {name: from_ranges(record["units"]) for name, record in found.items()}

    def entry(self) -> dict[str, Any]:
        """Return the entry of the log that holds them: it changes nothing."""
        widths = [{"width": width, **cut} for width, cut in self.cuts.items()]
        nested = {"levels": list(self.levels), "widths": widths}
        return {"name": LOG_NAME, "revision": REVISION, "data": {"kept": {}, "edits": [], "nested": nested}}

    def cut(self, width: float, where: str = "") -> dict[str, Any]:
        """Return the entry of the log that cuts one width out; UserError where it is none of these."""
        if width not in self.widths:
            raise UserError(
                f"it has no width {width:g}: nothing was trained for it", where=where, mend=f"Give one of {self}"
            )
        cut = self.cuts.get(width, {"kept": {}, "edits": []})
        return {"name": LOG_NAME, "revision": REVISION, "data": {**cut, "width": width}}

    def __str__(self) -> str:
        return ", ".join(f"{width:g}" for width in self.widths)


def nesting_of(log: Sequence[Mapping[str, Any]]) -> Nesting | None:
    """Return the widths that a transform log ends with; None where it ends with anything else."""
    if not log or log[-1]["name"] != LOG_NAME or "nested" not in log[-1]["data"]:
        return None
    try:
        nested = log[-1]["data"]["nested"]
        cuts = {float(cut["width"]): {"kept": cut["kept"], "edits": cut["edits"]} for cut in nested["widths"]}
        return Nesting(tuple(nested["levels"]), cuts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"not whole nested widths: {type(error).__name__}: {error}", mend="Copy it again") from error


def need_nesting(log: Sequence[Mapping[str, Any]], where: str = "") -> Nesting:
    """Return the widths of a log; raise a UserError where it has none."""
    found = nesting_of(log)
    if found is None:
        raise UserError(
            "it has one width alone",
            where=where,
            mend="Prune it to nested widths and train those, or leave 'width' out",
        )
    return found


def need_one_width(log: Sequence[Mapping[str, Any]], what: str) -> None:
    """Raise a UserError where a log ends with several widths. what: the thing that knows of one alone."""
    if (found := nesting_of(log)) is not None:
        raise UserError(
            f"{what} knows of one width, and the model has several ({found}), made of units that must stay as they are",
            mend=CUT_OUT,
        )


def narrow(module: nn.Module, width: float, where: str = "") -> None:
    """Cut a module that knows its log to one of its widths, in place; UserError where it has no such width."""
    log, base = log_of(module), base_of(module)
    entry = need_nesting(log, where).cut(width, where)
    apply_edits(module, edits_from_data(entry["data"]["edits"]))
    remember_log(module, base, (*log, entry))
