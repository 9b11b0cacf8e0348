"""Networks on which exports fail silently: each looks harmless, converts somewhere, and computes something else.

A case is right in one of three ways: ``check`` names what is wrong before anything is written; ``lower`` or
the proof refuses the file; or the export passes and the file agrees with the source on *fresh* inputs too.
An export that passes and disagrees there is missed: :func:`examine` returns which it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.export import Component, export_components
from dit_compress.export.compare import Comparison, compare, judge
from dit_compress.export.inputs import reference_outputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dit_compress.export import Profile

Stage = Literal["right", "check", "lower", "verify", "missed", "crashed"]
"""The ends of a case: the file is right; caught by check, lower or the proof; a wrong file passed; an exception."""


class Computes(nn.Module):
    """A function as a module, with weights where it needs some."""

    def __init__(self, compute: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        self.parts = nn.ModuleDict(parts)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the function with the modules and the inputs."""
        return self.compute(self.parts, *inputs)


@dataclass(frozen=True)
class Case:
    """One network. fault: what goes wrong without a careful exporter. make: gives one component, for all exporters."""

    name: str
    fault: str
    make: Callable[[], Component]


def _rows() -> Tensor:
    return torch.randn(2, 16, 32)


def _nothing() -> dict[str, Tensor]:
    return {}


def _case(
    name: str,
    fault: str,
    compute: Callable[..., Tensor],
    x: Callable[[], Tensor] = _rows,
    more: Callable[[], dict[str, Tensor]] = _nothing,
    precise: tuple[str, ...] = (),
    **parts: Callable[[], nn.Module],
) -> Case:
    @cache
    def make() -> Component:
        torch.manual_seed(0)
        module = Computes(compute, **{key: part() for key, part in parts.items()}).eval()
        inputs = {"x": x(), **more()}
        varied = ("x",) if inputs["x"].is_floating_point() and not precise else ()
        return Component(name, module, inputs, ("y",), varied, precise)

    return Case(name, fault, make)


