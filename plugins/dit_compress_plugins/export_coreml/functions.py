"""Several sizes in one package: one function of fixed shapes for each, every weight stored once.

``main`` is the component's own size. ``coremltools.utils.save_multifunction`` finds equal constants of the
functions and writes them once (iOS 18).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.progress import quiet
from dit_compress.export.sizes import MAIN, input_shapes
from dit_compress_plugins.export_coreml.package import fix_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dit_compress.export.component import Component

    Write = Callable[[Component, Path], tuple[Path, list[str]]]


def describe(component: Component) -> list[dict[str, Any]]:
    """Describe the functions as the manifest holds them: name, shape of every input."""
    return [{"name": size or MAIN, "inputs": input_shapes(part.inputs)} for size, part in component.by_size.items()]


def lower_sizes(component: Component, folder: Path, write: Write) -> tuple[Path, list[str]]:
    """Write each size, then join them: the package and no chunks, or a folder and its chunks.

    Args:
        component: of one size or several.
        folder: where the package goes.
        write: makes the files of a component of one size in a folder.

    Raises:
        UserError: one size needs more chunks than another, or coremltools can't join them.
    """
    parts = component.by_size
    if len(parts) == 1:
        return write(component, folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{component.name}-sizes-") as place:
        made = {}
        for number, (size, part) in enumerate(parts.items()):
            (each := Path(place) / str(number)).mkdir()
            made[size or MAIN] = write(part, each)
        names = [chunks for _, chunks in made.values()]
        if any(chunks != names[0] for chunks in names):
            counts = ", ".join(f"{name}: {len(chunks) or 1}" for name, (_, chunks) in made.items())
            raise UserError(
                f"its sizes need different numbers of chunks ({counts})",
                where=f"component {component.name}",
                mend="Export the sizes one by one, or take a profile with another 'max_file_bytes'",
            )
        written = folder / made[MAIN][0].name
        if not names[0]:
            join({name: path for name, (path, _) in made.items()}, written)
            return written, []
        written.mkdir()
        for chunk in names[0]:
            join({name: path / chunk for name, (path, _) in made.items()}, written / chunk)
        return written, names[0]


def join(packages: Mapping[str, Path], destination: Path) -> None:
    """Join the ``main`` of each package as a function of one, named by its key."""
    try:
        with quiet():
            from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

            described = MultiFunctionDescriptor()
            for name, package in packages.items():
                described.add_function(str(package), MAIN, name)
            described.default_function_name = MAIN
            save_multifunction(described, str(destination))
    except Exception as error:
        shutil.rmtree(destination, ignore_errors=True)
        what = f"coremltools can't join its sizes: {root_cause(error)}"
        raise UserError(what, where=destination.name, mend="Leave 'sizes' out") from error
    fix_bytes(destination)
