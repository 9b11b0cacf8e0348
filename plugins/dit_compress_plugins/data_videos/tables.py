"""Tables of clips: a CSV or Parquet file with the columns ``path`` and ``caption``; further columns are passed over."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

COLUMNS = ("path", "caption")


def read_table(path: Path, problems: list[UserError]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, record) of each good row; the bad ones go to ``problems``. Paths are from the table on.

    Raises:
        UserError: the file can't be read, lacks columns, all of them at once, or has one twice.
    """
    for line, row in READERS[path.suffix](path):
        where = f"{path}:{line}"
        empty = [name for name in COLUMNS if not isinstance(row[name], str) or not row[name].strip()]
        if empty:
            problems += [UserError(f"no {name!r}", where=where, mend=f"Give {name!r} as text") for name in empty]
        else:
            yield where, {"file": row["path"], "caption": row["caption"]}


def _need_columns(path: Path, columns: Sequence[str]) -> None:
    """Raise a UserError where a table's columns are not those that are read, each once."""
    missing = [name for name in COLUMNS if name not in columns]
    twice = [name for name in COLUMNS if columns.count(name) > 1]
    if missing or twice:
        faults = f"no column {' and no '.join(map(repr, missing))}" if missing else f"a second column {twice[0]!r}"
        raise UserError(
            f"{faults}, there are {', '.join(map(repr, columns)) or 'none'}",
            where=str(path),
            mend=f"Name columns {' and '.join(map(repr, COLUMNS))}, each once",
        )


def _read_csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        # Not splitlines(): that breaks at U+0085, U+2028 and others, which may stand in a caption.
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        _need_columns(path, reader.fieldnames or ())
        return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"the table can't be read ({error})", where=str(path), mend="Save it as CSV in UTF-8"
        ) from error


def _read_parquet(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        mend = "Run pip install 'dit-compress[parquet]', or give the table as CSV"
        raise UserError("a Parquet table needs pyarrow", where=str(path), mend=mend) from error
    try:
        _need_columns(path, parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=list(COLUMNS))
    except (OSError, ArrowException) as error:
        raise UserError(f"the table can't be read ({error})", where=str(path), mend="Write it anew") from error
    return list(enumerate(table.to_pylist(), start=1))


READERS: dict[str, Callable[[Path], list[tuple[int, dict[str, Any]]]]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""By the ending of a file's name: the number (line or row) and values of each row, where its columns will do."""
