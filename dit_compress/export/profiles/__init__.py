"""Devices as data files: ``<name>.json`` in this folder, or a file of one's own.

A profile states limits and where they come from. Latencies stand in it only as somebody measured them;
there is no estimator: the paper's three points on one phone do not fit any.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.export.types import Profile
from dit_compress.plugin.options import File

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ProfileFile(File):
    """A mark of an option that names a profile: a step's key holds the contents of the profile."""

    def content(self, value: str) -> str:
        """Return the sha256 of the profile's file; the value where there is no such profile."""
        path = path_of(value)
        return super().content(str(path)) if path.is_file() else value


Device = Annotated[str, ProfileFile()]
"""Type of the option ``device`` of exporters: ``device: Device = "cpu"``. An edited profile exports again."""


def names() -> list[str]:
    """Name the profiles that come with the toolkit."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def path_of(name: str) -> Path:
    """Return the file of a profile: one's own where the name ends in ``.json``, else one of this folder."""
    return Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"


def profile_named(name: str) -> Profile:
    """Read a profile by its name, or by the path of a JSON file.

    Raises:
        UserError: there is no such profile, or the file is not one.
    """
    path = path_of(name)
    if not path.is_file():
        known = ", ".join(names())
        raise UserError(f"no device profile {name!r}", mend=f"Take one of {known}, or the path of a .json file")
    return from_data(read_json(path), str(path))


def from_data(data: Any, where: str) -> Profile:
    """Make a profile out of JSON data.

    Raises:
        UserError: unknown or missing keys, or a value of the wrong type.
    """
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise UserError("a device profile needs a 'name'", where=where)
    known = {each.name: each for each in fields(Profile)}
    problems = [UserError(f"unknown key {key!r}", where=where) for key in data if key not in known]
    for key, value in data.items():
        if key in _NUMBERS and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            problems.append(UserError(f"{key!r} is a whole number, not {value!r}", where=where))
        if key in _SWITCHES and not isinstance(value, bool):
            problems.append(UserError(f"{key!r} is true or false, not {value!r}", where=where))
        if key == "query_slice" and isinstance(value, int) and value < 1:
            problems.append(UserError(f"'query_slice' is 1 or more, not {value!r}", where=where))
        if key == "measured" and not all(isinstance(row, dict) and row.get("source") for row in value):
            problems.append(UserError("a measured latency needs its 'source'", where=where))
    if data.get("precision", "float16") not in ("float16", "float32"):
        problems.append(UserError(f"'precision' is float16 or float32, not {data['precision']!r}", where=where))
    if problems:
        raise UserError.join(problems)
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Profile(**given)


_NUMBERS = ("weight_bits", "max_rank", "max_file_bytes", "memory_bytes", "alignment", "query_slice")
_SWITCHES = ("convolutions", "split_heads", "flat_convolutions")
