"""Differences from the last run, in words; a half-trained step is not thrown away because of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, sha256_data

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_NUM_NAMED = 5
"""The most changed options that one message names."""


def data_change(known: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Say what differs from the manifest of the last run; nothing where nothing does, or there was none."""
    if not known.is_file():
        return ""
    before, now = ({sha256_data(dict(record)): record for record in each} for each in (read_json(known), records))
    gone, new = (
        [record for key, record in one.items() if key not in other] for one, other in ((before, now), (now, before))
    )
    if not gone and not new:
        return "" if list(before) == list(now) else "the samples stand in another order"
    names = {_name_of(record) for record in gone} & {_name_of(record) for record in new}
    first = min({_name_of(record) for record in (*gone, *new)})
    return (
        f"{len(names)} samples changed, {len(new) - len(names)} came, {len(gone) - len(names)} went"
        f" (the first by name: {first})"
    )


def _name_of(record: Mapping[str, Any]) -> str:
    """Name a sample as a manifest does."""
    return str(next((record[key] for key in ("file", "path", "sample") if key in record), record))


def need_same(partial: Path, step: str, now: Mapping[str, Any]) -> None:
    """Raise a UserError where a step has checkpoints that were made of something else than ``now`` (see ``made_of``).

    There is a way to say that they may go; a fresh start is never silent.
    """
    if not any((partial / "checkpoints").glob("step-*")):
        return
    try:
        before = read_json(partial / "job.json").get("made_of", {})
    except UserError:
        before = {}
    changed = " and ".join(_changed(before, json.loads(json.dumps(now))))
    raise UserError(
        f"step {step!r} is half done, {changed or 'by another recipe or version'}",
        where=str(partial),
        mend=f"Put it back as it was to go on, or give --force {step} to begin the step anew",
    )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield, in words, what differs of each thing a key is made of."""
    if not before:
        return
    if before["engine"] != now["engine"]:
        yield f"by another version of dit-compress (revision {before['engine']}, this is {now['engine']})"
    if before["manifest"] != now["manifest"]:
        yield "on data that has changed since"
    if before["inputs"] != now["inputs"]:
        others = [name for name, key in now["inputs"].items() if before["inputs"].get(name) != key]
        yield f"from another {' and '.join(others)}"
    rest = ("kind", "parts", "seed", "video", "sampler")
    options = list(_options({name: before[name] for name in rest}, {name: now[name] for name in rest}, ""))
    if options:
        more = f" and {len(options) - _NUM_NAMED} more" if len(options) > _NUM_NAMED else ""
        yield f"with other options ({', '.join(options[:_NUM_NAMED])}{more})"


def _options(before: Any, now: Any, name: str) -> Iterator[str]:
    """Yield ``lr was 0.001, is 0.002`` for every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _options(before.get(key), now.get(key), key)
    elif before != now:
        yield f"{name} was {before}, is {now}"
