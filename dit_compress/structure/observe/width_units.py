"""The width of a module's stream as a list of units, proven: what each channel owns, masks, attributes that follow."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch

from dit_compress.core.progress import say
from dit_compress.structure.edits import compile_edits
from dit_compress.structure.facts import Follow, MaskPoint, Member, Refusal, Width
from dit_compress.structure.lookup import number_at, set_attribute
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.structure.observe.assemble import geometry, masks_of, slices
from dit_compress.structure.observe.attributes import EXACT, integers, plans
from dit_compress.structure.observe.discover import running
from dit_compress.structure.observe.probe import outputs_differ
from dit_compress.structure.observe.stored import stored
from dit_compress.structure.observe.trace import FAILURES, DivergedError
from dit_compress.structure.observe.units import Units
from dit_compress.structure.observe.width import NoWidthError, Tracer
from dit_compress.structure.raised import line_of, raised
from dit_compress.structure.record import Call
from dit_compress.structure.signature import Known, signature

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from dit_compress.structure.facts import Axis, Structure
    from dit_compress.structure.observe.trace import Key, Touch
    from dit_compress.structure.observe.weightless import Replica
    from dit_compress.structure.observe.width import Labels

MOST_FOLLOWS = 2
"""Attributes, alike in all blocks, that may have to follow together."""


_FOUND: Known[Structure] = Known(16)
"""What was found before: it depends on classes and shapes, not on weights."""


def observe_width(module: nn.Module, calls: Sequence[Call], structure: Structure) -> Structure:
    """Return the structure with the width of its main stream, or with the reason why that can't be cut.

    calls: calls of the module; what is found on the first must hold on the others (of another size), too, as far as
    the module runs on them. Reads no weights. Raises UserError where the module has no stack.
    """
    joined = Call(("width", *((call.args, call.kwargs) for call in calls)), recorded=True)
    key = signature(module, dict(enumerate(joined.args)))
    return _FOUND.get(key, lambda: stored(module, joined, key, lambda: _observed(module, calls, structure)))


def _observed(module: nn.Module, calls: Sequence[Call], structure: Structure) -> Structure:
    path = structure.main.path
    say(f"observing {type(module).__name__}: the width of its stream")
    try:
        return replace(structure, widths=(_width(module, calls, structure),))
    except NoWidthError as error:
        refusal = Refusal(error.path or path, f"the width can't be cut: {error}")
    except FAILURES as error:
        refusal = Refusal(path, f"the width can't be observed: {raised(error)}")
    return replace(structure, refusals=(refusal, *structure.refusals))


def _width(module: nn.Module, calls: Sequence[Call], structure: Structure) -> Width:
    replica = running(module, calls[0])
    tracer = Tracer(replica, structure.main, structure.stacks)
    main = tracer.follow(structure.main.stream)
    replicas = [replica.edited([])]
    for call in calls[1:]:
        with suppress(*FAILURES):  # a model that takes no other size is not asked for one
            replicas.append(running(module, call))
    first: NoWidthError | None = None
    for tied in (None, *tracer.others(main)):
        try:
            labels = main if tied is None else main.joined(tracer.follow(tied))
            made = replace(_made(tracer, _units(labels)), path=structure.main.path)
            _need_unshared(module, made)
            return solve_width(replicas, made, _rows(labels))
        except NoWidthError as error:
            first = first or error
    assert first is not None
    raise first


# ------------------------------------------------------------------ from labels to members and masks


def _units(labels: Labels) -> Units:
    """Return what each channel owns. Raises NoWidthError where channels own different numbers of entries."""
    owned: dict[Key, np.ndarray] = {}
    for side in (labels.read, labels.written):
        for key, label in side.items():
            places = [np.flatnonzero(label == channel) for channel in range(labels.width)]
            if len({len(entries) for entries in places}) > 1 or not len(places[0]):
                raise NoWidthError(key[0].rpartition(".")[0], "some of its channels are those of the stream, not all")
            owned[key] = np.array(places)
    if not owned:
        raise NoWidthError("", "no matmul or norm reads its channels")
    cols = tuple(key for key in labels.read if key[1] != ("in",))
    rows = tuple(key for key in labels.written if key[1] != ("out",) and key[1][:1] != ("value",))
    return Units(owned, rows, cols, tuple(key for key in labels.written if key[1][:1] == ("value",)))


def _made(tracer: Tracer, units: Units) -> Width:
    replica, base = tracer.replica, tracer.base
    calls = {path: call.call for path, call in tracer.seen.items()}
    shapes, biases = geometry(base)
    members = []
    for key in (*units.rows, *units.cols):
        dim, indices = slices(units.owned[key], shapes.get(key), key[1])
        members.append(Member(key[0], dim, indices))
        if key in units.rows and key in biases:
            bias, order = biases[key]
            members.append(Member(bias[0], bias[1][0], order[units.owned[key]]))
    members += [Member(key[0], key[1][1], units.owned[key]) for key in units.tables]
    norms = [path for path, side in ((key[0], key[1]) for key in units.owned) if side == ("in",)]
    for path in norms:
        owned = units.owned[path, ("in",)]
        parameters = replica.module.get_submodule(path).named_parameters()
        members += [Member(f"{path}.{name}", 0, owned) for name, value in parameters if len(value) == owned.size]
    masks = [MaskPoint(path, tracer.norms.sides[path], units.owned[path, ("in",)]) for path in norms]  # type: ignore[arg-type]
    for key in units.cols:
        masks += masks_of(replica, units, members, key, calls, outputs=False)
    follows = [follow for path in norms for follow in _shape_of(replica.module, path, units.owned[path, ("in",)])]
    return Width("", "", 0, units.count, tuple(_once(members)), tuple(masks), tuple(follows))


def _shape_of(module: nn.Module, path: str, owned: np.ndarray) -> Iterator[Follow]:
    """Yield attributes with the shape of a norm that has no parameters, by which others know it."""
    owner = module.get_submodule(path)
    if not any(value.shape == (owned.size,) for value in owner.parameters(recurse=False)):
        for name, value in vars(owner).items():
            if value in ((owned.size,), owned.size) and not isinstance(value, bool | float):
                yield Follow(path, name, owned.shape[1])


def _once(members: Sequence[Member]) -> Iterator[Member]:
    """Yield each slice once: a bias may stand beside several uses of a weight."""
    seen = set()
    for member in members:
        key = member.tensor, member.dim
        if key not in seen:
            seen.add(key)
            yield member


def _rows(labels: Labels) -> dict[Key, np.ndarray]:
    """Return the labels of the rows of matmuls, and of the inputs."""
    return {**labels.read, **{key: label for key, label in labels.written.items() if key[1][:1] != ("value",)}}


def _need_unshared(module: nn.Module, width: Width) -> None:
    """Raise NoWidthError where a parameter has a second name that does not lose the same slices."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    cut = {(member.tensor, member.dim) for member in width.members}
    for tensor, dim in sorted(cut):
        shared = next((found for found in names.values() if tensor in found), [tensor])
        other = next((name for name in shared if (name, dim) not in cut), None)
        if other is not None:
            raise NoWidthError(tensor.rpartition(".")[0], f"its weights are those of {other}, too")


