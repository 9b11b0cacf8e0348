"""Types of an exporter's inputs and outputs. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from dit_compress.export.compare import Arithmetic

Fidelity = Literal["production", "reference", "interpreter", "none"]
"""The executor of the file: the runtime apps use, the maker's reference runtime, an interpreter, nothing."""
FIDELITIES: tuple[Fidelity, ...] = ("none", "interpreter", "reference", "production")
"""From the weakest proof to the strongest."""
Precision = Literal["float32", "float16"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Rewrites:
    """Forms that a traced program is rewritten to on request (``dit_compress/export/rewrite``).

    max_rank: chains of views and permutations through more axes, in steps of so many (4 or more).
    convolutions: learnt linears as 1×1 convolutions.
    split_heads: attention head by head.
    query_slice: attention over at most so many queries at a time.
    flat_convolutions: convolutions over three axes as linears of patches, or over frames side by side.
    """

    max_rank: int | None = None
    convolutions: bool = False
    split_heads: bool = False
    query_slice: int | None = None
    flat_convolutions: bool = False


@dataclass(frozen=True)
class Profile:
    """A device, as far as an exporter must know it. Plain data; see ``dit_compress/export/profiles``.

    precision: of arithmetic on the device.
    weight_bits: bits of one stored weight of a matrix.
    max_rank: largest number of axes of a tensor; permutations through more are rewritten where that can be done.
    convolutions, split_heads, query_slice, flat_convolutions: rewrites that the device gains from (:class:`Rewrites`).
    max_file_bytes: largest weight file, None for no limit.
    memory_bytes: memory that an app may fill with weights, None where it is not known.
    dtypes: what inputs and outputs may be.
    alignment: the last axis of a large tensor should be at least this long (or it is padded to it).
    input_sets: names in ``dit_compress.export.inputs.INPUT_SETS`` that the proof runs.
    measured: latencies somebody measured, each with its source. None is ever estimated.
    sources: where the limits are stated, by field.
    """

    name: str
    precision: Precision = "float16"
    weight_bits: int | None = None
    max_rank: int = 5
    convolutions: bool = False
    split_heads: bool = False
    query_slice: int | None = None
    flat_convolutions: bool = False
    max_file_bytes: int | None = None
    memory_bytes: int | None = None
    dtypes: tuple[str, ...] = ("float32", "float16", "int32")
    alignment: int = 1
    input_sets: tuple[str, ...] = ("typical", "zero", "tiny", "huge", "padded")
    measured: tuple[Mapping[str, Any], ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def rewrites(self) -> Rewrites:
        """The rewrites that the device asks for."""
        return Rewrites(self.max_rank, self.convolutions, self.split_heads, self.query_slice, self.flat_convolutions)

    @property
    def bits(self) -> int:
        """Bits of one stored weight: ``weight_bits``, or those of the arithmetic."""
        return self.weight_bits or {"float32": 32, "float16": 16}[self.precision]

    def as_data(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Diagnostic:
    """Something that will break on the target, or may.

    operator: the operator as the tracer names it. path: the module it stands in. mend: one imperative.
    """

    operator: str
    path: str
    severity: Severity
    message: str
    mend: str = ""

    def as_data(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Artifact:
    """A written file or package.

    path: on disk. kind: the format (``mlpackage``, ``onnx``). precision: of its arithmetic.
    weight_bits: of one stored weight. details: JSON for whoever loads it (minimum OS, compute-unit hint,
    opset).
    """

    path: Path
    component: str
    kind: str
    precision: Precision
    details: Mapping[str, Any] = field(default_factory=dict)
    weight_bits: int = 32


class Runner(Protocol):
    """Executes one artifact just as it is on disk. Nothing says where: a phone over the network will do.

    fidelity: what executes it. arithmetics: what it can compute in; each is proven by itself.
    """

    fidelity: Fidelity
    arithmetics: tuple[Arithmetic, ...]

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        """Execute the file; outputs by name."""
