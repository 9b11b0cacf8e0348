"""Which weights a plan or a LoRA was made for: a digest that is the same in every file that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_compress.core.files import sha256_data
from dit_compress.structure.files.slices import TORCH
from dit_compress.structure.files.tensor_files import ITEM_BYTES

if TYPE_CHECKING:
    from dit_compress.structure.files.tensor_files import TensorAt, Weights

SAMPLED = 64
"""Values of each tensor that count: a model of 28 GB is known without reading it."""


def digest_of(weights: Weights) -> str:
    """Return the sha256 of names, shapes and the first values of each tensor, in bfloat16.

    A bundle in float32 and the folder in half precision that it came from are the same model; a fine-tune is another.
    """
    tensors = weights.tensors
    return sha256_data({name: [list(tensors[name].shape), _first(tensors[name])] for name in sorted(tensors)})


def _first(tensor: TensorAt) -> str:
    with tensor.file.open("rb") as handle:
        handle.seek(tensor.offset)
        data = handle.read(min(tensor.size_bytes, SAMPLED * ITEM_BYTES[tensor.dtype]))
    if tensor.dtype not in TORCH or not data:
        return data.hex()
    values = torch.frombuffer(bytearray(data), dtype=getattr(torch, TORCH[tensor.dtype]))
    return values.to(torch.bfloat16).view(torch.int16).numpy().tobytes().hex()
