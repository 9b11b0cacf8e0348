"""Packages no larger than a limit: a model cut in two, and again, until every chunk fits.

The chunks run one after another, each on the outputs of those before and on the component's inputs;
together they compute what the whole does (``tests/plugins/test_export_coreml_files.py`` shows it bit for bit).
"""

from __future__ import annotations

import ctypes
import gc
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.progress import quiet
from dit_compress_plugins.export_coreml.package import fix_bytes

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = ".mlpackage"


def split(package: Path, limit_bytes: int | None) -> tuple[Path, list[str]]:
    """Cut a package that exceeds the limit.

    Returns:
        The package and no chunks; or a folder named as the component, and the names of its packages in order.
    """
    if limit_bytes is None or weight_bytes(package) <= limit_bytes:
        return package, []
    folder = package.with_suffix("")
    folder.mkdir()
    chunks = _cut(package, limit_bytes, folder)
    for place, chunk in enumerate(chunks, 1):
        fix_bytes(chunk)
        chunk.rename(folder / f"{place}{SUFFIX}")
    for rest in [each for each in folder.iterdir() if not each.name.endswith(SUFFIX)]:
        shutil.rmtree(rest)
    return folder, [f"{place}{SUFFIX}" for place in range(1, len(chunks) + 1)]


def weight_bytes(package: Path) -> int:
    """Return size of a package's largest file."""
    return max(item.stat().st_size for item in package.rglob("*") if item.is_file())


def _cut(package: Path, limit_bytes: int, folder: Path) -> list[Path]:
    """Cut the package in halves (removed itself), each cut again where it must be."""
    if weight_bytes(package) <= limit_bytes:
        return [package]
    place = folder / f"halves-{package.stem}"
    place.mkdir()
    before = weight_bytes(package)
    _give_back_memory()
    try:
        with quiet():
            import coremltools

            coremltools.models.utils.bisect_model(str(package), str(place), check_output_correctness=False)
    except Exception as error:
        raise UserError(
            f"coremltools can't cut it in two: {root_cause(error)}",
            where=package.name,
            mend="Choose fewer bits for the weights, or a profile with a larger limit",
        ) from error
    halves = [place / f"{package.stem}_chunk{half}{SUFFIX}" for half in (1, 2)]
    if max(map(weight_bytes, halves)) >= before:
        what = (
            f"one operator alone has weights of {before / 2**20:.1f} MiB, a file may have {limit_bytes / 2**20:.1f} MiB"
        )
        raise UserError(what, where=package.name, mend="Choose fewer bits for the weights")
    shutil.rmtree(package)
    return [chunk for half in halves for chunk in _cut(half, limit_bytes, folder)]


def _give_back_memory() -> None:
    """Give what the conversion left back to the system, where the C library can: its programs hold each other."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
