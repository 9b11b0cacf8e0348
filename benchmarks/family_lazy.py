"""Gates that skip attention and FFN (LazyDiT) against fewer steps, diffusers' first-block cache and TaylorSeer.

A teacher of the mixture, 20 guided steps, the same noise in every arm; no weight but the gates' is trained. Rivals are
granted at least as many module calls as the gates make: steps are rounded up, the first-block rule has the highest
threshold that makes as many on some of the samples. Both are diffusers' own hooks on the same model; the rule decides
for one sample at a time, with its guided half.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import account
import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_taylorseer_cache,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin
from paired import Table, run

from dit_compress.core.randomness import Streams
from dit_compress.measure.figure3 import opened
from dit_compress.model.flow import Flow, euler
from dit_compress.model.skipping import (
    Gating,
    add_gate,
    gate_values,
    gated_modules,
    mixed,
    skipping_euler,
    static_table,
    tabled_euler,
)
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.testing.models import tiny_denoiser
from dit_compress_plugins.evaluate_mixture_samples.distances import lines, sliced_wasserstein
from dit_compress_plugins.evaluate_mixture_samples.step import draw, evenly
from dit_compress_plugins.model_video_dit.layers import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from paired import Claim, Row
    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser

RATIOS = {"30%": 0.3, "50%": 0.5}
RIVALS = ("fewer steps", "first block", "taylor")
PAPER = {"lazy 50%": "20 steps: FID 6.75", "fewer steps 50%": "10 steps: FID 12.05"}


def claims() -> tuple[Claim, ...]:
    """Return what is claimed: the gates' latents are nearer to the full run's than each rival's."""
    return tuple((f"lazy {share}", f"{rival} {share}", "mse_e3", -1) for share in RATIOS for rival in RIVALS)


ARMS = ("full", *(f"{name} {share}" for share in RATIOS for name in ("lazy", "table", *RIVALS)))
TABLE = Table(
    "Gates that skip modules, at equal module calls",
    {name: PAPER.get(name, "–") for name in ARMS},
    {"mse_e3": 4, "sliced_wasserstein": 4, "calls": 3, "seconds": 4},
    claims(),
    "LazyDiT, DiT-XL/2",
    "`mse_e3`: mean squared distance of latents to those of `full`, 20 steps from the same noise, in thousandths. "
    "`sliced_wasserstein`: to exact samples, of which guided ones are none. `calls`: share of the attentions and FFNs "
    "computed. `seconds`: of the processor, for one guided sample. `table`: the same gates, but what is skipped is "
    "fixed by their means in training. `first block`, `taylor`: diffusers' hooks; no training.",
)
SIZES: dict[str, dict[str, Any]] = {
    "short": {"num_steps": 20, "updates": 240, "batch": 32, "captions": 8, "each": 32, "searched": 4, "timed": 6},
    "full": {"num_steps": 20, "updates": 1000, "batch": 64, "captions": 32, "each": 64, "searched": 8, "timed": 16},
    "tiny": {"num_steps": 5, "updates": 2, "batch": 4, "captions": 2, "each": 2, "searched": 1, "timed": 1},
}
"""updates: of the gates. searched: samples of each caption on which the rule's threshold is found."""
RATE = 1e-2
GUIDANCE = 1.5
HALVINGS = 6
"""Of the interval that the rule's threshold lies in."""
WARM = 3
"""First steps that TaylorSeer computes: diffusers' default."""
MODULES = r"transformer_blocks\.\d+\.(attn1|attn2|ff)"

TransformerBlockRegistry.register(
    Block, TransformerBlockMetadata(return_hidden_states_index=0, _cached_parameter_indices={"hidden_states": 0})
)


def row(out: Path, tier: str, seed: int) -> Row:
    """Train gates on a teacher to each ratio, sample by every arm, measure all."""
    sizes, own = account.TIERS[tier], SIZES[tier]
    account.teacher(out, sizes, seed)
    teacher = str(account.teacher_bundle(out, seed))
    done = run(out / f"family-lazy{seed}", account.recipe(sizes, 4000 + seed, steps(own, teacher)), 1)
    world = World.of(done / step_name("30%") / "bundle", own, seed)
    arms: dict[str, Arm] = {"full": Arm(world.denoiser, world.steps(own["num_steps"]))}
    for share, ratio in RATIOS.items():
        bundle = done / step_name(share) / "bundle"
        _, denoiser = opened(str(bundle), bundle)
        arms |= {f"{name} {share}": arm for name, arm in arms_of(world, denoiser, ratio).items()}
    return world.measured(arms)


def steps(own: Mapping[str, Any], teacher: str) -> list[dict[str, Any]]:
    """Return the recipe's steps: gates, and their training to each ratio."""
    gates = {"use": "lazy", "num_steps": own["num_steps"], "guidance": GUIDANCE}
    how = {"use": "lazy", "steps": own["updates"], "batch": own["batch"], "lr": RATE, "checkpoint_every": 500}
    return [
        {"transform": gates, "name": "gated", "input": teacher},
        *(
            {"distill": {**how, "ratio": ratio}, "name": step_name(share), "input": "gated"}
            for share, ratio in RATIOS.items()
        ),
    ]


