"""The step: find the modulation, replace it, prove a table exact or state what low rank loses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import write_json
from dit_compress.core.progress import say
from dit_compress.measure.quality import sigmas
from dit_compress.model.figures import count_parameters
from dit_compress.step.context import Result
from dit_compress.structure.apply import apply_edits, replace_tensor
from dit_compress.structure.compact import LOG_NAME, SINGLE, disagreement
from dit_compress.structure.edits import REVISION, Factor, Tabulate, edits_as_data
from dit_compress.structure.modulation import timetable_of
from dit_compress.structure.observe.modulation import modulation
from dit_compress_plugins.prune_modulation.calls import at_time, example_at_hand, redrawn, watched
from dit_compress_plugins.prune_modulation.low_rank import LowRank, low_rank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.observe.modulation import Modulation
    from dit_compress_plugins.prune_modulation import ModulationOptions

Edits = list[Factor | Tabulate]


@dataclass(frozen=True)
class Chosen:
    """What is to be replaced. left: path → why a linear of the modulation stays as it is."""

    edits: Edits
    linears: tuple[Modulation, ...]
    left: Mapping[str, str]

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of the transform log: the engine's own edits, so that folders load without this plugin."""
        return {"name": LOG_NAME, "revision": REVISION, "data": {"kept": {}, "edits": edits_as_data(self.edits)}}


