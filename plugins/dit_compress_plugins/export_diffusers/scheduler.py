"""A scheduler whose sigmas, asked for as the pipeline asks, are those of a bundle's flow.

Pipelines ask in one of two ways. Some give sigmas, ``u = 1 - i/n`` (LTX, Flux, HunyuanVideo 1.5), which the scheduler
shifts: Eq. of ``Flow.sigmas``, for every count n. Others give n alone (Wan, SD 3, Sana): ``FlowMatchEuler`` then takes
equal steps from 1 to its own smallest sigma, a thousandth shifted, and shifts a second time. With another shift and
``shift_terminal`` these are ``Flow.sigmas(n)``, exactly, for one n: the count that the bundle is made for.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import diffusers

from dit_compress.core.errors import UserError
from dit_compress_plugins.export_diffusers.flow_of_noise import FlowOfNoiseScheduler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.model.flow import Flow

PRESERVING = ("noise", "x0", "v")
"""Predictions of variance-preserving models."""
CLOSE = 1e-6
"""Largest difference of a sigma."""
_GIVEN = re.compile(
    r"sigmas = np\.linspace\(1\.0, (1 / num_inference_steps, num_inference_steps|0\.0, num_inference_steps \+ 1)\)"
)
_OWN = re.compile(r"sigmas = linear_quadratic_schedule")
_ROUNDS = 200


def gives_sigmas(pipeline: Any) -> bool:
    """Tell whether a class of pipelines gives its scheduler the sigmas ``1 - i/n``, not n alone.

    Raises UserError where it gives others, which no scheduler turns into a bundle's.
    """
    source = inspect.getsource(pipeline.__call__)
    if _OWN.search(source):
        raise UserError(
            f"{pipeline.__name__} samples at sigmas of its own, whatever its scheduler says",
            mend="Leave 'pipeline' out, and sample at the sigmas of flow.json",
        )
    return _GIVEN.search(source) is not None


def scheduler_of(flow: Flow, pipeline: Any, base: Mapping[str, Any], prediction: str = "velocity") -> Any:
    """Make the scheduler of a pipeline's class; UserError where its sigmas would not be the flow's.

    base: the config of the scheduler that the pipeline had. prediction: what the model's output is; for noise, x0 and v
    the scheduler is one of ours (:mod:`.flow_of_noise`), as none of diffusers takes Euler steps of a flow with them.
    """
    given, count = gives_sigmas(pipeline), flow.num_steps
    made = (
        _of_noise(flow, base, prediction)
        if prediction in PRESERVING and not given
        else _of_flow(flow, base.get("num_train_timesteps", 1000), given=given)
    )
    sigmas = asked(made, count, gives=given)
    far = max(abs(one - other) for one, other in zip(sigmas, flow.sigmas(), strict=True))
    if far > CLOSE:
        raise UserError(
            f"no scheduler of diffusers {diffusers.__version__} has the {count} sigmas of this bundle in "
            f"{pipeline.__name__}: {far:.1e} off",
            mend="Leave 'pipeline' out, and sample at the sigmas of flow.json",
        )
    return made


def _of_flow(flow: Flow, trained: int, *, given: bool) -> Any:
    shift, terminal = (flow.shift, None) if given else _twice(flow)
    return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=trained, shift=shift, shift_terminal=terminal)


def _of_noise(flow: Flow, base: Mapping[str, Any], prediction: str) -> Any:
    known: Any = getattr(diffusers, base["_class_name"]).from_config(dict(base))
    return FlowOfNoiseScheduler(tuple(known.alphas_cumprod.tolist()), prediction, flow.shift)


def asked(scheduler: Any, count: int, *, gives: bool) -> Sequence[float]:
    """Return the sigmas of a scheduler that is asked as a pipeline asks it."""
    if gives:
        scheduler.set_timesteps(sigmas=[1 - place / count for place in range(count)])
    else:
        scheduler.set_timesteps(count)
    return [float(sigma) for sigma in scheduler.sigmas]


def _twice(flow: Flow) -> tuple[float, float | None]:
    """Return the shift s' and the last sigma with which equal steps, shifted and stretched, are ``flow.sigmas()``.

    Equal steps from 1 to e are ``1 - a·i`` with ``a = (1 - e)/(n - 1)``. Shifted by s' and stretched by k they are
    ``1 - k·a·i/(s' - (s'-1)·a·i)``; ours are ``1 - i/(n·s - (s-1)·i)``. Equal where ``s'·(s-1) = a·n·s·(s'-1)``, and
    k where the last one is; e is a thousandth, shifted by s'. Solved by going round.
    """
    count, wanted = flow.num_steps, flow.shift
    if count == 1:
        return wanted, None
    shift = wanted
    for _ in range(_ROUNDS):
        smallest = shift * 1e-3 / (1 + (shift - 1) * 1e-3)
        reach = (1 - smallest) / (count - 1) * count * wanted
        shift = reach / (reach - (wanted - 1))
    return shift, flow.sigmas()[-2]
