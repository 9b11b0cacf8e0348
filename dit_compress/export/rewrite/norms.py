"""RMSNorm that stays finite in half precision and that converters lower as it is written.

For any row x of width D and any m > 0, with y = x/m:

    x / sqrt(mean(x²) + eps)    =  y / sqrt(mean(y²) + eps/m²)
    x / (sqrt(mean(x²)) + eps)  =  y / (sqrt(mean(y²)) + eps/m)

With m = max(max|x|, sqrt(eps)) every intermediate value lies in [0, 1] and the square root is at least
1/sqrt(D): nothing overflows at |x| = 60000, a zero row gives zeros, and a row far below sqrt(eps) keeps
its share of the epsilon. Shapes: D width, ``...`` anything before it.

A norm is known by what it computes, not by its class or the names of its parameters: a copy of the module with
drawn parameters is called with rows large and small, of both signs.
"""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor  # what torch.export traces with

from dit_compress.structure.copies import shared_copy

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOOR = 1e-4
"""Smallest divisor: half precision has full accuracy down to 6e-5."""
LEAST = 1e-6
"""Smallest denominator of a row that is all but zero, where half precision has lost the epsilon."""
BOUND = 1e-5
"""Largest difference of a replacement from its original, relative to the output's peak."""
FITS = 1e-4
"""Largest residual of the gain, relative to its peak."""
LARGE, SMALL = 1e3, 1e-5
"""Scales at which the epsilon is nothing, and at which it is most of the denominator."""
NORMALIZE = 1e-12
"""The epsilon of ``torch.nn.functional.normalize``."""
WIDTHS = (24, 40)
"""Widths to call a norm with that has no parameters and states none."""


class ScaledRMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) · weight + bias`` over the last axis, divided by max|x| first.

    outside: the epsilon is added to the root, not under it.
    """

    root_eps: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, eps: float, weight: Tensor | None = None, bias: Tensor | None = None, *, outside: bool = False
    ) -> None:
        super().__init__()
        root = eps if outside else math.sqrt(eps)
        self.floor, self.outside = max(root, FLOOR), outside
        # A tensor: "number / tensor" is traced as a reciprocal, which Core ML computes as 1/(m + 1e-4).
        # Of rank 0: it goes with tensors of any device and takes their dtype.
        self.register_buffer("root_eps", torch.tensor(root, device="cpu"))
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., D]``; the shape stays."""
        largest = x.abs().amax(-1, keepdim=True).clamp(min=self.floor)
        y, root = x / largest, self.root_eps / largest
        square = (y * y).mean(-1, keepdim=True)
        y = y / (square.sqrt() + root).clamp(min=LEAST) if self.outside else y * torch.rsqrt(square + root * root)
        if self.weight is not None:
            y = y * self.weight
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Form:
    """What a norm computes: its epsilon, and gain and offset as sums over its parameters.

    gain, offset: a factor for each parameter, and a constant.
    """

    eps: float
    outside: bool
    gain: tuple[float, ...]
    offset: tuple[float, ...]

    def build(self, vectors: Sequence[Tensor]) -> ScaledRMSNorm:
        """Make the scaled form around the parameters of a norm of this form; a plain gain is shared."""
        none = self.gain == (*(0.0 for _ in vectors), 1.0)
        weight, bias = None if none else _sum(self.gain, vectors), _sum(self.offset, vectors)
        return ScaledRMSNorm(self.eps, weight, bias, outside=self.outside)


def rewrite_modules(module: nn.Module) -> nn.Module:
    """Copy the module in eval mode, its RMSNorms replaced. The copy shares the weights.

    What is not surely an RMSNorm stays as it is.
    """
    changed = shared_copy(module).eval()
    scaled: dict[int, ScaledRMSNorm] = {}
    for path, child in list(changed.named_modules(remove_duplicate=False)):
        if id(child) not in scaled and (form := form_of(child)) is not None:
            scaled[id(child)] = form.build([parameter.detach() for parameter in child.parameters()])
        if id(child) in scaled and not path:
            return scaled[id(child)]
        if id(child) in scaled:
            changed.set_submodule(path, scaled[id(child)])
    return changed


def odd_norms(module: nn.Module) -> list[tuple[str, str]]:
    """List path and class of every module that is called RMSNorm and stays as it is written."""
    return [
        (path, type(child).__name__)
        for path, child in module.named_modules()
        if "rmsnorm" in type(child).__name__.lower().replace("_", "") and form_of(child) is None
    ]


# ------------------------------------------------------------------ what a module computes


def form_of(module: nn.Module) -> Form | None:
    """Find the form of a module that computes RMSNorm over the last axis; None for any other, and where in doubt."""
    vectors = list(module.parameters())
    try:
        if not _may_be_norm(module, vectors):
            return None
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            forms = {_observed(module, vectors, width) for width in _widths(module, vectors)}
    except Exception:  # noqa: BLE001 - somebody's module may fail in any way on rows that are not its own
        return None
    return forms.pop() if len(forms) == 1 else None


