"""Whether weights hold NaN or infinity. Those in files are read a few megabytes at a time, and not converted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dit_compress.core.errors import UserError
from dit_compress.core.progress import say
from dit_compress.structure.files.on_disk import OnDisk
from dit_compress.structure.files.slices import Buffers, Piece, cut
from dit_compress.structure.files.tensor_files import open_weights

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor, nn

    from dit_compress.structure.files.tensor_files import TensorAt

EXPONENTS = {
    "F8_E5M2": ("u1", 0x7C), "F16": ("u2", 0x7C00), "BF16": ("u2", 0x7F80), "F32": ("u4", 0x7F800000),
    "C64": ("u4", 0x7F800000), "F64": ("u8", 0x7FF0000000000000), "F8_E4M3": ("u1", 0x7F),
}  # fmt: skip
"""The bits that are all set in NaN and infinity, and in nothing else; of ``F8_E4M3``, without infinity, in NaN."""


def need_finite(module: nn.Module) -> None:
    """Raise a UserError that names a weight of a module that is not finite, if there is one."""
    named = [*module.named_parameters(), *module.named_buffers()]
    _refuse((name for name, value in named if not _is_finite(value)), type(module).__name__)


def need_finite_files(folder: Path) -> None:
    """Raise a UserError that names a weight in the safetensors of a folder that is not finite, if there is one.

    Files that are not whole are left to those who need them.
    """
    try:
        found = open_weights(folder).tensors
    except UserError as error:
        say(f"its weights are not looked through: {error}")
        return
    say(f"looking for NaN and infinity in {folder}")
    _refuse((name for name, tensor in found.items() if not finite_at(tensor)), str(folder))


def _refuse(wrong: Iterable[str], where: str) -> None:
    for name in wrong:
        raise UserError(
            f"the weight {name!r} holds NaN or infinity", where=where, mend="Give a model with finite weights"
        )


def _is_finite(value: Tensor) -> bool:
    return finite_at(value.piece.source) if isinstance(value, OnDisk) else bool(torch.isfinite(value).all())


def finite_at(tensor: TensorAt) -> bool:
    """Tell whether every value of a tensor in a file is finite; numbers without a point are."""
    if tensor.dtype not in EXPONENTS:
        return True
    (kind, bits), buffers = EXPONENTS[tensor.dtype], Buffers()
    for chunk in cut(Piece(tensor, tensor.name, {}), buffers):
        values = np.frombuffer(chunk, np.dtype(kind).newbyteorder("<"))
        if int((values & np.array(bits, values.dtype)).max()) == bits:
            return False
    return True