# ------------------------------------------------------------------ attributes that follow, and the proof


def solve_width(replicas: Sequence[Replica], width: Width, labels: Mapping[Key, np.ndarray]) -> Width:
    """Return the width with what must follow. Raises NoWidthError where compact equals masked in no way that is tried.

    replicas: the module with each call.
    """
    kept = plans(width.count)[-1]
    first, *more = [_Trial(each, width, kept, labels) for each in replicas]
    candidates = _candidates(replicas[0].module, width)
    line = ""
    for size in range(min(MOST_FOLLOWS, len(candidates)) + 1):
        for chosen in combinations(candidates, size):
            follows = tuple(follow for alike in chosen for follow in alike)
            if not first.exact(follows):
                line = line or first.line
                continue
            if not all(trial.exact(follows) for trial in more):
                raise NoWidthError("", "at another size of the latent the model computes something else with fewer")
            if _Trial(replicas[0], width, plans(width.count)[0], labels).exact(follows):
                return replace(width, follows=(*width.follows, *follows))
    reason = "no set of attributes makes compact equal masked"
    raise NoWidthError(first.where, f"{reason}; with fewer channels fails {line}" if line else reason)


class _Trial:
    """One plan on one call: the masked run, and the module cut, before its attributes are set."""

    def __init__(self, replica: Replica, width: Width, kept: Sequence[int], labels: Mapping[Key, np.ndarray]) -> None:
        axis: Axis = width.axis("width")
        self.labels, self.kept, self.count = labels, np.array(kept), width.count
        self.line, self.where = "", ""
        like = torch.empty(0, dtype=torch.float64)
        with masked(replica.module, [axis], hard_masks([axis], {axis.name: tuple(kept)}, like)):
            self.masked = replica.run()
        edits = compile_edits(replica.module, [axis], {axis.name: tuple(kept)})
        self.compact = replica.edited(edits)

    def exact(self, follows: Sequence[Follow]) -> bool:
        """Tell whether the cut module with these attributes gives what the masked one gives, everywhere."""
        module = self.compact.module
        before = {follow: number_at(module, follow.module, follow.attribute) for follow in follows}
        for follow, value in before.items():
            less = (follow.step or 0) * (self.count - len(self.kept))
            set_attribute(module, follow.module, follow.attribute, value - less)
        try:
            trace = self.compact.run(self.masked, outputs=self._output)
        except (DivergedError, *FAILURES) as error:
            found = line_of(error)
            self.line = f"{found[0]}: {found[1]}" if found else raised(error)
            return False
        finally:
            for follow, value in before.items():
                set_attribute(module, follow.module, follow.attribute, value)
        for pair in zip(self.masked.touches, trace.touches, strict=True):
            if not self._same(*pair):
                self.where = pair[0].rows.key[0].rpartition(".")[0]
                return False
        return not outputs_differ(self.masked.output, trace.output)

    def _output(self, _note: Touch, before: Touch) -> Tensor:
        return before.output[..., self._stays(before.rows.key, before.rows.index)]

    def _same(self, before: Touch, after: Touch) -> bool:
        if before.input is None or after.input is None or before.cols is None:
            return True
        reference = before.input[..., self._stays(before.cols.key, before.cols.index)]
        if reference.shape != after.input.shape:
            return False
        scale = reference.abs().max().clamp_min(1e-300) if reference.numel() else torch.tensor(1.0)
        return bool((torch.nan_to_num(reference - after.input).abs() <= EXACT * scale).all())

    def _stays(self, key: Key, index: np.ndarray) -> Tensor:
        label = self.labels.get(key)
        if label is None:
            return torch.ones(len(index), dtype=torch.bool)
        return torch.from_numpy((label[index] < 0) | np.isin(label[index], self.kept))


def _candidates(module: nn.Module, width: Width) -> list[tuple[Follow, ...]]:
    """List integer attributes that are the width or a multiple that units own; those of one class and name together."""
    sizes = {width.count * member.indices.shape[1]: member.indices.shape[1] for member in width.members}
    alike: dict[tuple[type, str, int], list[Follow]] = {}
    for path, owner in module.named_modules():
        for name, value in integers(owner):
            if value in sizes:
                alike.setdefault((type(owner), name, value), []).append(Follow(path, name, sizes[value]))
    return [tuple(follows) for _, follows in sorted(alike.items(), key=lambda item: str(item[0]))]
