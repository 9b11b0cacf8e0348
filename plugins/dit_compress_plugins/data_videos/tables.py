"""Tables of clips: a CSV or Parquet file with the columns ``path`` and ``caption``; further columns are passed over."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COLUMNS = ("path", "caption")


def read_table(path: Path, problems: list[UserError]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, record) of each good row; the bad ones go to ``problems``. Paths are from the table on.

    Raises:
        UserError: the file can't be read, or lacks a column; all that it lacks at once.
    """
    columns, rows = READERS[path.suffix](path)
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UserError(
            f"no column {' and no '.join(map(repr, missing))}, there are {', '.join(map(repr, columns)) or 'none'}",
            where=str(path),
            mend=f"Name columns {' and '.join(map(repr, COLUMNS))}",
        )
    for line, row in rows:
        where = f"{path}:{line}"
        empty = [name for name in COLUMNS if not isinstance(row[name], str) or not row[name].strip()]
        if empty:
            problems += [UserError(f"no {name!r}", where=where, mend=f"Give {name!r} as text") for name in empty]
        else:
            yield where, {"file": row["path"], "caption": row["caption"]}


def _read_csv(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines(keepends=True)
        reader = csv.DictReader(lines, strict=True)
        return list(reader.fieldnames or ()), iter([(reader.line_num, row) for row in reader])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"the table can't be read ({error})", where=str(path), mend="Save it as CSV in UTF-8"
        ) from error


def _read_parquet(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        mend = "Run pip install 'dit-compress[parquet]', or give the table as CSV"
        raise UserError("a Parquet table needs pyarrow", where=str(path), mend=mend) from error
    try:
        columns = parquet.read_schema(path).names
        table = parquet.read_table(path, columns=[name for name in COLUMNS if name in columns])
    except (OSError, ArrowException) as error:
        raise UserError(f"the table can't be read ({error})", where=str(path), mend="Write it anew") from error
    return list(columns), iter(enumerate(table.to_pylist(), start=1))


READERS: dict[str, Callable[[Path], tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""By the ending of a file's name: its columns, and the number (line or row) and values of each row."""
