"""How a module's output holds the queries (or keys) of all heads.

Shapes: B batch, S tokens, N heads, K head width, P parts of a fused projection.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Form:
    """Queries inside a module's output.

    module: its path below the attention. shape: ``BNSK``, ``BSNK``, or ``BSD`` for ``[B,S,P·N·K]`` (heads within
    parts) and ``BSD heads`` for ``[B,S,N·P·K]``. width: K. parts, part: P, and which of them.
    """

    module: str
    shape: Literal["BNSK", "BSNK", "BSD", "BSD heads"]
    width: int
    parts: int = 1
    part: int = 0

    def data(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def read(self, output: Tensor) -> Tensor:
        """Return ``[B,N,S,K]``."""
        if self.shape == "BNSK":
            return output
        if self.shape == "BSNK":
            return output.transpose(1, 2)
        return self._parts(output)[self.part].transpose(1, 2)

    def write(self, output: Tensor, value_BNSK: Tensor) -> Tensor:
        """Return the output with other queries."""
        if self.shape == "BNSK":
            return value_BNSK
        value_BSNK = value_BNSK.transpose(1, 2)
        if self.shape == "BSNK":
            return value_BSNK
        parts = list(self._parts(output))
        parts[self.part] = value_BSNK
        return torch.cat(parts, self._dim).flatten(2) if self.parts > 1 else value_BSNK.flatten(2)

    @property
    def _dim(self) -> int:
        """Dimension of ``[B,S,N,K]`` along which parts follow each other."""
        return 2 if self.shape == "BSD" else 3

    def _parts(self, output: Tensor) -> tuple[Tensor, ...]:
        """Cut ``[B,S,P·N·K]`` into P of ``[B,S,N,K]``."""
        if self.shape == "BSD":
            return output.unflatten(-1, (-1, self.width)).chunk(self.parts, 2)
        return output.unflatten(-1, (-1, self.parts * self.width)).chunk(self.parts, 3)


def form_of(path: str, output: Tensor, wanted_BNSK: Tensor) -> Form | None:
    """Find queries in a module's output that were at most rotated until they are those that attention gets."""
    heads, width = wanted_BNSK.shape[1], wanted_BNSK.shape[3]
    lengths = wanted_BNSK.norm(dim=-1)
    for form in _forms(path, output, heads, width):
        found = form.read(output)
        if found.shape == wanted_BNSK.shape and torch.allclose(found.norm(dim=-1), lengths, rtol=1e-6, atol=0):
            return form
    return None


def _forms(path: str, output: Tensor, heads: int, width: int) -> Iterator[Form]:
    if output.ndim == 4 and output.shape[-1] == width:
        yield Form(path, "BNSK", width)
        yield Form(path, "BSNK", width)
    if output.ndim == 3 and output.shape[-1] % (heads * width) == 0:
        parts = output.shape[-1] // (heads * width)
        for part in range(parts):
            yield Form(path, "BSD", width, parts, part)
            yield Form(path, "BSD heads", width, parts, part)
