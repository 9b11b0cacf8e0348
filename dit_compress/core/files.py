"""Files written whole or not at all, and their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from functools import lru_cache
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SEAL = "sha256"
"""The key of a JSON file's own checksum."""
_LONG = 300
_FULL = (errno.ENOSPC, errno.EDQUOT)


def sha256_file(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """Give size and sha256 of a file, as :func:`check_file` compares them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def check_file(path: Path, record: Mapping[str, Any], mend: str, *, contents: bool = True) -> None:
    """Refuse a file that is not the one recorded. One that has not changed since it was read is not read again.

    Args:
        path: the file.
        record: its ``bytes`` (not compared if absent) and ``sha256``.
        mend: what the user can do.
        contents: compare the checksum, too.

    Raises:
        UserError: the file is missing, truncated or changed.
    """
    if not path.is_file():
        raise UserError("the file is missing", where=str(path), mend=mend)
    size = path.stat().st_size
    if size != record.get("bytes", size):
        raise UserError(
            f"truncated or changed: {size} bytes, {record['bytes']} were written", where=str(path), mend=mend
        )
    if contents and _sha256_once(path) != record["sha256"]:
        raise UserError("the checksum differs from the one written", where=str(path), mend=mend)


def sha256_content(path: Path, within: Sequence[str] = ()) -> str:
    """Return the hex digest of what is in a file or folder, whatever it is called.

    within: of a folder that has any of these below it, only they count. Hidden files never do. A file that has not
    changed since this process read it (size, times, inode) is not read again.
    """
    if not path.is_dir():
        return _sha256_once(path)
    roots = [path / name for name in within if (path / name).exists()] or [path]
    found = {item for root in roots for item in ([root] if root.is_file() else root.rglob("*")) if item.is_file()}
    names = {item.relative_to(path).as_posix(): item for item in found}
    visible = {name: item for name, item in names.items() if not any(word[0] == "." for word in name.split("/"))}
    return sha256_data({name: _sha256_once(item) for name, item in visible.items()})


def _sha256_once(path: Path) -> str:
    stat = path.stat()
    return _sha256_known(path.absolute(), (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


@lru_cache(maxsize=4096)
def _sha256_known(path: Path, stamp: tuple[int, ...]) -> str:  # noqa: ARG001 - the stamp is part of the cache's key
    return sha256_file(path)


def sha256_data(data: Any) -> str:
    """Return the hex digest of JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read the JSON of a file; raise a UserError where it is missing or broken."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path)) from error
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=str(path)) from error
    except RecursionError as error:
        raise UserError("not valid JSON: nested too deeply", where=str(path)) from error
    except ValueError as error:  # broken, not UTF-8, or a number of too many digits
        raise UserError(f"not valid JSON: {error}", where=str(path)) from error


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Write JSON into a file, atomically. indent: None writes one line, in a tenth of the time: for long arrays."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(data, indent=indent, ensure_ascii=False) + "\n", "utf-8")


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON data with the sha256 of all the rest of it, as :func:`sha256_data` makes it."""
    rest = {name: value for name, value in json.loads(json.dumps(data)).items() if name != SEAL}
    return {**rest, SEAL: sha256_data(rest)}


def is_whole(data: Mapping[str, Any]) -> bool:
    """Tell whether sealed data is as it was written; data without a seal is."""
    return SEAL not in data or data == sealed(data)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Report a full or read-only disk in one message."""
    with full_disk(path):
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise UserError(f"can't write: {error.strerror}", where=str(path)) from error
            raise


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Report a full disk in one message, whoever was writing."""
    try:
        yield
    except Exception as error:
        # safetensors has an exception of its own, with the system's words in its text.
        if getattr(error, "errno", None) not in _FULL and os.strerror(errno.ENOSPC) not in str(error):
            raise
        free = shutil.disk_usage(_existing(path)).free
        raise UserError(
            "no space left on the disk",
            where=str(path),
            mend=f"Free some space ({free / 2**20:.0f} MiB are left) and run the same command again",
        ) from error


def need_space(path: Path, num_bytes: int, what: str, mend: str) -> None:
    """Raise a UserError, with the figures, where ``num_bytes`` more (of ``what``) don't fit on the disk of a path."""
    free = shutil.disk_usage(_existing(path)).free
    if num_bytes > free:
        raise UserError(
            f"for {what} ({num_bytes / 2**20:,.0f} MiB) there is no space left on the disk",
            where=str(path),
            mend=f"Free some space ({free / 2**20:,.0f} MiB are left) or {mend}",
        )


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a path to write to; the file appears under its own name when it is whole and synced.

    shared: other processes may write the same file meanwhile. On an error nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex[:12]}.partial" if shared else f".{path.name}.partial")
    with disk_errors(path):
        try:
            yield partial
            _sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a folder that appears under its name only when everything in it is written and synced.

    An existing folder of that name is replaced at the end. On an error nothing is left behind.
    """
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(path):
            partial.mkdir(parents=True)
            yield partial
            publish(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(partial: Path, path: Path) -> None:
    """Sync a finished folder and give it its name, replacing an older one."""
    for item in sorted(partial.rglob("*")):
        if item.is_file():
            _sync(item)
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(path)
    _sync(path.parent)


def need_place(path: Path, kind: Literal["file", "folder"]) -> None:
    """Try whether a file or folder can be written at a path, before anything is paid for; nothing is left there.

    Raises:
        UserError: something of another kind is there, or no such file or folder can be made.
    """
    try:
        path.with_name(f".{path.name}.{'x' * 12}.partial" if path.name else ".").lstat()
    except FileNotFoundError:
        pass  # a name that can be taken
    except (OSError, ValueError) as error:
        raise _no_place(path, error) from error
    if kind == "file" and path.is_dir():
        raise UserError("this is a folder", where=str(path), mend="Name a file")
    if kind == "folder" and path.exists() and not path.is_dir():
        raise UserError("this is a file", where=str(path), mend="Name a folder")
    try:
        with TemporaryFile(dir=_existing(path if kind == "folder" else path.parent)):
            pass
    except OSError as error:
        raise _no_place(path, error) from error


def _no_place(path: Path, error: Exception) -> UserError:
    return UserError(
        f"can't be written: {getattr(error, 'strerror', None) or error}",
        where=show_path(path),
        mend="Name another place",
    )


def show_path(path: Path) -> str:
    """Return a path as text, cut where it is long."""
    text = str(path)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links (plain copies where links can't be made)."""
    for item in sorted(source.rglob("*")):
        place = target / item.relative_to(source)
        if item.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        link_file(item, place)


def link_file(source: Path, target: Path) -> None:
    """Copy a file by a hard link (a plain copy where links can't be made); of a symbolic link what it points to."""
    source = source.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
