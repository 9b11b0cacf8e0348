"""The gate and the mixture by hand, zero gates bit-equal to Euler, nothing stale, tables, other schedules."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.model.flow import Flow, euler
from dit_compress.model.skipping import Gating, Walk, add_gate, gate_values, gated_modules, mixed, skipping_euler
from dit_compress.testing.models import MODELS, tiny_denoiser

FLOW = Flow(3.0, 4, 2.0)
SIGMAS = FLOW.sigmas()


def gated(name: str = "video_dit", scale: float = 0.0, **options: Any) -> Any:
    """A denoiser with gates: of zero weights, or of random ones."""
    denoiser = tiny_denoiser(name)
    step = part("transform", "lazy", **options)
    entry, left = step.entry(denoiser, FLOW)
    assert left == {}
    step.replay(denoiser.module, entry["data"])
    for owner in gated_modules(denoiser.module).values():
        torch.nn.init.normal_(owner.skip_gate, std=scale) if scale else None
    return denoiser


def inputs(denoiser: Any, batch: int = 3) -> Any:
    torch.manual_seed(7)
    noise, _, cond = denoiser.example(batch, (2, 2, 2))
    return noise, cond


# ------------------------------------------------------------------ by hand


def test_a_gate_and_a_mixture_by_hand() -> None:
    """Z = I, w = (ln 3, 0): the sum over tokens is ln 3, g = 0.75; F = 4 over a cache of 0 gives 3. The mean: ln 3/2."""
    owner, z = torch.nn.Linear(2, 2), torch.eye(2)[None]
    add_gate(owner, 2, Gating(SIGMAS, 0, "sum"))
    with torch.no_grad():
        owner.skip_gate[1] = torch.tensor([math.log(3), 0.0])
        gate_B = gate_values(owner, (z,), {}, torch.tensor([1]))
        assert float(gate_B) == pytest.approx(0.75)
        assert float(mixed(gate_B, torch.tensor([[4.0]]), torch.zeros(1, 1))) == pytest.approx(3.0)
        assert float(gate_values(owner, (z,), {}, torch.tensor([0]))) == 0.5, "another step has weights of its own"
        owner.skipping = Gating(SIGMAS, 0, "mean")
        assert float(gate_values(owner, (z,), {}, torch.tensor([1]))) == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)))
        # A guided call: twice the sample, Z and -Z. Both halves share the mean of their logits.
        assert gate_values(owner, (torch.cat([z, -z]),), {}, torch.tensor([1])).tolist() == [0.5]


def test_mixing_is_for_each_sample_and_each_of_a_tuple() -> None:
    new, old = (torch.full((4, 2, 3), value) for value in (4.0, 0.0))
    found = mixed(torch.tensor([0.25, 1.0]), (new, new.clone(), None), (old, old, None))
    assert found[0][:, 0, 0].tolist() == [1.0, 4.0, 1.0, 4.0]
    assert found[2] is None
    chosen = mixed(torch.tensor([False, True]), new, old)
    assert chosen[:, 0, 0].tolist() == [0.0, 4.0, 0.0, 4.0]


def test_a_walk_keeps_what_each_sample_had() -> None:
    """Sample 0 skips steps 1 and 2, sample 1 step 2 alone: then the module is not called at all."""
    owner, calls = torch.nn.Linear(2, 2), []
    add_gate(owner, 2, Gating(SIGMAS, 0, "mean"))
    walk = Walk(2)
    says = {0: [1.0, 1.0], 1: [-1.0, 1.0], 2: [-1.0, -1.0], 3: [0.0, 0.0]}
    found = []
    for step, signs in says.items():
        walk.step = step
        owner.skip_gate = torch.nn.Parameter(torch.ones(4, 2))
        z = torch.tensor(signs)[:, None, None].expand(2, 3, 2)

        def forward(x: torch.Tensor, step: int = step) -> torch.Tensor:
            calls.append(step)
            return torch.full_like(x, float(step))

        found.append(walk.answer("a", owner, forward, z)[:, 0, 0].tolist())
    assert found == [[0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [3.0, 3.0]]
    assert calls == [0, 1, 3]
    assert torch.stack(walk.computed["a"]).tolist() == [[True, True], [False, True], [False, False], [True, True]]


# ------------------------------------------------------------------ whole models


@pytest.mark.parametrize("name", MODELS)
def test_zero_gates_are_bit_equal_to_euler_and_others_skip(name: str) -> None:
    denoiser = gated(name)
    noise, cond = inputs(denoiser)
    with torch.no_grad():
        expected = euler(tiny_denoiser(name), noise, cond, SIGMAS, 2.0)
        sample = part("sampler", "lazy").sample
        assert torch.equal(sample(denoiser, noise, cond, SIGMAS, 2.0), expected)
        assert torch.equal(euler(denoiser, noise, cond, SIGMAS, 2.0), expected), "called as always it is what it was"
        for owner in gated_modules(denoiser.module).values():
            torch.nn.init.normal_(owner.skip_gate, std=0.5)
        found, computed = skipping_euler(denoiser, noise, cond, SIGMAS, 2.0)
    assert len(computed) == len(gated_modules(denoiser.module)) == 9
    assert all(rows.shape == (4, 3) and rows[0].all() for rows in computed.values())
    assert 0.1 < 1 - torch.stack(list(computed.values())).float().mean() < 0.75
    assert not torch.equal(found, expected)


def test_nothing_is_stale_and_a_sample_is_alone_in_its_batch() -> None:
    """A second call, of another batch size, is what it is in a model that was never called; so is each sample."""
    denoiser = gated(scale=0.5)
    noise, cond = inputs(denoiser)
    fresh = copy.deepcopy(denoiser)
    with torch.no_grad():
        whole, computed = skipping_euler(denoiser, noise, cond, SIGMAS, 2.0)
        assert not all(rows.all() or not rows[1:].any() for rows in computed.values()), "samples do not agree"
        for index in range(3):
            own = slice(index, index + 1)
            again, alone = (skipping_euler(model, noise[own], cond.take(own), SIGMAS, 2.0)[0]
                            for model in (denoiser, fresh))  # fmt: skip
            assert torch.equal(again, alone)
            torch.testing.assert_close(again, whole[own], rtol=1e-4, atol=1e-5)
        broken = copy.deepcopy(denoiser)
        broken.module.transformer_blocks[1].ff.net[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            skipping_euler(broken, noise, cond, SIGMAS)
    for model in (denoiser, broken):
        assert not [path for path, module in model.module.named_modules() if "forward" in vars(module)]


def test_sampling_is_differentiable() -> None:
    denoiser = gated(scale=0.5)
    noise, cond = inputs(denoiser, 1)
    noise.requires_grad_()
    skipping_euler(denoiser, noise, cond, SIGMAS)[0].square().sum().backward()
    assert bool(noise.grad.isfinite().all())
    assert bool(noise.grad.any())


def test_a_table_skips_the_lowest_means_whatever_the_sample() -> None:
    """9 modules, 4 steps: a third of 36 calls are 12, of the 27 after the first step; those of the lowest means."""
    denoiser = gated(scale=0.5)
    owners = gated_modules(denoiser.module)
    means = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    for owner, row in zip(owners.values(), means, strict=True):
        owner.skip_mean.copy_(row)
    noise, cond = inputs(denoiser)
    lowest = set(means[:, 1:].flatten().argsort()[:12].tolist())
    below = set((means[:, 1:].flatten() < 0.5).nonzero().flatten().tolist())
    for given, skipped in (({"ratio": 1 / 3}, lowest), ({}, below)):
        called: list[str] = []
        for path, owner in owners.items():
            # Below the walk, as a loader that offloads weights would be: it is asked only where the module computes.
            owner.forward = partial(noting, called, path, owner.forward)
        with torch.no_grad():
            part("sampler", "lazy", skip="table", **given).sample(denoiser, noise, cond, SIGMAS, 2.0)
        assert [called.count(path) for path in owners] == [
            4 - sum(place // 3 == row for place in skipped) for row in range(9)
        ]
        for owner in owners.values():
            assert isinstance(owner.forward, partial), "it is back where it was"
            del owner.forward


def noting(called: list[str], path: str, forward: Any, *args: Any, **kwargs: Any) -> Any:
    called.append(path)
    return forward(*args, **kwargs)


# ------------------------------------------------------------------ refused


def test_what_is_refused() -> None:
    denoiser = gated()
    noise, cond = inputs(denoiser, 1)
    lazy, table = part("sampler", "lazy"), part("sampler", "lazy", skip="table", ratio=0.9)
    for steps, shift in ((3, 3.0), (4, 2.0)):
        with pytest.raises(UserError, match=r"^the gates are for the 4 steps at sigma 1 0.9 0.75 … 0.5, and this is") as seen:
            lazy.sample(denoiser, noise, cond, Flow(shift, steps).sigmas())
        assert "train gates for these" in str(seen.value)
    with pytest.raises(UserError, match="^the denoiser has no gates by which it could skip. Give it gates and train them"):
        lazy.sample(tiny_denoiser("video_dit"), noise, cond, SIGMAS)
    with pytest.raises(UserError, match="^nothing is known of the gates: they were not trained. Train them first"):
        table.sample(denoiser, noise, cond, SIGMAS)
    next(iter(gated_modules(denoiser.module).values())).skip_mean.fill_(0.2)
    with pytest.raises(UserError, match=r"^90% of the modules' calls can't be skipped: .* Lower 'ratio' to 0.75 or less"):
        table.sample(denoiser, noise, cond, SIGMAS)
    with pytest.raises(UserError, match="'ratio' belongs to 'skip: table'"):
        part("sampler", "lazy", ratio=0.5)
