"""The bundles that each step of a draft reads: what it names, or the default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.plugin.registry import closest
from dit_compress.recipe.messages import show
from dit_compress.recipe.model import BASE, NO_BUNDLE

if TYPE_CHECKING:
    from dit_compress.plugin.options import Part
    from dit_compress.recipe.document import Place
    from dit_compress.recipe.validate import Checker

_NEAR = 50
"""Steps before (and after) a wrong name among which the one that was meant is looked for."""


@dataclass
class Draft:
    """A step as it is read. name and part are None where the document has an error there."""

    place: Place
    kind: str | None = None
    plugin_name: str | None = None
    slots: tuple[str, ...] = ()
    part: Part | None = None
    name: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def gives_bundle(self) -> bool:
        """True where a later step can read what this one makes."""
        return self.kind not in NO_BUNDLE


def is_folder(path: str) -> bool:
    """Tell whether there is a folder at a path, which may be no path at all."""
    try:
        return Path(path).is_dir()
    except OSError:  # a name that is too long, a loop of links
        return False


class Inputs:
    """Decides what each step reads: what it names, or the default. One pass: what later steps need is kept."""

    def __init__(self, checker: Checker, drafts: list[Draft], first: str | None) -> None:
        self.checker = checker
        self.drafts = drafts
        self.first = first
        self.index: dict[str, int] = {draft.name: index for index, draft in enumerate(drafts) if draft.name}
        self._names = list(self.index)
        self._all_named = all(draft.name for draft in drafts)
        self._earlier: list[Draft] = []  # that give a bundle
        self._unpruned: dict[str, str | None] = {}  # by step: the input of the nearest prune among it and its ancestors

    def resolve(self) -> None:
        """Fill the inputs of every draft."""
        for index, draft in enumerate(self.drafts):
            for slot in ("input", *draft.slots):
                if slot in draft.given:
                    source = self._named(index, slot, draft.given[slot])
                else:
                    source = self._default(index, slot)
                if source is not None:
                    draft.inputs[slot] = source
            self._compare(draft)
            if draft.name:
                source = draft.inputs.get("input")
                self._unpruned[draft.name] = source if draft.kind == "prune" else self._unpruned.get(source or "")
            if draft.gives_bundle:
                self._earlier.append(draft)

    def _compare(self, draft: Draft) -> None:
        """Refuse an evaluation of a model against itself."""
        for slot in draft.slots if draft.kind == "evaluate" else ():
            if slot in draft.given and draft.inputs.get(slot, slot) == draft.inputs.get("input"):
                what = f"{slot!r} names {draft.inputs[slot]!r}, which the step reads itself"
                self.checker.fault((*draft.place, slot), what, "Name another step")

    def _default(self, index: int, slot: str) -> str | None:
        draft = self.drafts[index]
        if slot == "input":
            return self._earlier[-1].name if self._earlier else self.first
        idle = draft.part.options.idle_slots if draft.part is not None else {}
        if slot == "teacher" and draft.kind == "distill" and slot not in idle:
            return self._unpruned.get(draft.inputs.get("input", ""))
        return None

    def _named(self, index: int, slot: str, value: Any) -> str | None:
        """Return an earlier step's name, or a path; None after noting an error."""
        place = (*self.drafts[index].place, slot)
        if not isinstance(value, str):
            self.checker.fault(
                place,
                f"expected the name of an earlier step for {slot!r}, got {show(value)}",
                "Write its name, or the path of a bundle",
            )
            return None
        if value == BASE and self.first == BASE:
            return value
        if value in self.index:
            return self._step(index, slot, value)
        if "/" in value or is_folder(value):
            if not is_folder(value):
                self.checker.fault(
                    place, f"there is no folder {show(value)} for {slot!r}", "Give a bundle or a run folder"
                )
                return None
            return as_path(value)
        # Where a step has an error, its name may be the unknown one, and nothing more is reported.
        if self._all_named or closest(value, self._names[max(0, index - _NEAR) : index + _NEAR]):
            self._fault_of_unknown(index, slot, value)
        return None

    def _step(self, index: int, slot: str, name: str) -> str | None:
        place = (*self.drafts[index].place, slot)
        other = self.index[name]
        if other == index:
            self.checker.fault(place, f"step {name!r} names itself as {slot!r}", "Name an earlier step")
        elif other > index:
            line = self.checker.document.line(self.drafts[other].place)
            self.checker.fault(
                place,
                f"{slot!r} names the step {name!r}, which comes later (line {line})",
                "Move that step up, or name an earlier one",
            )
        elif not self.drafts[other].gives_bundle:
            kind = self.drafts[other].kind
            self.checker.fault(
                place, f"{slot!r} names {name!r}, an {kind} step, which gives no bundle", "Name the step it reads"
            )
        else:
            return name
        return None

    def _fault_of_unknown(self, index: int, slot: str, value: str) -> None:
        earlier = [draft.name for draft in self._earlier[-_NEAR:] if draft.name]
        earlier = [BASE, *earlier] if self.first == BASE else earlier
        guess = closest(value, earlier)
        listing = f"Earlier steps: {', '.join(earlier) or 'none'}; a path has a '/'"
        mend = f"Did you mean {guess!r}?" if guess else listing
        self.checker.fault((*self.drafts[index].place, slot), f"{slot!r} names an unknown step {show(value)}", mend)


def as_path(path: str) -> str:
    """Return a path that can't be taken for the name of a step."""
    return path if "/" in path else f"./{path}"
