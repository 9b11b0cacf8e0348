"""Find the structure of any module from one recorded call, by observation (see ``docs/decisions``).

Stacks by tensor identity; heads, channels and what belongs to them by perturbing one block per distinct
shape without its weights; integer attributes by trying. Nothing depends on the name of a class.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.core.progress import say
from dit_compress.structure.facts import Attention, FeedForward, Refusal, Structure
from dit_compress.structure.observe.assemble import UnsliceableError, common_path, gathers, make_unit_list
from dit_compress.structure.observe.attributes import failing_line, solve, solve_with_stand_ins
from dit_compress.structure.observe.refusals import promised, unexplained, unused
from dit_compress.structure.observe.stacks import find_stacks
from dit_compress.structure.observe.stored import stored
from dit_compress.structure.observe.trace import FAILURES, Change, DivergedError
from dit_compress.structure.observe.units import Observer
from dit_compress.structure.observe.weightless import Replica, watch
from dit_compress.structure.precision import WIDE
from dit_compress.structure.raised import line_of, raised
from dit_compress.structure.signature import Known, signature

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dit_compress.structure.facts import UnitList
    from dit_compress.structure.observe.blocks import Found
    from dit_compress.structure.observe.trace import Trace
    from dit_compress.structure.observe.units import Units
    from dit_compress.structure.observe.weightless import Seen
    from dit_compress.structure.record import Call

Used = TypeVar("Used")


@dataclass
class _Block:
    """Everything found in one block, paths relative to it."""

    unit_lists: list[UnitList] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


_STRUCTURES: Known[Structure] = Known(64)
_BLOCKS: Known[_Block] = Known(512)
"""Structures found before: structure depends on classes and shapes, not on weights."""
VALUES = "Record a call that the model accepts; a model whose control flow depends on values is not understood"
_DTYPES = "Take the check of dtypes on that line out, or let it pass for float64: the copy computes in it"


def observe(module: nn.Module, call: Call) -> Structure:
    """Find the structure of any module from one recorded call. Reads no weights.

    Raises UserError where the module can't be run without its weights.
    """
    key = signature(module, dict(enumerate((call.args, call.kwargs))))
    return _STRUCTURES.get(key, lambda: stored(module, call, key, lambda: _observe(module, call)))


def _observe(module: nn.Module, call: Call) -> Structure:
    say(f"observing {type(module).__name__}: its stacks")
    try:
        replica, (found, refusals) = replicated(module, call)
    except FAILURES as error:
        raise UserError(
            f"the recorded call fails on a copy without weights: {raised(error)}",
            where=type(module).__name__,
            mend=_DTYPES if _asks_for_dtype(error) else VALUES,
        ) from error
    unit_lists: list[UnitList] = []
    names = _all_names(module)
    for item in found:
        for index, seen in enumerate(item.calls):
            head = item.stack.block(index)
            block = _observed(replica, head, seen, item)
            for unit_list in (_placed(unit_list, item, index) for unit_list in block.unit_lists):
                other = _used_elsewhere(unit_list, f"{head}.", names)
                if other:
                    refusals.append(Refusal(unit_list.path, f"its weights are those of {other}, too"))
                else:
                    unit_lists.append(unit_list)
            refusals += [Refusal(f"{head}.{bad.path}".rstrip("."), bad.reason) for bad in block.refusals]
    return Structure(
        tuple(item.stack for item in found),
        tuple(unit_list for unit_list in unit_lists if isinstance(unit_list, Attention)),
        tuple(unit_list for unit_list in unit_lists if isinstance(unit_list, FeedForward)),
        tuple(refusals),
    )


def _all_names(module: nn.Module) -> dict[str, list[str]]:
    """Map each name of a parameter to all its names: several where modules or weights are shared."""
    listed: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        listed.setdefault(id(parameter), []).append(name)
    return {name: names for names in listed.values() for name in names}


def _used_elsewhere(unit_list: UnitList, head: str, names: Mapping[str, list[str]]) -> str:
    """Find a name, outside the block, of one of its parameters; cutting it there would cut another block."""
    held = (name for member in unit_list.members for name in names.get(member.tensor, ()))
    return next((name for name in held if not name.startswith(head)), "")


def replicated(module: nn.Module, call: Call) -> tuple[Replica, tuple[list[Found], list[Refusal]]]:
    """Return the module's weightless copy and its stacks. Raises what the module raises."""
    return _first(module, call, lambda replica: (replica, find_stacks(replica)))