def step_name(share: str) -> str:
    """Name a ratio's step."""
    return f"lazy-{share.rstrip('%')}"


# ------------------------------------------------------------------ arms

Sampled = tuple["Tensor", float]
"""Latents, and the share of module calls that they took."""


@dataclass
class Arm:
    """A way to sample ``(denoiser, noise, cond) → (latents, share of calls)``. alone: one sample at a time."""

    denoiser: Denoiser
    sample: Callable[[Denoiser, Tensor, Cond], Sampled]
    alone: bool = False

    def __call__(self, noise: Tensor, cond: Cond) -> Sampled:
        """Sample a batch."""
        if not self.alone:
            return self.sample(self.denoiser, noise, cond)
        each = [
            self.sample(self.denoiser, noise[place : place + 1], cond.take(slice(place, place + 1)))
            for place in range(len(noise))
        ]
        return torch.cat([latent for latent, _ in each]), sum(calls for _, calls in each) / len(each)


@torch.no_grad()
def arms_of(world: World, denoiser: Denoiser, ratio: float) -> dict[str, Arm]:
    """Return the gates, their table, and every rival with at least as many calls as the gates make."""
    lazy = Arm(denoiser, world.lazily())
    _, calls = lazy(world.noise, world.cond)
    computed = math.ceil(world.num_steps * calls - 1e-6)
    found = {"lazy": lazy, "table": Arm(denoiser, world.tabled(static_table(gated_modules(denoiser.module), ratio)))}
    found["fewer steps"] = Arm(world.denoiser, world.steps(computed))
    found["first block"] = world.first_block(calls)
    found["taylor"] = world.taylor(computed)
    return found


@dataclass
class World:
    """A teacher, captions and noise, and exact samples ``[G,N,D]``."""

    denoiser: Denoiser
    flow: Flow
    noise: Tensor
    cond: Cond
    exact: Tensor
    directions: Tensor
    own: Mapping[str, Any]

    @classmethod
    def of(cls, bundle: Path, own: Mapping[str, Any], seed: int) -> World:
        """Open a bundle and draw what every arm is given."""
        context, denoiser = opened(str(bundle), bundle)
        mixture = evenly(context.clips("test"), own["captions"])
        captions = [caption for caption in mixture.names for _ in range(own["each"])]
        exact = draw(mixture, own["each"], seed, "exact")
        directions = Streams(seed, 0, range(128)).normal("directions", exact.shape[2:]).double()
        noise = Streams(seed, 0, range(len(captions))).normal("sample", context.latent_shape())
        with torch.no_grad():
            cond = context.text().eval().cond(captions)
        return cls(denoiser, context.input.flow, noise, cond, exact, lines(directions), own)

    @property
    def num_steps(self) -> int:
        """Steps of the full run."""
        return self.own["num_steps"]

    def steps(self, count: int) -> Callable[..., Sampled]:
        """Sample in so many Euler steps."""
        sigmas, share = self.flow.sigmas(count), count / self.num_steps
        return lambda denoiser, noise, cond: (euler(denoiser, noise, cond, sigmas, GUIDANCE), share)

    def lazily(self) -> Callable[..., Sampled]:
        """Sample as the gates say."""

        def sample(denoiser: Denoiser, noise: Tensor, cond: Cond) -> Sampled:
            latent, computed = skipping_euler(denoiser, noise, cond, self.flow.sigmas(), GUIDANCE)
            return latent, float(torch.stack(list(computed.values())).float().mean())

        return sample

    def tabled(self, table: dict[str, tuple[bool, ...]]) -> Callable[..., Sampled]:
        """Sample as a table of the gates says."""
        sigmas, share = self.flow.sigmas(), float(torch.tensor(list(table.values())).float().mean())
        return lambda denoiser, noise, cond: (tabled_euler(denoiser, noise, cond, sigmas, GUIDANCE, table=table), share)

    def hooked(self, put: Callable[[Any], None], *, alone: bool = False) -> Arm:
        """Sample a copy of the model with hooks of diffusers on its blocks; the calls of modules are counted."""
        denoiser = copy.deepcopy(self.denoiser)
        put(denoiser.module)
        counted, total = counting(denoiser), 3 * len(denoiser.module.transformer_blocks) * self.num_steps

        def sample(denoiser: Denoiser, noise: Tensor, cond: Cond) -> Sampled:
            counted.clear()
            HookRegistry.check_if_exists_or_initialize(denoiser.module).reset_stateful_hooks()
            with CacheMixin.cache_context(denoiser.module, "guided"):
                latent = euler(denoiser, noise, cond, self.flow.sigmas(), GUIDANCE)
            return latent, len(counted) / total

        return Arm(denoiser, sample, alone)

    def first_block(self, calls: float) -> Arm:
        """Return the rule with the highest threshold that makes at least so many calls on some of the samples."""
        some = [place for place in range(len(self.noise)) if place % self.own["each"] < self.own["searched"]]
        noise, cond = self.noise[some], self.cond.take(torch.tensor(some))
        low, high = 0.0, 2.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2 if low else high / 4
            enough = self.rule(middle)(noise, cond)[1] >= calls
            low, high = (middle, high) if enough else (low, middle)
        return self.rule(low)

    def rule(self, threshold: float) -> Arm:
        """Return the first-block rule of one threshold."""
        config = FirstBlockCacheConfig(threshold=threshold)
        return self.hooked(lambda module: apply_first_block_cache(module, config), alone=True)

    def taylor(self, computed: int) -> Arm:
        """Return TaylorSeer of first order that computes so many steps, as evenly as its options allow."""
        interval, after = schedule(self.num_steps, computed)
        config = TaylorSeerCacheConfig(
            cache_interval=interval, disable_cache_before_step=WARM, disable_cache_after_step=after,
            taylor_factors_dtype=torch.float32, cache_identifiers=[MODULES],
        )  # fmt: skip
        return self.hooked(lambda module: apply_taylorseer_cache(module, config))

    @torch.no_grad()
    def measured(self, arms: Mapping[str, Arm]) -> Row:
        """Measure every arm against the full run and exact samples; seconds by turns, one sample at a time."""
        sampled = {name: arm(self.noise, self.cond) for name, arm in arms.items()}
        full, _ = sampled["full"]
        seconds: dict[str, float] = dict.fromkeys(arms, 0.0)
        for place in range(self.own["timed"] + 1):
            one = slice(place % len(self.noise), place % len(self.noise) + 1)
            for name, arm in arms.items():
                before = time.process_time()
                arm(self.noise[one], self.cond.take(one))
                seconds[name] += (time.process_time() - before) if place else 0.0  # the first is to warm up
        return {
            name: {
                "mse_e3": 1e3 * float((latent - full).square().mean()),
                "sliced_wasserstein": self.distance(latent),
                "calls": calls,
                "seconds": seconds[name] / self.own["timed"],
            }
            for name, (latent, calls) in sampled.items()
        }

    def distance(self, latent: Tensor) -> float:
        """Return the sliced Wasserstein distance to exact samples."""
        drawn = latent.double().flatten(1).unflatten(0, self.exact.shape[:2])
        return float(sliced_wasserstein(drawn, self.exact, self.directions).mean())


