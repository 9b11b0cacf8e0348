"""Modules that stand for the linears of a modulation: two of low rank, or a table with a row for each timestep.

A table knows no timestep itself: the model notes it when it is called (:class:`Timetable`), and every table asks.
"""

from __future__ import annotations

import inspect
from math import isclose
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.structure.lookup import argument_at, split_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dit_compress.structure.edits import Factor, Tabulate

ANOTHER_SCHEDULE = "Sample with the schedule that the table was made for, or make a table for this one"
"""The mend of a call that the table has no row for."""
APART = 4 * torch.finfo(torch.float32).eps
"""Relative distance by which a timestep may lie beside its row of the table; its own precision, where that is less."""


class Timetable:
    """The timesteps of a table, and the row of the call that runs now. One for all tables of a model.

    argument, times, sigmas: as in ``Tabulate``; times rise.
    """

    def __init__(self, argument: int | str, times: tuple[float, ...], sigmas: tuple[float, ...]) -> None:
        self.argument, self.times, self.sigmas = argument, times, sigmas
        self.given: Tensor | None = None
        self.found: Tensor | None = None

    def note(self, timestep: Any) -> None:
        """Take the timestep of a call that begins."""
        self.given, self.found = torch.as_tensor(timestep).detach(), None

    def index(self, *, check: bool) -> Tensor:
        """Return the row of each timestep of the call, ``[N]``; UserError where one is not in the table."""
        if self.given is None:
            raise UserError(
                "a table of modulations was asked before its model was called", mend="Call the whole model, not a block"
            )
        if self.found is None:
            self.found = self._nearest(self.given.flatten(), check=check)
        return self.found

    def _nearest(self, given: Tensor, *, check: bool) -> Tensor:
        # float32, also for what counts in float64: phones and graphics chips have nothing wider.
        single = given.to(torch.float32)
        rising = torch.tensor(self.times, device=given.device, dtype=torch.float32)
        # Comparisons and a sum: not every exporter has a search for the least.
        passed = (single[:, None] > (rising[1:] + rising[:-1]) / 2).to(torch.int32).sum(1)
        # A traced program can't raise: it is called by the schedule that it was exported with.
        if check and not torch.compiler.is_compiling():
            self._need_near(given, single, rising[passed])
        return passed

    def _need_near(self, given: Tensor, single: Tensor, nearest: Tensor) -> None:
        """Raise a UserError where a timestep is none of the table's."""
        precision = torch.finfo(given.dtype).eps if given.is_floating_point() else 0
        wrong = ~((single - nearest).abs() <= max(precision, APART) * single.abs())
        if bool(wrong.any()):
            raise UserError(
                f"the timestep {float(single[wrong][0]):.9g} is not in the modulation's table, which holds "
                + ", ".join(f"{time:.9g}" for time in self.times),
                mend=ANOTHER_SCHEDULE,
            )


class TimeTable(nn.Module):
    """Stands where a linear read the timestep alone: gives its output for that timestep, whatever it is given.

    rows: ``[times, out]``.
    """

    def __init__(self, timetable: Timetable, rows: Tensor) -> None:
        super().__init__()
        self.timetable, self.rows = timetable, nn.Parameter(rows)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows of this call, in the shape of the linear's output."""
        index = self.timetable.index(check=not self.rows.is_meta)
        lead = x.shape[:-1]
        each = _spread(index, lead) if index.numel() != lead.numel() else index.reshape(lead)
        return F.embedding(each.to(self.rows.device), self.rows)

    def extra_repr(self) -> str:
        """Describe the table."""
        return f"times={len(self.timetable.times)}, out_features={self.rows.shape[1]}"


def _spread(index: Tensor, lead: torch.Size) -> Tensor:
    """Return a row for each of more places than the call has timesteps: samples stand along the first dimension."""
    if index.numel() == 1:
        return index.reshape([1] * len(lead)).expand(lead)
    if lead and lead[0] == index.numel():
        return index.reshape(-1, *[1] * (len(lead) - 1)).expand(lead)
    if bool((index == index[0]).all()):
        return index[:1].reshape([1] * len(lead)).expand(lead)
    raise UserError(
        f"{index.numel()} different timesteps in one call, and {list(lead)} places that read them",
        mend="Call the model with one timestep at a time",
    )


def timetable_of(module: nn.Module) -> Timetable | None:
    """Return the timetable of a model whose modulation is tables."""
    return getattr(module, "timetable", None)


def need_any_timestep(module: nn.Module, what: str) -> None:
    """Raise a UserError where the modulation is a table: ``what`` is going to draw other timesteps than its own."""
    if timetable_of(module) is not None:
        raise UserError(
            f"{what} looks at data at any noise level, and the modulation is a table for a few",
            mend="Fold after pruning and training: put the step with 'table' behind this one",
        )


def need_sigmas(module: nn.Module, sigmas: Iterable[float], what: str) -> None:
    """Raise a UserError where the modulation is a table, and lacks a noise level at which ``what`` calls the model."""
    table = timetable_of(module)
    if table is None or not table.sigmas:
        return
    lacking = [sigma for sigma in sigmas if not any(isclose(sigma, held, rel_tol=1e-5) for held in table.sigmas)]
    if lacking:
        raise UserError(
            f"{what} calls the model at sigma {lacking[0]:g}, and the modulation is a table for "
            + ", ".join(f"{sigma:g}" for sigma in sorted(table.sigmas, reverse=True)),
            mend=ANOTHER_SCHEDULE,
        )


def note_time(owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Note the timestep of a model's call, given by position or by name; a hook before its forward."""
    key = owner.timetable.argument
    head, rest = split_key(key)
    names = list(inspect.signature(owner.forward).parameters)
    if isinstance(head, int) and head >= len(args):
        head = names[head]
    elif isinstance(head, str) and head not in kwargs:
        head = names.index(head)
    owner.timetable.note(argument_at(args, kwargs, f"{head}.{rest}" if rest else head))


def factor(module: nn.Module, edit: Factor) -> None:
    """Make a linear two, whose values are to be filled in: NaN until then, so that none is taken for a value."""
    linear: Any = module.get_submodule(edit.module)
    like: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    with torch.device("meta"):
        down = nn.Linear(linear.in_features, edit.rank, bias=False)
        up = nn.Linear(edit.rank, linear.out_features, bias=edit.bias)
    for made in (down, up):
        for name, value in made.named_parameters():
            made.register_parameter(
                name, nn.Parameter(torch.full(value.shape, torch.nan, **like), linear.weight.requires_grad)
            )
    set_module(module, edit.module, nn.Sequential(down, up).train(linear.training))


def tabulate(module: nn.Module, edit: Tabulate) -> None:
    """Put tables in the place of linears, whose rows are to be filled in: NaN until then."""
    timetable = Timetable(edit.argument, edit.times, edit.sigmas)
    for path in edit.modules:
        linear: Any = module.get_submodule(path)
        shape, weight = (len(edit.times), linear.out_features), linear.weight
        rows = torch.full(shape, torch.nan, device=weight.device, dtype=weight.dtype)
        set_module(module, path, TimeTable(timetable, rows).train(linear.training))
    owner: Any = module
    owner.timetable = timetable
    module.register_forward_pre_hook(note_time, with_kwargs=True)


def set_module(module: nn.Module, path: str, made: nn.Module) -> None:
    """Put a module in the place of another."""
    owner, _, leaf = path.rpartition(".")
    module.get_submodule(owner).register_module(leaf, made)