def running(module: nn.Module, call: Call) -> Replica:
    """Return the module's weightless copy, which runs. Raises what the module raises."""
    return _first(module, call, lambda replica: (replica.run(), replica)[1])


def _first(module: nn.Module, call: Call, use: Callable[[Replica], Used]) -> Used:
    """Return what is made of the first copy that runs.

    Where it does not run, its tables become real; then its tensors say that they have a dtype of the module's.
    """
    first: Exception | None = None
    for claims in (None, *_dtypes(module)):
        for real in (False, True):
            try:
                return use(Replica(module, call, real=real, claims=claims))
            except FAILURES as error:
                first = first or error
    assert first is not None
    raise first


def _dtypes(module: nn.Module) -> list[torch.dtype]:
    """Return the dtypes that a module may ask of its tensors: that of most parameters, then float32."""
    counts = Counter(parameter.dtype for parameter in module.parameters() if parameter.dtype in WIDE)
    return list(dict.fromkeys([*(dtype for dtype, _ in counts.most_common(1)), torch.float32]))


def _asks_for_dtype(error: Exception) -> bool:
    found = line_of(error)
    return any(word in f"{error} {found[1] if found else ''}".lower() for word in ("dtype", "double", "float"))


def _observed(whole: Replica, path: str, seen: Seen, item: Found) -> _Block:
    """Return what is in a block; blocks of one signature share one probe."""
    block = whole.module.get_submodule(path)
    key = signature(block, seen.inputs()), item.streams, whole.claims

    def find() -> _Block:
        say(f"observing a block like {path}")
        return _observe_block(Replica(block, seen.call, claims=whole.claims), item)

    return _BLOCKS.get(key, find)


def _observe_block(replica: Replica, item: Found) -> _Block:
    """Probe one block, and solve every list of units for the attributes that follow."""
    found = _Block()
    try:
        seen_inside, base = watch(replica)
        calls = {path: call.call for path, call in seen_inside.items()}
        replica.cuts = norms_across(replica, base, seen_inside)
        base = replica.run()
        observer = Observer(replica, base, item.streams)
        listed = observer.units()
    except FAILURES as error:
        found.refusals.append(Refusal("", f"can't be observed: {raised(error)}"))
        return found
    for units in listed:
        if units.reads:
            _settle(found, replica, base, observer, units, calls)
    known = [unit_list.path for unit_list in found.unit_lists if isinstance(unit_list, Attention)]
    found.refusals += promised(replica.module, [*known, *(item.path for item in found.refusals)], calls)
    found.refusals += unexplained(replica, observer.unexplained(listed), [item.path for item in found.refusals])
    if observer.prober.diverged and not found.unit_lists and not found.refusals:
        found.refusals.append(Refusal("", "its control flow depends on values: no units can be told apart"))
    elif not observer.prober.diverged:
        found.refusals += unused(replica, base)
    _name_apart(found)
    return found


