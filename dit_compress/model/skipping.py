"""Modules that may answer as they did a step before: their gates, and the walk that remembers (LazyDiT).

A gated module has a parameter ``skip_gate [N,D]``, a row for each step of a schedule, and a buffer ``skip_mean [N]``:
the mean of its gate over training data, 1 where nothing is known. Called as always it is what it was. What is
remembered lives in one walk: nothing is kept in the modules.

Shapes: B batch, C channels, T H W latent frames, height, width, N steps, M gated modules, D width.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.model.flow import guided
from dit_compress.structure.lookup import argument_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dit_compress.model.denoiser import Cond, Denoiser

GATE, MEAN = "skip_gate", "skip_mean"
COMPUTES = 0.5
"""A module computes where its gate is at least this: gates of zero weights skip nothing."""
Pool = Literal["mean", "sum"]
Table = dict[str, tuple[bool, ...]]
"""Whether a gated module computes, at each step."""


@dataclass(frozen=True)
class Gating:
    """How a module's gate is read.

    sigmas: of its schedule, the final 0 included. argument: the one that holds its input. pool: over tokens.
    """

    sigmas: tuple[float, ...]
    argument: int | str
    pool: Pool

    @property
    def num_steps(self) -> int:
        """Rows of the gate."""
        return len(self.sigmas) - 1


# ------------------------------------------------------------------ gates


def add_gate(owner: Any, width: int, gating: Gating) -> None:
    """Give a module a gate of zero weights, and nothing else: it computes what it did."""
    like = next(owner.parameters(), torch.empty(0))
    zeros = torch.zeros(gating.num_steps, width, device=like.device, dtype=like.dtype)
    owner.register_parameter(GATE, nn.Parameter(zeros))
    owner.register_buffer(MEAN, torch.ones(gating.num_steps))
    owner.skipping = gating


def gated_modules(module: nn.Module) -> dict[str, Any]:
    """Return the modules that have a gate, by path."""
    return {path: owner for path, owner in module.named_modules() if isinstance(vars(owner).get("skipping"), Gating)}


def need_gates(module: nn.Module, sigmas: Sequence[float]) -> dict[str, Any]:
    """Return them; UserError where there are none, or they are for another schedule."""
    owners = gated_modules(module)
    if not owners:
        raise UserError(
            "the denoiser has no gates by which it could skip",
            mend="Give it gates and train them first, or take another sampler",
        )
    own = next(iter(owners.values())).skipping.sigmas
    if len(own) != len(sigmas) or not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(own, sigmas, strict=True)):
        raise UserError(
            f"the gates are for the {len(own) - 1} steps at sigma {_shown(own)}, and this is sampled in "
            f"{len(sigmas) - 1} at {_shown(sigmas)}",
            mend="Sample with the steps and the shift that the gates were trained for, or train gates for these",
        )
    return owners


def _shown(sigmas: Sequence[float]) -> str:
    first, last = sigmas[:3], sigmas[-2]
    return " ".join(f"{sigma:.4g}" for sigma in first) + f" … {last:.4g}"


def gate_values(owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], row_B: Tensor) -> Tensor:
    """Return ``sigmoid(pool_tokens(Z)·w)``, ``[B]``: the share of computing, ``1 - s`` of the paper.

    row_B: the step of each sample. A guided call has each sample twice; both halves share the mean of their logits.
    """
    z = argument_at(args, kwargs, owner.skipping.argument)
    pooled = z.flatten(1, -2).float()
    pooled = pooled.sum(1) if owner.skipping.pool == "sum" else pooled.mean(1)
    weight = owner.skip_gate.float()[row_B].repeat(len(z) // len(row_B), 1)
    return torch.sigmoid((pooled * weight).sum(-1).unflatten(0, (-1, len(row_B))).mean(0))


def mixed(gate_B: Tensor, new: Any, old: Any) -> Any:
    """Return ``g·new + (1 - g)·old`` for each sample, of tensors and of tuples of them."""
    if isinstance(new, tuple | list):
        return type(new)(mixed(gate_B, *pair) for pair in zip(new, old, strict=True))
    if not isinstance(new, Tensor):
        return new
    gate = gate_B.repeat(len(new) // len(gate_B)).reshape(-1, *[1] * (new.ndim - 1))
    # Where it is all or nothing each sample stays what it is, bit for bit.
    return torch.where(gate, new, old) if gate.dtype == torch.bool else (gate * new + (1 - gate) * old).to(new.dtype)


@contextmanager
def answering(module: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    """Let ``answer(path, owner, forward, *args, **kwargs)`` answer for gated modules while the context is open."""
    owners = gated_modules(module)
    before = {path: vars(owner).get("forward") for path, owner in owners.items()}
    for path, owner in owners.items():
        owner.forward = partial(answer, path, owner, owner.forward)
    try:
        yield
    finally:
        for path, owner in owners.items():
            del owner.forward
            if before[path] is not None:
                owner.forward = before[path]


def static_table(owners: Mapping[str, Any], ratio: float | None) -> Table:
    """Return what computes at which step, whatever the sample: a table of the means over training data.

    ratio: the share of all calls that is skipped, those of the lowest means; None: where the mean is below one half.
    Of gates on the meta device late steps skip: a table of the right number, to be looked at.
    """
    means_MN = torch.stack([owner.skip_mean.detach().float().cpu() for owner in owners.values()])
    if any(owner.skip_gate.is_meta for owner in owners.values()):
        means_MN = torch.linspace(1, 0, means_MN.shape[1]).repeat(len(means_MN), 1)
    if bool((means_MN == 1).all()):
        raise UserError("nothing is known of the gates: they were not trained", mend="Train them first")
    means_MN[:, 0] = torch.inf  # nothing is remembered at the first step
    if ratio is None:
        computes = means_MN >= COMPUTES
    else:
        count = need_ratio(ratio, means_MN.shape[1]) * means_MN.numel()
        computes = torch.ones(means_MN.numel(), dtype=torch.bool)
        computes[means_MN.flatten().argsort(stable=True)[: round(count)]] = False
        computes = computes.reshape(means_MN.shape)
    return {path: tuple(row) for path, row in zip(owners, computes.tolist(), strict=True)}


def need_ratio(ratio: float, num_steps: int) -> float:
    """Return a share of calls; UserError where it is more than can be skipped: the first step computes everything."""
    most = 1 - 1 / num_steps
    if ratio > most:
        raise UserError(
            f"{ratio:.0%} of the modules' calls can't be skipped: the first of {num_steps} steps computes all of them",
            mend=f"Lower 'ratio' to {math.floor(most * 100) / 100:g} or less",
        )
    return ratio


# ------------------------------------------------------------------ the walk


class Walk:
    """The outputs of one sampling, step by step, by gates or by a table.

    computed: by path, which samples computed at each step ``[B]``, where gates decide.
    """

    def __init__(self, batch: int, table: Table | None = None) -> None:
        self.batch, self.table, self.step = batch, table, 0
        self.kept: dict[str, Any] = {}
        self.computed: dict[str, list[Tensor]] = defaultdict(list)

    def answer(self, path: str, owner: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute, or give the output of the step before; each sample as its own gate says, or all by the table.

        A batch saves time where all of it skips: else it is computed whole, and those that skip keep what they had.
        """
        if self.table is not None:  # no tensor decides: what is traced has no call that is skipped
            if self.table[path][self.step]:
                self.kept[path] = forward(*args, **kwargs)
            return self.kept[path]
        wants_B = self.wants(path, owner, args, kwargs)
        self.computed[path].append(wants_B.detach().cpu())
        if not bool(wants_B.any()):
            return self.kept[path]
        new = forward(*args, **kwargs)
        self.kept[path] = new if bool(wants_B.all()) else mixed(wants_B, new, self.kept[path])
        return self.kept[path]

    def wants(self, path: str, owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Tell which samples compute, ``[B]``."""
        if path not in self.kept:
            return torch.ones(self.batch, dtype=torch.bool)
        row_B = torch.full((self.batch,), self.step, device=owner.skip_gate.device)
        return gate_values(owner, args, kwargs, row_B) >= COMPUTES


def skipping_euler(
    denoiser: Denoiser, noise_BCTHW: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sample by Euler steps, gated modules skipping as their gates say; differentiable.

    Returns the latent, and which samples computed ``[N,B]`` by module.
    """
    need_gates(denoiser.module, sigmas)
    walk = Walk(len(noise_BCTHW))
    x = _walked(walk, denoiser, noise_BCTHW, cond, sigmas, guidance)
    return x, {path: torch.stack(rows) for path, rows in walk.computed.items()}


def tabled_euler(
    denoiser: Denoiser,
    noise_BCTHW: Tensor,
    cond: Cond,
    sigmas: Sequence[float],
    guidance: float = 1.0,
    *,
    table: Table,
) -> Tensor:
    """Sample by Euler steps, gated modules skipping as a table says, whatever the values; differentiable."""
    return _walked(Walk(len(noise_BCTHW), table), denoiser, noise_BCTHW, cond, sigmas, guidance)


def _walked(walk: Walk, denoiser: Denoiser, x: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float) -> Tensor:
    """Take every step, ``walk`` answering for gated modules."""
    with answering(denoiser.module, walk.answer):
        for step, (now, then) in enumerate(itertools.pairwise(sigmas)):
            walk.step = step
            sigma_B = torch.full((len(x),), now, dtype=x.dtype, device=x.device)
            x = x + (then - now) * guided(denoiser, x, sigma_B, cond, guidance)
    return x