def _may_be_norm(module: nn.Module, vectors: Sequence[nn.Parameter]) -> bool:
    """Tell whether it is worth a call: no parts, one input, at most a gain and an offset of one width."""
    if isinstance(module, ScaledRMSNorm) or type(module) is nn.Module or next(module.children(), None) is not None:
        return False
    if any(buffer.is_meta or isinstance(buffer, FakeTensor) for buffer in module.buffers()):
        return False
    shapes = {tuple(vector.shape) for vector in vectors}
    plain = len(vectors) <= 2 and len(shapes) <= 1 and all(len(shape) == 1 for shape in shapes)
    return plain and len(inspect.signature(module.forward).parameters) == 1


def _widths(module: nn.Module, vectors: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the widths to call a norm with: its own, where it has parameters or states one."""
    if vectors:
        return (vectors[0].shape[0],)
    stated = getattr(module, "normalized_shape", None)
    return WIDTHS if stated is None else (int(stated if isinstance(stated, int) else tuple(stated)[-1]),)


def _observed(module: nn.Module, vectors: Sequence[nn.Parameter], width: int) -> Form | None:
    """Call a copy with drawn parameters, in single precision; the form found must hold in the norm's own dtype."""
    drawn = [nn.Parameter(torch.randn(width)) for _ in vectors]
    memo: dict[int, object] = {id(old): new for old, new in zip(vectors, drawn, strict=True)}
    twin = copy.deepcopy(module, memo).eval().to("cpu")
    row = torch.rand(width) + 0.5
    row = torch.where(torch.rand(width) < 0.3, -row, row)  # with a mean, so that LayerNorm differs
    rows = torch.stack([row * LARGE, row * -LARGE, row * SMALL, row * -SMALL])
    high, low, small, minus = twin(rows[None])[0].double()
    row, root = row.double(), row.double().square().mean().sqrt()
    held = (high - low) / 2 * root / row
    gain = _factors(held, drawn)
    offset = _factors((high + low) / 2, drawn)
    if gain is None or offset is None or (not drawn and (gain, offset) != ((1.0,), (0.0,))):
        return None
    below = (held * row * SMALL / ((small - minus) / 2)).median()  # root of mean and epsilon
    eps, outside = _epsilon(module, float(below), float(root * SMALL))
    form = Form(eps, outside, gain, offset)
    dtype = vectors[0].dtype if vectors else torch.float32
    twin, own = twin.to(dtype), [vector.to(dtype) for vector in drawn]
    return form if _agree(twin, form.build(own), width, dtype) else None


def _factors(values: Tensor, vectors: Sequence[Tensor]) -> tuple[float, ...] | None:
    """Fit values as a sum of vectors and a constant; None where they are no such sum. Whole factors are exact."""
    columns = torch.stack([*(vector.double() for vector in vectors), torch.ones_like(values)], 1)
    if len(values) <= columns.shape[1] or not values.isfinite().all():
        return None
    found = torch.linalg.lstsq(columns, values[:, None]).solution[:, 0]
    if (columns @ found - values).abs().max() > FITS * max(1.0, float(values.abs().max())):
        return None
    near = (float(item) for item in found)
    return tuple(float(round(item)) if abs(item - round(item)) < FITS else item for item in near)


def _sum(factors: tuple[float, ...], vectors: Sequence[Tensor]) -> Tensor | None:
    """Return the sum; the vector itself where that is all, None for nothing."""
    *shares, constant = factors
    used = [(share, vector) for share, vector in zip(shares, vectors, strict=True) if share]
    if not any(factors):
        return None
    if len(used) == 1 and used[0][0] == 1.0 and not constant:
        return used[0][1]
    return sum((share * vector for share, vector in used), start=torch.full_like(vectors[0], constant))


def _epsilon(module: nn.Module, below: float, root: float) -> tuple[float, bool]:
    """Find the epsilon, and whether it stands outside the root: the module's own number, or what was observed."""
    stated = [value for value in vars(module).values() if isinstance(value, float) and value > 0]
    stated += [torch.finfo(torch.float32).eps, NORMALIZE]
    observed = ((below**2 - root**2, False), (below - root, True))
    choices = [(value, outside) for value in stated for outside in (False, True)]
    choices += [(float(f"{value:.3g}"), outside) for value, outside in observed if value > 0]

    def error(choice: tuple[float, bool]) -> float:
        eps, outside = choice
        return round(abs((root + eps if outside else math.sqrt(root**2 + eps)) / below - 1), 6)

    return min(choices, key=error)


def _agree(module: nn.Module, scaled: nn.Module, width: int, dtype: torch.dtype) -> bool:
    """Compare on four rows: usual, large, small and zero."""
    row = torch.linspace(-1.5, 2.0, width)
    rows = torch.stack([row, row * 300, row * 1e-3, row * 0])[None].to(dtype)
    wanted, found = module(rows), scaled(rows)
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    bound = max(BOUND, 4 * torch.finfo(dtype).eps)
    difference = (wanted.double() - found.double()).abs().amax(-1)
    return bool((difference <= bound * wanted.double().abs().amax(-1) + 1e-12).all())
