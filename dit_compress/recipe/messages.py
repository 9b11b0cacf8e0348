"""pydantic's errors in plain words: one message per mistake, each at a place of the document."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from dit_compress.plugin.registry import closest

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from dit_compress.recipe.document import Place

_Words = str | Callable[[Mapping[str, Any]], str]
_NUMBER = ("a number", "Write a number, such as 0.5")
_WHOLE = ("a whole number", "Write digits alone, such as 4")
_LIST = ("a list", "Write [FIRST, SECOND]")
_KEYS = ("'key: value' entries", "Write {KEY: VALUE}")
_TRUTH = ("true or false", "Write one of the two")
_RAISE, _LOWER, _ADD, _REMOVE = "Raise it", "Lower it", "Add some", "Remove some"
_CHOICE: tuple[_Words, str] = (lambda ctx: f"{ctx['expected']}", "Choose one of them")
_CORRECT = "Correct it"
_EXPECTED: dict[str, tuple[_Words, str]] = {
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": ("a smaller whole number", _LOWER),
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": ("a finite number", _NUMBER[1]),
    "bool_type": _TRUTH,
    "bool_parsing": _TRUTH,
    "string_type": ("text", "Write a word, or put it in quotes"),
    "path_type": ("a path", "Write a path, or put it in quotes"),
    "none_required": ("nothing", "Leave it out"),
    "list_type": _LIST,
    "tuple_type": _LIST,
    "set_type": _LIST,
    "frozen_set_type": _LIST,
    "dict_type": _KEYS,
    "mapping_type": _KEYS,
    "model_type": _KEYS,
    "model_attributes_type": _KEYS,
    "dataclass_type": _KEYS,
    "is_instance_of": ("a plugin", "Write {use: NAME}"),
    "literal_error": _CHOICE,
    "enum": _CHOICE,
    "greater_than": (lambda ctx: f"a number above {ctx['gt']:.12g}", _RAISE),
    "greater_than_equal": (lambda ctx: f"a number of at least {ctx['ge']:.12g}", _RAISE),
    "less_than": (lambda ctx: f"a number below {ctx['lt']:.12g}", _LOWER),
    "less_than_equal": (lambda ctx: f"a number of at most {ctx['le']:.12g}", _LOWER),
    "multiple_of": (lambda ctx: f"a multiple of {ctx['multiple_of']:g}", "Round it"),
    "too_short": (lambda ctx: f"at least {ctx['min_length']} entries", _ADD),
    "too_long": (lambda ctx: f"at most {ctx['max_length']} entries", _REMOVE),
    "string_too_short": (lambda ctx: f"at least {ctx['min_length']} characters", _ADD),
    "string_too_long": (lambda ctx: f"at most {ctx['max_length']} characters", _REMOVE),
    "string_pattern_mismatch": (lambda ctx: f"text like {ctx['pattern']}", "Write it like that"),
}
"""By pydantic's type of error: what it expected, and the mend."""


@dataclass(frozen=True)
class Finding:
    """One mistake in an options mapping: where in it, what, and the mend."""

    place: Place
    what: str
    mend: str = ""


