"""Models of the JSON files that the toolkit writes, and what is wrong with one, in words."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
ABSENT: Any = None
"""Default of a key that may be missing, and is never null."""
_WIDTH = 160
"""Letters of a fault: it quotes what it is about."""


class Open(BaseModel):
    """An object that may say more than its fields."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Closed(Open):
    """An object that has no keys but its fields."""

    model_config = ConfigDict(extra="forbid")


def faults(model: type[BaseModel], data: Mapping[str, Any], *, partial: bool = False) -> Iterator[str]:
    """Where JSON data departs from its model, and in what. partial: keys at its top that are missing are no fault."""
    try:
        model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        for fault in error.errors():
            if not (partial and fault["type"] == "missing" and len(fault["loc"]) == 1):
                yield _words(fault)


def _words(fault: Any) -> str:
    where: list[Any] = list(fault["loc"]) or [""]
    *outer, leaf = where
    what = re.sub("^(Value error, |(Input|String|List) (?=should))", "", fault["msg"])
    if fault["type"] == "missing":
        where, what = outer, f"{leaf!r} is a required property"
    elif fault["type"] == "extra_forbidden":
        where, what = outer, f"{leaf!r} is none of its keys"
    else:
        what = what if fault["type"] == "value_error" or ", not " in what else f"{what}, not {fault['input']!r}"
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where).removeprefix(".")
    return f"{place or '$'}: {what if len(what) <= _WIDTH else f'{what[:_WIDTH]} …'}"