def _attend(q: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attend with two heads over normalised tokens, as DiTs do: scores stay small, whatever the input."""
    heads = F.layer_norm(q, q.shape[-1:]).unflatten(-1, (2, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)


def _masked(number: float) -> Callable[..., Tensor]:
    def compute(_parts: Any, x: Tensor, keep: Tensor) -> Tensor:
        bias = torch.zeros_like(keep).masked_fill(keep < 0.5, number)[:, None, None]
        return _attend(x, bias)

    return compute


def _keep() -> dict[str, Tensor]:
    keep = torch.ones(2, 16)
    keep[1, 9:] = 0
    return {"keep": keep}


def _like_a_boolean(_parts: Any, x: Tensor, keep: Tensor) -> Tensor:
    """Return the mask of ``nn.MultiheadAttention``."""
    padding = keep < 0.5
    bias = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)
    return _attend(x, bias[:, None, None])


def _patches(_parts: Any, x: Tensor) -> Tensor:
    """Patchify through rank 8, as diffusers' LTX decoder does."""
    return x.reshape(1, 4, 2, 2, 2, 2, 2, 2).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(1, 4, 2, 4, 8) * 2.0


def _write(_parts: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :4] = x[:, 4:8] * 2
    x[:, 8:].mul_(1.5)  # into the input itself
    return y + x


def _branch(_parts: Any, x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x - 1


def _shared(parts: Any, x: Tensor) -> Tensor:
    return F.linear(F.gelu(parts["linear"](x)), parts["linear"].weight.T.contiguous().T)


def _reciprocal(parts: Any, x: Tensor) -> Tensor:
    return parts["linear"](1.0 / (x * x + 1e-3))


def _rms(parts: Any, x: Tensor) -> Tensor:
    rows = torch.linspace(0.0, 1.0, 16)[None, :, None]
    return parts["norm"](x * rows)  # the first row is zero


def _sinusoid(parts: Any, sigma: Tensor) -> Tensor:
    angle = sigma[:, None] * 1000.0 * torch.exp(torch.arange(16) * (-9.2 / 16))
    return parts["linear"](torch.cat([angle.cos(), angle.sin()], -1))


CORPUS: tuple[Case, ...] = (
    _case("rank_8", "files are written that can't be loaded", _patches, lambda: torch.randn(1, 4, 4, 4, 4)),
    _case(
        "conv3d",
        "no kernel on several phones",
        lambda parts, x: parts["conv"](x),
        lambda: torch.randn(1, 4, 3, 6, 6),
        conv=lambda: nn.Conv3d(4, 4, 3, padding=1),
    ),
    _case("mask_minus_1e9", "half precision makes it -inf", _masked(-1e9), more=_keep),
    _case("mask_minus_inf", "a row of -inf is NaN", _masked(-torch.inf), more=_keep),
    _case("zero_rows", "RMSNorm of a zero row is NaN in Core ML", _rms, norm=lambda: nn.RMSNorm(32, eps=1e-6)),
    _case("random_numbers", "noise is drawn anew, or never", lambda _parts, x: x + 0.1 * torch.randn_like(x)),
    _case("explicit_scale", "the fused attention drops it", lambda _parts, x: _attend(x, scale=0.7)),
    _case(
        "half_overflow",
        "x² ends at 65504",
        lambda parts, x: parts["linear"]((x * 30).square() * x.square()),
        lambda: torch.randn(2, 16, 32) * 4,
        linear=lambda: nn.Linear(32, 32),
    ),
    _case(
        "plain_rms",
        "x² overflows half precision above 256",
        lambda _parts, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
    ),
    _case("control_flow", "one branch is baked in", _branch),
    _case("dynamic_shape", "the shape of the example is baked in", lambda _parts, x: x[x > 0].sum()[None] + x.sum()),
    _case("shared_weights", "a weight is stored twice, or changed once", _shared, linear=lambda: nn.Linear(32, 32)),
    _case("unused_input", "the file lacks an input that the app gives", lambda _parts, x, _keep: x * 2, more=_keep),
    _case(
        "int64_input",
        "phones have no int64",
        lambda parts, x: parts["table"](x),
        lambda: torch.randint(0, 9, (1, 6)),
        table=lambda: nn.Embedding(9, 32),
    ),
    _case("in_place_write", "a view is written, or the input itself", _write),
    _case(
        "complex_rope",
        "no complex numbers outside torch",
        lambda _parts, x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * 1j).flatten(-2),
    ),
    _case("reciprocal", "Core ML's inverse adds an epsilon of 1e-4", _reciprocal, linear=lambda: nn.Linear(32, 32)),
    _case(
        "sinusoid_of_sigma",
        "in half precision the angle is off by a quarter",
        _sinusoid,
        lambda: torch.tensor([0.9137]),
        precise=("x",),
        linear=lambda: nn.Linear(32, 32),
    ),
    _case(
        "boolean_mask",
        "not every target takes one",
        lambda _parts, x, keep: _attend(x, (keep > 0.5)[:, None, None]),
        more=_keep,
    ),
    _case("zeros_like_boolean", "Core ML forgets the dtype: the mask says the opposite", _like_a_boolean, more=_keep),
    _case("repeat_by_zero", "an axis of length 0", lambda _parts, x: torch.cat([x, x[:, :0].repeat(1, 0, 1)], 1) * 2),
)


@dataclass(frozen=True)
class Outcome:
    """The end of a case. psnr_db: on fresh inputs, where a file passed."""

    case: str
    stage: Stage
    message: str = ""
    psnr_db: float | None = None


def examine(case: Case, exporter: Any, folder: Path, profile: Profile | None = None) -> Outcome:
    """Export a case, and where that passes, compare the file with its source on inputs the proof never saw."""
    component, reached = case.make(), list[Stage](["check"])
    profile = profile or exporter.profile
    lowered: list[Any] = []

    class Watched:
        """The exporter; how far it came and its artifacts are remembered."""

        check, runner = exporter.check, exporter.runner

        @staticmethod
        def lower(*arguments: Any) -> list[Any]:
            reached.append("lower")
            lowered.extend(exporter.lower(*arguments))
            reached.append("verify")
            return lowered

    try:
        report = export_components(Watched, [component], profile, folder)  # type: ignore[arg-type]
    except UserError as error:
        return Outcome(case.name, reached[-1], str(error))
    except Exception as error:  # noqa: BLE001 - a crash is a finding, not an end
        return Outcome(case.name, "crashed", f"{reached[-1]}: {type(error).__name__}: {error}")
    if not report["passed"]:
        return Outcome(case.name, "verify", "below its gate, or not executed")
    return _on_fresh_inputs(case, component, exporter, lowered, folder)


def _on_fresh_inputs(case: Case, component: Component, exporter: Any, lowered: list[Any], folder: Path) -> Outcome:
    inputs = fresh(component)
    wanted = {name: value.numpy() for name, value in reference_outputs(component, inputs).items()}
    worst, passed = 300.0, True
    for artifact in lowered:
        moved = replace(artifact, path=folder / artifact.path.name)
        runner = exporter.runner(moved)
        for arithmetic in runner.arithmetics:
            found = runner({name: value.clone().numpy() for name, value in inputs.items()}, arithmetic)
            compared = Comparison.worst(compare(value, found[name]) for name, value in wanted.items())
            worst = min(worst, compared.psnr_db)
            passed &= judge(compared, arithmetic, artifact.weight_bits) == "passed"
    return Outcome(case.name, "right" if passed else "missed", "", round(worst, 1))


def fresh(component: Component) -> dict[str, Tensor]:
    """Make inputs of the same shapes that the proof never saw: values drawn anew, masks and numbers inverted."""
    torch.manual_seed(99)
    found = {}
    for name, value in component.inputs.items():
        if name in component.varied:
            found[name] = torch.randn_like(value)
        else:
            found[name] = value.flip(0, -1) if value.ndim > 1 else value * 0.61
    return found