def findings(error: ValidationError, data: Mapping[str, Any], options: type[BaseModel], whose: str) -> list[Finding]:
    """Find what is wrong with a mapping of options. ``whose`` names the plugin in messages."""
    groups: dict[Place, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        groups.setdefault(_place(detail, data), []).append(detail)
    # A union complains once per member: the complaint that goes deepest is about the member that was meant.
    deepest = {
        place: group
        for place, group in groups.items()
        if not any(len(other) > len(place) > 0 and other[: len(place)] == place for other in groups)
    }
    missing = {place for place, group in deepest.items() if group[0]["type"] == "missing"}
    found: list[Finding] = []
    for place, group in deepest.items():
        if group[0]["type"] == "extra_forbidden":
            finding, meant = _unknown(place, options, whose)
            missing.discard(meant)
            found.append(finding)
        elif group[0]["type"] != "missing":
            found.append(_wrong(place, group, data, whose))
    return found + [_missing(place, data, whose) for place in deepest if place in missing]


def unknown_key(key: str, known: list[str], whose: str) -> tuple[str, str]:
    """Describe an unknown key: what and mend."""
    guess = closest(key, known)
    mend = f"Did you mean {guess!r}?" if guess else f"Known keys: {', '.join(known)}" if known else "It has no keys"
    return f"unknown key {key!r} in {whose}", mend


def show(value: Any) -> str:
    """Return a value as its writer would recognise it, cut where it is long."""
    if isinstance(value, str):
        text = repr(value)
    else:
        text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _place(detail: ErrorDetails, data: Mapping[str, Any]) -> Place:
    """Return pydantic's ``loc`` without the names of union members, which the document does not have."""
    place: list[str | int] = []
    value: Any = data
    for step in detail["loc"]:
        holds = step in value if isinstance(value, dict) else isinstance(value, list) and step in range(len(value))
        if holds:
            value = value[step]
        elif not (detail["type"] == "missing" and step == detail["loc"][-1]):
            continue
        place.append(step)
    return tuple(place)


def _unknown(place: Place, options: type[BaseModel], whose: str) -> tuple[Finding, Place]:
    """Return the finding, and the place of the key that was probably meant."""
    key = str(place[-1])
    model = _model_at(options, place[:-1])
    known = [field.alias or name for name, field in model.model_fields.items()] if model else []
    within = f"{_dotted(place[:-1])!r} of {whose}" if place[:-1] else whose
    return Finding(place, *unknown_key(key, known, within)), (*place[:-1], closest(key, known) or "")


def _missing(place: Place, data: Mapping[str, Any], whose: str) -> Finding:
    if isinstance(place[-1], int):
        short = value_at(data, place[:-1])
        return Finding(place[:-1], f"{_dotted(place[:-1])!r} of {whose} has too few entries: {show(short)}", "Add one")
    return Finding(place, f"{whose} needs {_dotted(place)!r}", f"Add '{place[-1]}: ...'")


def _wrong(place: Place, group: list[ErrorDetails], data: Mapping[str, Any], whose: str) -> Finding:
    for detail in group:
        if detail["type"] in ("value_error", "assertion_error"):
            text = str(detail.get("ctx", {}).get("error", detail["msg"])).removesuffix(".")
            quoted = [(*place, key) for key in re.findall(r"'(\w+)'", text) if _has(data, (*place, key))]
            subject = f"{_dotted(place)!r} of {whose}" if place else whose
            return Finding(quoted[-1] if quoted else place, f"{subject}: {text}")
    value = value_at(data, place)
    words = [_expected(detail) for detail in group]
    subject = f"{_dotted(place)!r} of {whose}" if place else whose
    if None in words:
        return Finding(place, f"{subject}: {group[0]['msg']}, got {show(value)}", _CORRECT)
    wanted = " or ".join(dict.fromkeys(word for word in words if word))
    return Finding(place, f"expected {wanted} for {subject}, got {show(value)}", _EXPECTED[group[0]["type"]][1])


def _expected(detail: ErrorDetails) -> str | None:
    words, _ = _EXPECTED.get(detail["type"], (None, ""))
    return words(detail.get("ctx", {})) if callable(words) else words


def _model_at(options: type[BaseModel], place: Place) -> type[BaseModel] | None:
    """Return the options class that a nested mapping is validated by."""
    model: type[BaseModel] | None = options
    for step in place:
        fields = model.model_fields if model else {}
        field = next((found for name, found in fields.items() if step in (name, found.alias)), None)
        if field is not None:
            model = _model_in(field.annotation)
        elif not isinstance(step, int):
            return None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def _has(data: Any, place: Place) -> bool:
    holder = value_at(data, place[:-1])
    return isinstance(holder, dict) and place[-1] in holder


def value_at(data: Any, place: Place) -> Any:
    """Return the value at a place of nested data."""
    for step in place:
        data = data[step]
    return data


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))