def counting(denoiser: Denoiser) -> list[str]:
    """Return a list that grows by one for each attention and FFN that computes, below whatever hooks are there."""
    counted: list[str] = []
    for block in denoiser.module.transformer_blocks:
        for name, inner in (("attn1", "to_q"), ("attn2", "to_q"), ("ff", "net.0.proj")):
            block.get_submodule(f"{name}.{inner}").register_forward_pre_hook(lambda *_, name=name: counted.append(name))
    return counted


def schedule(num_steps: int, computed: int) -> tuple[int, int]:
    """Return TaylorSeer's interval and the step after which it computes all, so that it computes so many steps."""
    for interval in range(2, num_steps + 1):
        for after in range(num_steps, -1, -1):
            if len(computing(num_steps, interval, after)) == computed:
                return interval, after
    return num_steps, num_steps


def computing(num_steps: int, interval: int, after: int) -> list[int]:
    """Return the steps that TaylorSeer computes, by diffusers' rule."""
    return [
        step for step in range(num_steps)
        if step < WARM or step >= after or (step - WARM - 1) % interval == 0
    ]  # fmt: skip


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, and how many times faster than the full run each arm is at batch 1."""
    faster = {
        arm: round(sum(row["full"]["seconds"] / max(row[arm]["seconds"], 1e-9) for row in rows) / len(rows), 3)
        for arm in ARMS
    }
    return list(rows), {"times_faster": faster}


# ------------------------------------------------------------------ worked by hand


@torch.no_grad()
def check() -> dict[str, Any]:
    """Return the gate of Z = I, w = (ln 3, 0), its mixture of 4 with a cache of 0; whether zero gates are Euler's."""
    flow = Flow(3.0, 4, 2.0)
    owner = torch.nn.Linear(2, 2)
    add_gate(owner, 2, Gating(flow.sigmas(), 0, "sum"))
    owner.skip_gate[1] = torch.tensor([math.log(3), 0.0])  # type: ignore[index,operator]
    gate = gate_values(owner, (torch.eye(2)[None],), {}, torch.tensor([1]))
    denoiser = tiny_denoiser("video_dit")
    noise, _, cond = denoiser.example(2, (2, 2, 2))
    plain = euler(denoiser, noise, cond, flow.sigmas(), 2.0)
    step = make_part("transform", {"use": "lazy"}, installed()).build()
    step.replay(denoiser.module, step.entry(denoiser, flow)[0]["data"])
    lazy, _ = skipping_euler(denoiser, noise, cond, flow.sigmas(), 2.0)
    mixture = mixed(gate, torch.tensor([[4.0]]), torch.zeros(1, 1))
    return {"gate": round(float(gate), 6), "mixture": round(float(mixture), 6), "zero": torch.equal(plain, lazy)}
