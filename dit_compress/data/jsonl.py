"""One line of a JSON lines file that a user wrote, read strictly: what later steps could not carry is refused here."""

from __future__ import annotations

import json
import sys
from typing import Any

from dit_compress.core.errors import UserError

MAX_DEPTH = 50
"""Objects and lists inside each other; a record is written and hashed again, deep inside a training's calls."""


def read_object(line: str, where: str) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        line: the text, without its end.
        where: ``file:line``, for messages.

    Raises:
        UserError: no JSON, no object, a key twice, nesting too deep, a number too long, a lone surrogate.
    """
    try:
        record = json.loads(line, object_pairs_hook=_once)
        _need_plain(record, 0)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON ({error.msg}, column {error.colno})", where=where, mend="Write one JSON object a line"
        ) from error
    except UserError as error:
        raise UserError(error.problems[0][1], where=where, mend=error.problems[0][2]) from error
    except RecursionError as error:
        raise UserError(_DEEP, where=where, mend=_FLAT) from error
    except ValueError as error:  # of int(): the one other that json has
        digits = sys.get_int_max_str_digits()
        raise UserError(f"a number of more than {digits} digits", where=where, mend="Write it as text") from error
    if not isinstance(record, dict):
        raise UserError(f"JSON, but a {type(record).__name__}", where=where, mend="Write one JSON object a line")
    return record


_DEEP, _FLAT = f"nested more than {MAX_DEPTH} deep", "Write it flat"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values; raise a UserError where a key stands twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"the key {key[:40]!r} stands twice", mend="Keep one of the two")
        found[key] = value
    return found


def _need_plain(value: Any, depth: int) -> None:
    """Raise a UserError where a value is too deep, or a text in it can't be written as UTF-8."""
    if depth > MAX_DEPTH:
        raise UserError(_DEEP, mend=_FLAT)
    if isinstance(value, str):
        lone = next((letter for letter in value if "\ud800" <= letter <= "\udfff"), None)
        if lone is not None:
            raise UserError(f"half a character ({lone!r}) in a text", mend="Write both halves, or the character itself")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _need_plain(key, depth)
            _need_plain(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _need_plain(inner, depth + 1)
