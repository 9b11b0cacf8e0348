"""Tensors that edits make anew, as a file beside the one that the rest of a pruned model is cut out of."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dit_compress.structure.edits import MAKING
from dit_compress.structure.files.slices import TORCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from dit_compress.structure.edits import Edit
    from dit_compress.structure.files.tensor_files import Weights


@contextmanager
def tensors_on_disk(made: Mapping[str, Tensor], edits: Sequence[Edit], weights: Weights) -> Iterator[Path | None]:
    """Write tensors into a file that goes afterwards, each in the dtype of the weight before; None where none is."""
    if not made:
        yield None
        return
    from safetensors.torch import save_file

    modules = [path for edit in edits if isinstance(edit, MAKING) for path in edit.modules]
    dtypes = {name: getattr(torch, TORCH[weights.tensors[f"{_module(name, modules)}.weight"].dtype]) for name in made}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "made.safetensors"
        save_file({name: value.detach().to("cpu", dtypes[name]).contiguous() for name, value in made.items()}, file)
        yield file


def _module(name: str, modules: Sequence[str]) -> str:
    """Return the module in whose place a tensor stands."""
    return next(path for path in modules if name.startswith(f"{path}."))
