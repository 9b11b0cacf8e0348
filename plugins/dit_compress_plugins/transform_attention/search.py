"""A layout for the blocks: what each kind costs, how a layout is measured, what is written of the one chosen."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, write_json
from dit_compress.measure.blocks import choices_of, counted, read_layout_table, timed_table, timed_whole, with_seconds
from dit_compress.measure.latency import machine
from dit_compress.measure.quality import data_grid
from dit_compress.structure.choices import LayoutProblem, Prices, Remembered, amount, layout_data, legend, number
from dit_compress.structure.copies import meta_copy, shared_copy
from dit_compress.structure.programme import best, need_layout
from dit_compress.train.healing import Healing
from dit_compress.train.options import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.choices import Choice, Chosen, Layout
    from dit_compress_plugins.transform_attention import AttentionOptions, Budget

    Size = tuple[int, int, int]

TABLE = "latency.json"
ROUNDS = 7


class LayoutPart(Protocol):
    """The kind ``layout``: chooses the kind of every block. Constructed with its options."""

    def foreseen(self, problem: LayoutProblem) -> Layout | None:
        """Return the layout where it is known before anything is measured; for ``plan``, which reads no weights.

        Raises a UserError where it can be said now that there will be none.
        """

    def choose(self, problem: LayoutProblem, context: Workplace) -> Chosen:
        """Choose one within the budgets; each ``problem.loss`` trains, and is kept for who goes on after a kill."""


@dataclass
class LayoutSearch:
    """Chooses the layout of a denoiser.

    kinds: of each block that can be replaced, the first is the one it is. put: makes the blocks of a denoiser, in
    place, what a layout says. near: likewise, each new one as near to the old one as the step brings it.
    """

    options: AttentionOptions
    denoiser: Denoiser
    kinds: Mapping[str, tuple[str, ...]]
    put: Callable[[Denoiser, Layout], None]
    near: Callable[[Denoiser, Layout], None]
    files: dict[str, str] = field(default_factory=dict)

    def foreseen(self, spec: Spec) -> tuple[dict[str, str], str]:
        """Return the layout as far as it is known without weights, and what to say of it."""
        choices, rest = self.counted(self.size(spec))
        problem = self.problem(choices, rest, self.table(spec))
        timed = "seconds" in self.bounds and self.budget is not None and self.budget.table is None
        if timed:  # nothing is timed without weights
            problem = replace(problem, budget={**problem.budget, "seconds": math.inf})
        layout, why = self.part.foreseen(problem), ""
        if layout is None:
            changed = {c.block: {kind: float(bool(n)) for n, kind in enumerate(c.options)} for c in choices}
            layout = best(problem, changed)[0].layout
            why = ", an estimate with the fewest blocks changed: the layout is searched when the step runs"
        elif timed:
            why = ", seconds not counted: they are measured when the step runs"
        return dict(layout), f"layout {legend(choices, layout)}{why}: {said(problem.prices(layout), problem)}"

    def settled(self, spec: Spec, context: Context) -> tuple[dict[str, str], dict[str, Any]]:
        """Search the layout, verify its cost on the whole, write ``layout.json``; return it, and metrics."""
        size, table = self.size(spec), self.table(spec)
        if table is None and "seconds" in self.bounds:
            table = self.timed(size, context.folder / TABLE)
        problem = self.problem(*self.counted(size), table)
        need_layout(problem)  # before anything is trained
        loss = self.loss(context)
        problem = replace(problem, loss=loss and Remembered(loss, context.folder / "trials.jsonl"))
        chosen = self.part.choose(problem, context)
        layout = dict(chosen.layout)
        measured = self.measured(layout, size, table)
        context.say(f"layout {legend(problem.choices, layout)}: {said(problem.prices(layout), problem)}")
        write_json(context.folder / "layout.json", layout_data(problem, chosen, measured), indent=None)
        self.files["layout"] = "layout.json"
        predicted = problem.prices(layout).as_data()
        return layout, {"layout": {"predicted": predicted, "measured": measured}}

    # -- the problem

    @property
    def part(self) -> Any:
        """The part that chooses."""
        assert self.options.layout is not None
        return self.options.layout.build()

    @property
    def budget(self) -> Budget | None:
        """What the layout may cost."""
        return self.options.budget

    @property
    def bounds(self) -> dict[str, float | str]:
        """The bounds that are given."""
        return self.budget.bounds if self.budget is not None else {}

    def problem(self, choices: tuple[Choice, ...], rest: Prices, table: Mapping[str, Any] | None) -> LayoutProblem:
        """Return the problem without a loss; shares of the model as it is are worked out."""
        if table is not None:
            choices, rest = with_seconds(choices, rest, table)
        free = LayoutProblem(choices, {}, rest=rest)
        now, limits = free.prices(free.present), dict[str, float]()
        for name, value in self.bounds.items():
            share = isinstance(value, str) and float(value.removesuffix("%")) / 100
            limits[name] = share * getattr(now, name) if share else float(value)
            if name == "seconds" and share and not now.possible:
                raise UserError(
                    "by the table the model as it is does not fit into the memory: no share of its seconds is known",
                    mend="Give 'seconds' as a number",
                )
        return replace(free, budget=limits)

    def counted(self, size: Size) -> tuple[tuple[Choice, ...], Prices]:
        """Price every kind of every block, without seconds."""
        return choices_of(self.outline, self.kinds, size)

    def outline(self, layout: Layout) -> Denoiser:
        """Return the denoiser with a layout, without weights."""
        made = meta_copy(self.denoiser)
        self.put(made, layout)
        return made.to("meta")

    def whole(self, layout: Layout) -> Denoiser:
        """Return the denoiser with a layout; what is not replaced shares its weights."""
        made = shared_copy(self.denoiser)
        self.put(made, layout)
        return made

    def size(self, spec: Spec) -> Size:
        """Return the latent size of the call that is priced."""
        return self.budget.size if self.budget is not None and self.budget.size is not None else spec.latent_size()

    def table(self, spec: Spec) -> dict[str, Any] | None:
        """Read the seconds that are supplied."""
        if self.budget is None or self.budget.table is None:
            return None
        return read_layout_table(Path(self.budget.table), self.kinds, self.size(spec), self.budget.machine)

    def timed(self, size: Size, path: Path) -> dict[str, Any]:
        """Time every kind in every block, once: a search that goes on after a kill must find the seconds it began with.

        What was timed on another machine is timed anew.
        """
        self.files["latency"] = path.name
        if path.is_file() and read_json(path)["machine"] == machine():
            return read_layout_table(path, self.kinds, size, None)
        table = timed_table(self.whole, self.kinds, size, ROUNDS)
        write_json(path, table)
        return table

    # -- what is measured

    def loss(self, context: Context) -> Callable[[Layout], float] | None:
        """Return the held-out loss of a layout after a short training; None where there is no data."""
        if "data" not in context.parts:
            return None
        text, trial = context.text(), self.options.trial
        samples, held_out = context.latents("train", text), context.latents("test", text)
        flow = context.input.flow
        grid = data_grid(held_out, text, flow, trial.samples)
        how = TrainOptions(steps=trial.steps, batch=trial.batch, lr=trial.lr, warmup=min(10, trial.steps), decay=0.1)

        def measure(layout: Layout) -> float:
            student = copy.deepcopy(self.denoiser)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(context.seed)
                self.near(student, layout)
            healing = Healing(student, text, samples, how, context)
            healing.advance(trial.steps)
            return grid.loss(healing.student)

        return measure

    def measured(self, layout: Layout, size: Size, table: Mapping[str, Any] | None) -> dict[str, float | None]:
        """Measure the whole with a layout: blocks need not add up.

        ``seconds`` where the table is of this machine, timed in turn with the model as it is, ``present_seconds``.
        """
        _, whole = counted(self.outline(layout), [], size)
        if table is None or table["machine"] != machine():
            return whole.as_data()
        present = {block: own[0] for block, own in self.kinds.items()}
        timed = timed_whole({"": self.whole(layout), "present_": self.whole(present)}, size, ROUNDS)
        return whole.as_data() | {f"{name}seconds": seconds for name, seconds in timed.items()}


def said(prices: Prices, problem: LayoutProblem) -> str:
    """Say what a layout costs of each budget."""
    parts = [
        f"{number(name, getattr(prices, name))} of {amount(name, limit)}"
        for name, limit in problem.budget.items()
        if math.isfinite(limit)
    ]
    return ", ".join(parts) or f"{amount('params', prices.params)}, {amount('flops', prices.flops)}"


def need_blocks(kinds: Mapping[str, tuple[str, ...]], refused: Mapping[str, str]) -> None:
    """Raise a UserError where no block has a choice."""
    if all(len(own) == 1 for own in kinds.values()):
        why = "; ".join(f"{block}: {why}" for block, why in refused.items()) or "none of 'offer' fits"
        raise UserError(
            f"no block's attention can be replaced: {why}", mend="Leave this step out, or offer other kinds"
        )
