"""A layout from a file, checked against the blocks that are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.structure.choices import Chosen, amount

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.choices import Layout, LayoutProblem
    from dit_compress_plugins.layout_given import GivenLayoutOptions


class GivenLayout:
    """Part ``layout: {use: given, path: layout.json}``."""

    def __init__(self, options: GivenLayoutOptions) -> None:
        self.options = options

    def foreseen(self, problem: LayoutProblem) -> Layout:
        """Return the layout of the file; UserError where it is for other blocks or kinds, or above the budget."""
        data, path = read_json(Path(self.options.path)), self.options.path
        given = data.get("layout") if isinstance(data, dict) else None
        if not isinstance(given, dict):
            raise UserError(
                "no layout: 'layout' is missing", where=path, mend='Give {"layout": {"<block>": "<kind>", …}}'
            )
        known = {choice.block: choice.options for choice in problem.choices}
        for block in (*given, *known):
            if block not in known:
                raise UserError(f"{block!r} is no block whose kind can be chosen here", where=path, mend=_named(known))
            if block not in given:
                raise UserError(f"no kind of {block!r}", where=path, mend=f"Give one of {', '.join(known[block])}")
            if given[block] not in known[block]:
                what = f"{block!r} can't be {given[block]!r} here"
                raise UserError(what, where=path, mend=f"Give one of {', '.join(known[block])}")
        layout = {block: given[block] for block in known}
        if not problem.fits(layout):
            prices = problem.prices(layout)
            over = next(name for name, most in problem.budget.items() if not prices.within({name: most}))
            takes, most = amount(over, getattr(prices, over)), amount(over, problem.budget[over])
            what = f"the layout takes {takes}, the budget is {most}"
            raise UserError(what, where=path, mend="Raise the budget, or search with {use: dp}")
        return layout

    def choose(self, problem: LayoutProblem, context: Workplace) -> Chosen:
        """Return it."""
        del context
        return Chosen(self.foreseen(problem))


def _named(known: Mapping[str, object]) -> str:
    return f"The blocks are {', '.join(known)}" if known else "Leave 'layout' out: no block can be replaced"
