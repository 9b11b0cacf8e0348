"""Norms over the width of a stream: which modules are some, and what stands for one that counts the kept alone.

A module is one where each entry of its input moves every entry of its output, and where a norm of fewer entries gives
what :func:`dit_compress.structure.masks.counted` makes of the whole one: that is tried, on numbers of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dit_compress.structure.edits import Take
from dit_compress.structure.facts import Axis, MaskPoint
from dit_compress.structure.masks import NORMS, masked
from dit_compress.structure.observe.probe import differs
from dit_compress.structure.observe.trace import FAILURES, Change, DivergedError
from dit_compress.structure.observe.weightless import Replica
from dit_compress.structure.signature import signature

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from dit_compress.structure.observe.weightless import Seen

EXACT = 1e-10


@dataclass(frozen=True)
class Norms:
    """Norms by path. sides: how each is masked. others: modules that mix their entries otherwise."""

    sides: Mapping[str, str]
    others: frozenset[str]


def norms_of(replica: Replica, seen: Mapping[str, Seen]) -> Norms:
    """Find every module without children that mixes the features of its one input, without a matmul."""
    sides: dict[str, str] = {}
    others: set[str] = set()
    known: dict[Any, str | None] = {}
    for path, call in seen.items():
        module = replica.module.get_submodule(path)
        x = call.args[0] if call.args else None
        if next(module.children(), None) is not None or not isinstance(x, Tensor):
            continue
        fits = isinstance(call.output, Tensor) and x.shape == call.output.shape
        if not fits or x.ndim < 2 or not x.is_floating_point():
            continue
        key = signature(module, call.inputs())
        if key not in known:
            known[key] = _side(Replica(module, call.call, claims=replica.claims), x.shape[-1])
        side = known[key]
        if side == "":
            others.add(path)
        elif side is not None:
            sides[path] = side
    return Norms(sides, frozenset(others))


def _side(alone: Replica, width: int) -> str | None:
    """Return how a norm is masked; empty where no mask is as good as fewer entries, None where it is no norm."""
    try:
        if width < 2 or alone.run().touches or not _dense(alone):
            return None
        return next((side for side in NORMS if _exact(alone, side, width)), "")
    except (DivergedError, *FAILURES):
        return None


def _dense(alone: Replica) -> bool:
    """Tell whether the first entry of the input moves every entry of the output."""

    def moved(args: Any, kwargs: Any) -> Any:
        x = args[0].clone()
        x[..., 0] += 1 + x.abs().max()
        return (x, *args[1:]), kwargs

    before, after = alone.run().output, alone.run(change=Change(argument=("", moved))).output
    return bool(differs(before, after).reshape(-1, before.shape[-1]).any(0).all())


def _exact(alone: Replica, side: str, width: int) -> bool:
    """Tell whether the norm of fewer entries gives what the masked one gives for them."""
    kept = np.flatnonzero(np.arange(width) % 3 != 1)
    names = [name for name, value in alone.module.named_parameters() if value.shape == (width,)]
    point = MaskPoint("", side, np.arange(width)[:, None])  # type: ignore[arg-type]
    mask = torch.zeros(width, dtype=torch.float64)
    mask[kept] = 1
    fewer = alone.edited([Take(name, 0, tuple(kept.tolist())) for name in names])
    fewer.call = alone.call.map(lambda x: x[..., kept] if x.shape[-1] == width else x)
    for name, value in vars(fewer.module).items():
        if value == (width,):
            setattr(fewer.module, name, (len(kept),))
    with masked(alone.module, [Axis("norm", "", width, "", masks=(point,))], {"norm": mask}):
        whole = alone.run().output
    few = fewer.run().output
    return bool((whole[..., kept] - few).abs().max() <= EXACT * few.abs().max())