def _settle(
    found: _Block, replica: Replica, base: Trace, observer: Observer, units: Units, calls: Mapping[str, Call]
) -> None:
    """Make a list of the units, or a refusal."""
    path = common_path(replica.module, [key[0] for key in units.owned], replica.cuts)
    try:
        solved, tried = None, []
        for variant in observer.variants(units):
            unit_list = make_unit_list(replica, base, variant, calls)
            if unit_list.path in calls and unit_list.count > 1:
                unit_list = replace(
                    unit_list, gathers=gathers(observer.prober, unit_list, variant, calls[unit_list.path])
                )
            solved = solve(replica.edited([]), unit_list, variant)
            if solved is not None:
                break
            tried.append((unit_list, variant))
        for attempt in tried if solved is None else ():
            solved = solved or solve_with_stand_ins(replica.edited([]), *attempt)
        line = "" if solved else failing_line(replica.edited([]), *tried[0])
    except UnsliceableError as error:
        found.refusals.append(Refusal(path, str(error)))
        return
    except DivergedError as error:
        found.refusals.append(Refusal(path, f"its control flow depends on values: {error}"))
        return
    except FAILURES as error:
        found.refusals.append(Refusal(path, f"can't be cut: {raised(error)}"))
        return
    if units.count == 1:
        found.refusals.append(Refusal(path, "all of it hangs together: one unit, and one must stay"))
    if solved is None:
        what = f"{units.count} heads" if isinstance(unit_list, Attention) else f"{units.count} channels"
        reason = f"{what}: no set of attributes makes compact equal masked"
        found.refusals.append(Refusal(path, f"{reason}; change {line}" if line else reason))
    else:
        found.unit_lists.append(solved)


def norms_across(replica: Replica, base: Trace, seen: Mapping[str, Seen]) -> tuple[str, ...]:
    """Find norms that run over a whole projection: the input is a matmul's output, and each entry moves all others."""
    cuts = []
    for path, call in seen.items():
        module = replica.module.get_submodule(path)
        x = call.args[0] if call.args else None
        if list(module.children()) or not isinstance(x, Tensor) or not isinstance(call.output, Tensor):
            continue
        if x.shape != call.output.shape or x.ndim < 2:
            continue
        key = _projection(base, x)
        if key is not None and _dense(replica, base, path, key, call):
            cuts.append(path)
    return tuple(cuts)


def _projection(base: Trace, x: Tensor) -> tuple[Any, int] | None:
    """Find the matmul whose output, or neighbouring features of it, are ``x``; and the first of these features."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    for touch in base.touches:
        output = touch.output.reshape(-1, touch.output.shape[-1])
        if output.shape[0] != rows.shape[0] or output.shape[1] < width:
            continue
        for start in (output[0] == rows[0, 0]).nonzero().flatten().tolist():
            if start + width <= output.shape[1] and torch.equal(output[:, start : start + width], rows):
                return touch.rows, start
    return None


def _dense(replica: Replica, base: Trace, path: str, key: tuple[Any, int], call: Seen) -> bool:
    rows, start = key
    taken: list[Tensor] = []
    handle = replica.module.get_submodule(path).register_forward_hook(lambda _m, _a, output: taken.append(output))
    try:
        replica.run(base, Change(rows={rows.key: rows.index[start : start + 1]}))
    except (DivergedError, *FAILURES):
        return False
    finally:
        handle.remove()
    changed = (taken[0] != call.output).reshape(-1, taken[0].shape[-1]).any(0)
    return bool(changed.all()) and len(changed) > 1


def _name_apart(found: _Block) -> None:
    """Give lists of units of one kind and place different names."""
    taken: dict[tuple[type, str], int] = {}
    for place, unit_list in enumerate(found.unit_lists):
        key = (type(unit_list), unit_list.path)
        taken[key] = taken.get(key, 0) + 1
        if taken[key] > 1:
            found.unit_lists[place] = replace(unit_list, path=f"{unit_list.path}#{taken[key]}")


def _placed(unit_list: UnitList, item: Found, index: int) -> UnitList:
    """Return the list of units with full paths."""
    head = item.stack.block(index)

    def full(path: str) -> str:
        return f"{head}.{path}".rstrip(".")

    return replace(
        unit_list,
        path=full(unit_list.path),
        stack=item.stack.path,
        block=index,
        place=head,
        members=tuple(replace(member, tensor=full(member.tensor)) for member in unit_list.members),
        masks=tuple(replace(point, module=full(point.module)) for point in unit_list.masks),
        follows=tuple(replace(follow, module=full(follow.module)) for follow in unit_list.follows),
        gathers=tuple(replace(gather, module=full(gather.module)) for gather in unit_list.gathers),
        across=tuple(replace(norm, path=full(norm.path)) for norm in unit_list.across),
        substitutes=tuple(map(full, unit_list.substitutes)),
    )
