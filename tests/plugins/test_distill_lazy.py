"""Training of gates: the loss recomputed, the weight that follows the ratio, gates alone, resume, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from toy import batch, part, words

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.model.bundle import Bundle
from dit_compress.model.flow import Flow
from dit_compress.model.skipping import gated_modules
from dit_compress.testing.distillers import DistillerContract
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress_plugins.distill_lazy import LazyOptions
from dit_compress_plugins.distill_lazy.controller import Controller, remember, tallies
from dit_compress_plugins.distill_lazy.objective import LazyObjective

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.train.objective import Batch

FLOW = Flow(3.0, 4, 2.0)


def objective(scale: float = 0.0, **options: Any) -> LazyObjective:
    denoiser = tiny_denoiser("video_dit")
    step = part("transform", "lazy")
    step.replay(denoiser.module, step.entry(denoiser, FLOW)[0]["data"])
    denoiser.forget_structure()
    for owner in gated_modules(denoiser.module).values():
        torch.nn.init.normal_(owner.skip_gate, std=scale) if scale else None
    made = LazyObjective(LazyOptions(**options), denoiser, words(), FLOW)
    made.controller.rho.fill_(0.5)
    return made


class TestLazy(DistillerContract):
    def objective(self) -> LazyObjective:
        return objective(0.2)

    def batch(self) -> Batch:
        return batch(words())


# ------------------------------------------------------------------ values


def test_the_loss_recomputed() -> None:
    """One module, by hooks: an unskipped step, then ``g·F(Z) + (1 - g)·y_prev``, guided, against the velocity."""
    made, owners = objective(0.3), {}
    for path, owner in gated_modules(made.student.module).items():
        if path != "transformer_blocks.1.ff":
            del owner.skipping
            continue
        owners[path] = owner
    made.owners = owners
    given = batch(made.text)
    losses = made.loss(made.phases[0], given)
    (ff,) = owners.values()
    seen: list[Any] = []
    with torch.no_grad():
        grid, step = torch.tensor(FLOW.sigmas()), given.streams.integers("step", 3)
        noise, cond = given.streams.normal("noise", given.x0.shape[1:]), made.text(given.tokens)
        now, then = grid[step], grid[step + 1]
        handle = ff.register_forward_hook(lambda _m, args, output: seen.append((args[0], output)))
        x = flow.interpolate(given.x0, noise, now)
        x = flow.jump(x, flow.guided(made.student, x, now, cond, 2.0), now, then)
        target = flow.guided(made.student, x, then, cond, 2.0)
        handle.remove()
        (_, old), (z, new) = seen
        logit = (z.mean(1) * ff.skip_gate[step + 1].repeat(2, 1)).sum(-1)
        gate = torch.sigmoid((logit[:4] + logit[4:]) / 2)
        spread = gate.repeat(2)[:, None, None]
        handle = ff.register_forward_hook(lambda *_: spread * new + (1 - spread) * old)
        error = (flow.guided(made.student, x, then, cond, 2.0) - target).square().mean()
        handle.remove()
    assert float(losses["error"]) == pytest.approx(float(error), rel=1e-4)
    assert float(error) > 1e-9
    assert float(losses["loss"]) == pytest.approx(float(error + 0.5 * gate.mean()), rel=1e-4)
    assert float(losses["skipped"]) == float((gate < 0.5).float().mean())
    assert float(losses["rho"]) == 0.5


def test_means_of_gates_by_step() -> None:
    """Two modules, three steps, samples at steps 1, 1 and 2."""
    gates = torch.tensor([[0.2, 0.4, 0.9], [0.6, 0.8, 0.1]])
    values = {name: float(value) for name, value in tallies(gates, torch.tensor([1, 1, 2]), 3).items()}
    assert values["skipped"] == pytest.approx(0.5)
    owners = [torch.nn.Module() for _ in range(2)]
    for owner in owners:
        owner.register_buffer("skip_mean", torch.ones(3))
    remember(owners, values, 3)
    assert list(values) == ["skipped"], "nothing else of it is logged"
    found = [owner.skip_mean.tolist() for owner in owners]
    assert found == [pytest.approx([1.0, 0.3, 0.9]), pytest.approx([1.0, 0.7, 0.1])]
    remember(owners, {f"seen@{n}": float(n == 2) for n in range(3)} | {f"gate@{m}@{n}": 0.5 for m in (0, 1)
             for n in range(3)}, 3)  # fmt: skip
    found = [owner.skip_mean.tolist() for owner in owners]
    assert found == [pytest.approx([1.0, 0.3, 0.86]), pytest.approx([1.0, 0.7, 0.14])]


def test_the_weight_begins_at_a_tenth_of_the_error_and_follows_the_ratio() -> None:
    made = Controller(0.4, 0.5)
    made.follow(2.0, 0.0)
    assert float(made.rho) == pytest.approx(0.2)
    made.follow(9.0, 0.1)  # the error counts once
    assert float(made.rho) == pytest.approx(0.2 * math.exp(0.5 * 0.3))
    made.follow(9.0, 0.9)
    assert float(made.rho) == pytest.approx(0.2 * math.exp(0.5 * (0.3 - 0.5)))
    for _ in range(200):
        made.follow(1.0, 0.0)
    assert float(made.rho) == pytest.approx(0.2 * 1e6, rel=1e-3), "and goes no further"
    still = Controller(0.4, 0.5)
    for error, rho in ((0.0, 0.0), (3.0, 0.3)):  # a model that gives nothing yet: it waits
        still.follow(error, 0.1)
        assert float(still.rho) == pytest.approx(rho)


def test_the_first_step_skips_nothing_so_the_others_skip_more() -> None:
    assert objective(ratio=0.3).controller.target == pytest.approx(0.4)


# ------------------------------------------------------------------ from bundles

OPTIONS = {"batch": 4, "rollouts": 2, "lr": 0.3, "ratio": 0.4, "gain": 1.0, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("gated")
    context = tiny_context(folder / "step", input=tiny_bundle(folder / "bundle"))
    result = part("transform", "lazy", num_steps=4, guidance=2.0).run(context)
    return Bundle.open(result.bundle.path)


def test_gates_alone_are_trained_and_skip_about_as_asked(gated: Bundle, tmp_path: Path) -> None:
    """Killed after the fourth step and resumed: the same bits."""
    step = part("distill", "lazy", steps=8, **OPTIONS)
    result = step.run(tiny_context(tmp_path / "whole", input=gated))
    made = Bundle.open(result.bundle.path)
    assert made.flow == replace(gated.flow, sampler={"use": "lazy"})
    assert step.plan(gated.spec).flow == made.flow
    old, new = (bundle.denoiser().module.state_dict() for bundle in (gated, made))
    changed = {name for name, value in old.items() if not torch.equal(value, new[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"skip_gate", "skip_mean"}
    assert len(changed) == 18
    assert not any(new[name][0].any() for name in changed if name.endswith("gate")), "no first step is asked"
    metrics = result.metrics
    assert 0.1 < metrics["skipped"] <= 0.75
    assert metrics["target"] == 0.4
    assert metrics["skipped_by_step"][0] == 0
    written = json.loads((tmp_path / "whole" / result.files["gates"]).read_text("utf-8"))
    assert written["sigmas"] == list(made.flow.sigmas())
    rows = written["skipped"]
    assert metrics["skipped"] == pytest.approx(sum(map(sum, rows.values())) / 36)
    assert metrics["skipped_by_module"] == {path: pytest.approx(sum(row) / 4) for path, row in rows.items()}
    assert metrics["fewer_steps"] == math.ceil(4 * (1 - metrics["skipped"]))
    assert metrics["error"] > 0
    assert step.num_parameters(gated.denoiser())[1] == 9 * 4 * 48

    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole" / "checkpoints", killed / "checkpoints")
    for checkpoint in (killed / "checkpoints").iterdir():
        if checkpoint.name != "step-00000004":
            shutil.rmtree(checkpoint)
    again = Bundle.open(step.run(tiny_context(killed, input=gated)).bundle.path).denoiser().module.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in new.items())

    with pytest.raises(UserError, match=r"^the bundle is sampled by 'lazy', whose gates .* \{use: lazy, skip: table\}'$"):
        part("export", "onnx").plan(made.spec)
    with pytest.raises(UserError, match="^the bundle is sampled by 'lazy', and such a folder by Euler steps alone"):
        made.flow.need_euler()


def test_what_is_refused(gated: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^the denoiser has no gates to train. Put 'transform: lazy' before this step"):
        part("distill", "lazy").plan(tiny_bundle(tmp_path / "plain").spec)
    with pytest.raises(UserError, match="^the gates are for the 4 steps at sigma .* and this is sampled in 5 at "):
        part("distill", "lazy").plan(replace(gated.spec, flow=Flow(3.0, 5)))
    with pytest.raises(UserError, match="^80% of the modules' calls can't be skipped: the first of 4 steps .* to 0.75 or"):
        part("distill", "lazy", ratio=0.8).plan(gated.spec)
    for option, message in (
        ({"compile": True}, "leave 'compile' out"),
        ({"checkpoint_activations": True}, "leave 'checkpoint_activations' out"),
        ({"validation": {"result": "best"}}, "the error is lowest where nothing is skipped: leave 'result: best' out"),
        ({"watch": {"sampling_steps": 2}}, "gates are for all steps of their schedule: leave 'sampling_steps' of"),
        ({"muon_lr": 0.02}, "leave 'muon_lr' out"),
    ):
        with pytest.raises(ValidationError, match=message):
            LazyOptions(**option)
