"""The timestep of a module: which arguments of its call carry it, and what they are at a sigma."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_compress.structure.observe.weightless import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

APART = (0.3, 0.7)
"""Two sigmas at which a timestep differs, whatever a schedule rounds."""


def timesteps(
    call: Callable[[Tensor, Tensor], tuple[tuple[Any, ...], dict[str, Any]]], latent: Tensor, sigmas: Sequence[float]
) -> dict[int | str, tuple[float, ...]]:
    """Return the arguments that change with sigma and not with the latent, and their value at each sigma.

    call: the module's arguments for a latent and a sigma ``[1]``; they are compared, the module is not run.
    """

    def given(sigma: float, like: Tensor = latent) -> dict[int | str, Tensor]:
        args, kwargs = call(like, torch.full((1,), sigma, dtype=torch.float32))
        found = Seen(args, kwargs, None).inputs()
        return {key: value.float() for key, value in found.items() if isinstance(value, Tensor)}

    early, late, other = given(APART[0]), given(APART[1]), given(APART[0], latent + 1)
    by_sigma = {key for key, value in early.items() if not torch.equal(value, late[key])}
    by_latent = {key for key, value in early.items() if not torch.equal(value, other[key])}
    calls = [given(sigma) for sigma in sigmas]
    keys = sorted(by_sigma - by_latent, key=str)
    return {key: tuple(float(found[key].flatten()[0]) for found in calls) for key in keys}