class ModulationPruning:
    """Step ``prune: {use: modulation, …}``."""

    def __init__(self, options: ModulationOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the shape of the model with less modulation; reads no weights."""
        denoiser = spec.build_denoiser().to("meta")
        before = count_parameters(denoiser.module)
        chosen = self.choose(denoiser, spec.flow)
        apply_edits(denoiser.module, chosen.edits)
        note = f"{before:,} → {count_parameters(denoiser.module):,} parameters: {self.described(chosen)}"
        return replace(spec, denoiser=spec.need_denoiser().appended(chosen.entry), notes=(*spec.notes, note))

    def run(self, context: Context) -> Result:
        """Replace the modulation of the input's denoiser and write a bundle."""
        denoiser = context.input.denoiser()
        entry, found = self.prune(denoiser, context.input.spec, context)
        given = context.give({"denoiser": denoiser.module}, log=[entry], metrics=found.metrics)
        return replace(given, files=found.files)

    def prune(self, denoiser: Denoiser, spec: Spec, place: Workplace) -> tuple[dict[str, Any], Result]:
        """Replace it in place; the entry of the transform log, with figures."""
        before = count_parameters(denoiser.module)
        chosen = self.choose(denoiser, spec.flow)
        say(f"replacing {self.described(chosen)}")
        if self.options.rank is None:
            metrics = fold(denoiser, chosen)
        else:
            metrics = self.factor(denoiser, chosen, spec.flow)
            say(f"of what varies, {metrics['error_mean']:.2%} is lost on average, {metrics['error_max']:.2%} at most")
        denoiser.forget_structure()
        data = {"edits": edits_as_data(chosen.edits), "left": chosen.left, **metrics}
        write_json(place.folder / "modulation.json", data)
        after = count_parameters(denoiser.module)
        figures = {key: value for key, value in metrics.items() if not isinstance(value, dict)}
        figures |= {"params_before": before, "params_after": after, "params_kept": after / before}
        figures |= {"left_alone": [_note(chosen.left)]} if chosen.left else {}
        return chosen.entry, Result(metrics=figures, files={"modulation": "modulation.json"})

    def described(self, chosen: Chosen) -> str:
        """Show ``the modulation by tables of 4 timesteps in 16 linears``."""
        what = f"rank {self.options.rank}" if self.options.rank else f"tables of {len(_times(chosen))} timesteps"
        return f"the modulation by {what} in {len(chosen.linears)} linears"

    # -- which linears, and by what

    def choose(self, denoiser: Denoiser, flow: Flow) -> Chosen:
        """Find the modulation and settle the edits; raise a UserError where nothing can be replaced."""
        wanted = flow.sigmas()[:-1] if self.options.table == "schedule" else tuple(self.options.table or ())
        known = denoiser.timesteps(wanted)
        if known and (beyond := [sigma for sigma in wanted if not 0 <= sigma <= 1]):
            raise UserError(
                f"a table's rows are sigmas, from 0 to 1, and {', '.join(f'{sigma:g}' for sigma in beyond)} "
                f"{'is' if beyond[1:] == [] else 'are'} none",
                mend="Write noise levels, not timesteps: 1.0 for 1000 of 1000",
            )
        found = modulation(denoiser.module, denoiser.example_call(), known.keys())
        left = {item.path: item.reason for item in found.refusals}
        if not found.linears:
            raise UserError(f"no modulation to replace was found: {found.reasons()}", mend="Leave this step out")
        if self.options.rank is not None:
            return _factored(denoiser, found.linears, self.options.rank, left)
        if timetable_of(denoiser.module) is not None:
            raise UserError("its modulation has a table already", mend="Make the table from the model before that step")
        return _tabulated(found.linears, wanted, known, left)

    def factor(self, denoiser: Denoiser, chosen: Chosen, flow: Flow) -> dict[str, Any]:
        """Replace linears by two of low rank; the relative error of each."""
        inputs = self._inputs(denoiser, chosen.linears, flow)
        errors = {}
        for item, edit in zip(chosen.linears, chosen.edits, strict=True):
            assert isinstance(edit, Factor)
            linear: Any = denoiser.module.get_submodule(item.path)
            made = low_rank(linear.weight.detach(), linear.bias, inputs[item.path], edit.rank)
            apply_edits(denoiser.module, [edit])
            _fill(denoiser, edit, made)
            errors[item.path] = made.error
        mean = sum(errors.values()) / len(errors)
        return {"error_mean": mean, "error_max": max(errors.values()), "error": errors}

    def _inputs(self, denoiser: Denoiser, linears: Sequence[Modulation], flow: Flow) -> dict[str, Tensor]:
        """Return what the linears get over the noise levels; of one call alone where nothing tells the timestep."""
        call, paths = example_at_hand(denoiser), [item.path for item in linears]
        known = denoiser.timesteps(sigmas(flow, self.options.sigmas))
        beside = sorted({key for item in linears for key in item.reads} - known.keys(), key=str)
        seen: dict[str, list[Tensor]] = {path: [] for path in paths}
        for place in range(self.options.sigmas if known else 1):
            other = redrawn(call, beside, place) if place else call
            for key, times in known.items():
                other = at_time(other, key, times[place])
            for path, (x, _) in watched(denoiser.module, other, paths)[1].items():
                seen[path].append(x)
        return {path: torch.cat(rows) for path, rows in seen.items()}


def _note(left: Mapping[str, str]) -> str:
    """Say in one line which linears stay as they are."""
    path, why = next(iter(left.items()))
    more = f", and {len(left) - 1} more" if len(left) > 1 else ""
    return f"level 'modulation' leaves {path} alone: {why}{more}"


def _times(chosen: Chosen) -> tuple[float, ...]:
    return next(edit.times for edit in chosen.edits if isinstance(edit, Tabulate))


def _factored(denoiser: Denoiser, linears: Sequence[Modulation], rank: int, left: dict[str, str]) -> Chosen:
    """Choose the linears that low rank makes smaller."""
    chosen, most = [], 0
    for item in linears:
        weight = denoiser.module.get_parameter(f"{item.path}.weight")
        fits = (weight.numel() - 1) // sum(weight.shape)
        most = max(most, fits)
        if rank <= fits:
            chosen.append(item)
        else:
            left[item.path] = f"rank {rank} does not make it smaller"
    if not chosen:
        raise UserError(f"rank {rank} makes no linear of the modulation smaller", mend=f"Give {most} at most")
    return Chosen([_factor(denoiser, item.path, rank) for item in chosen], tuple(chosen), left)


def _factor(denoiser: Denoiser, path: str, rank: int) -> Factor:
    linear: Any = denoiser.module.get_submodule(path)
    return Factor(path, rank, bias=linear.bias is not None)


def _tabulated(
    linears: Sequence[Modulation],
    wanted: Sequence[float],
    known: Mapping[int | str, tuple[float, ...]],
    left: dict[str, str],
) -> Chosen:
    """Choose the linears that read the timestep alone."""
    alone = Counter(next(iter(item.reads)) for item in linears if len(item.reads) == 1)
    if not alone:
        read = sorted({str(key) for item in linears for key in item.reads})
        raise UserError(
            f"its modulation reads {', '.join(read)}: no table of timesteps holds that",
            mend="Give 'rank', which is approximate and takes any input",
        )
    ((argument, _),) = alone.most_common(1)
    chosen = [item for item in linears if item.reads == {argument}]
    for item in linears:
        if item.reads != {argument}:
            left[item.path] = f"it reads {', '.join(sorted(map(str, item.reads)))}"
    pairs = sorted(set(zip(known.get(argument, tuple(wanted)), wanted, strict=True)))
    times, levels = tuple(time for time, _ in pairs), tuple(sigma for _, sigma in pairs)
    upstream = tuple(dict.fromkeys(path for item in chosen for path in item.upstream))
    edit = Tabulate(tuple(item.path for item in chosen), argument, times, levels if argument in known else (), upstream)
    return Chosen([edit], tuple(chosen), left)


# ------------------------------------------------------------------ values


def fold(denoiser: Denoiser, chosen: Chosen) -> dict[str, Any]:
    """Fill tables with what the linears give, and prove that the model computes the same at every timestep."""
    (edit,) = chosen.edits
    assert isinstance(edit, Tabulate)
    module, paths = denoiser.module, [item.path for item in chosen.linears]
    calls = [at_time(example_at_hand(denoiser), edit.argument, time) for time in edit.times]
    rows: dict[str, list[Tensor]] = {path: [] for path in paths}
    wanted = []
    for call in calls:
        output, seen = watched(module, call, paths)
        wanted.append(output)
        for path, (_, given) in seen.items():
            if not torch.allclose(given, given[:1], rtol=SINGLE, atol=SINGLE * float(given.abs().max())):
                raise UserError(
                    f"{path!r} gives several rows for one timestep", mend="Give 'rank', which takes any input"
                )
            rows[path].append(given[0])
    apply_edits(module, [edit])
    for path in paths:
        replace_tensor(module, f"{path}.rows", torch.stack(rows[path]))
    error = max(disagreement(call.replay(module), before) for call, before in zip(calls, wanted, strict=True))
    precision = torch.finfo(next(module.parameters()).dtype).eps
    if not error <= max(SINGLE, 4 * precision):
        raise UserError(
            f"with the table the model differs by {error:.1e} of its largest value: its modulation was not understood",
            mend="Give 'rank', or leave this step out",
        )
    return {"fold_error": error}


def _fill(denoiser: Denoiser, edit: Factor, made: LowRank) -> None:
    """Put the values of two linears in their places, in the dtype of the one before."""
    values = {"0.weight": made.down_RI, "1.weight": made.up_OR, "1.bias": made.bias_O}
    for name, value in values.items():
        if value is not None:
            old = denoiser.module.get_submodule(edit.module).get_parameter(name)
            replace_tensor(denoiser.module, f"{edit.module}.{name}", value.to(old).contiguous())
