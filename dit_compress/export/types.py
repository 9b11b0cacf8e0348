"""What goes into an exporter and what comes out.

Shapes: whatever the component's example inputs have; they are fixed in the exported files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

    from dit_compress.verify.gates import Arithmetic

Fidelity = Literal["production", "reference", "interpreter", "none"]
"""What executed the file: the runtime apps use, the maker's reference runtime, an interpreter of the graph, nothing."""
Precision = Literal["float32", "float16"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True, eq=False)
class Component:
    """One network of the package, with typical inputs.

    name: ``dit_step`` or ``vae_decoder``; the stem of its files.
    module: takes the inputs in their order, returns a tensor (or a tuple of them).
    inputs: typical example inputs by name; their shapes are the shapes of the file.
    outputs: names of what the module returns.
    varied: inputs that the proof sets to zero or scales; the others (sigma, masks) keep typical values.
    precise: inputs whose path up to the first matrix product stays in float32. The sinusoids of
        ``1000·sigma`` need it: half precision moves the angle by up to a quarter of a radian.
    mask: the input that is 1 at real text and 0 at padding, for the padded input set.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    varied: tuple[str, ...]
    precise: tuple[str, ...] = ()
    mask: str | None = None


@dataclass(frozen=True)
class Profile:
    """A device, as far as an exporter must know it. Plain data.

    max_rank: largest number of axes of a tensor.
    max_file_bytes: largest weight file, None for no limit.
    input_sets: names in ``dit_compress.export.inputs.INPUT_SETS`` that the proof runs.
    """

    name: str
    precision: Precision = "float16"
    max_rank: int = 5
    max_file_bytes: int | None = None
    input_sets: tuple[str, ...] = ("typical", "zero", "tiny")

    def as_data(self) -> dict[str, Any]:
        """JSON data."""
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


@dataclass(frozen=True)
class Artifact:
    """A written file or package.

    path: on disk. kind: the format (``mlpackage``, ``onnx``). details: JSON for whoever loads it
    (minimum OS, compute-unit hint, opset).
    """

    path: Path
    component: str
    kind: str
    precision: Precision
    details: Mapping[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    """Executes one artifact just as it is on disk.

    fidelity: what executes it. arithmetics: what it can compute in; each is proven by itself.
    """

    fidelity: Fidelity
    arithmetics: tuple[Arithmetic, ...]

    def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        """Outputs by name."""
