"""Load pruned folders in a process that has no dit-compress: ``python fresh.py TESTS FOLDER NAME ...``.

The last line is one JSON object: by name the largest difference of the outputs, relative to the largest, or what was
raised.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch


class Absent:
    """The package can't be imported."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> None:
        """Refuse it."""
        if name.partition(".")[0] in ("dit_compress", "dit_compress_plugins"):
            raise ImportError(f"{name} is not here")


def loaded(entry: Any, folder: Path) -> Any:
    """Return the pruned module, by the loader in its folder."""
    spec = importlib.util.spec_from_file_location("load_pruned", folder / "load_pruned.py")
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    sys.modules["load_pruned"] = loader
    spec.loader.exec_module(loader)
    return loader.load(folder, module=entry.module())


def main() -> None:
    """Every folder by itself."""
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    tests, place, *names = sys.argv[1:]
    sys.path.insert(0, tests)
    from catalogue import ENTRIES

    said: dict[str, Any] = {}
    for name in names:
        try:
            wanted = torch.load(Path(place) / f"{name}.pt", weights_only=True)
            with torch.no_grad():
                output = loaded(ENTRIES[name], Path(place) / name)(*ENTRIES[name].arguments())
            found = output if isinstance(output, torch.Tensor) else next(iter(output.values()))
            said[name] = float((found - wanted).abs().max() / wanted.abs().max())
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the result
            said[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(said))


if __name__ == "__main__":
    main()
