"""The contract of distillers: every built-in one keeps it, and broken ones are caught."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from toy import Colours, Pixels, batch, words

from dit_compress.model.flow import Flow, euler
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.testing.distillers import DistillerContract
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.objective import Batch, Phase, Role
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.objective import AdversarialObjective
from dit_compress_plugins.distill_affine import AffineOptions
from dit_compress_plugins.distill_affine.distiller import AffineObjective
from dit_compress_plugins.distill_dmd import DmdOptions
from dit_compress_plugins.distill_dmd.distiller import DmdObjective, Real
from dit_compress_plugins.distill_flow import FlowOptions
from dit_compress_plugins.distill_flow.distiller import FlowObjective
from dit_compress_plugins.distill_reward import RewardOptions
from dit_compress_plugins.distill_reward.distiller import RewardObjective
from dit_compress_plugins.distill_scaled import ScaledOptions
from dit_compress_plugins.distill_scaled.distiller import ScaledObjective


def given() -> Batch:
    return batch(words(), size=3)


class TestFlow(DistillerContract):
    text_rate: float | None = None

    def objective(self) -> Any:
        return FlowObjective(FlowOptions(), tiny_denoiser("video_dit"), words(), self.text_rate)

    def batch(self) -> Batch:
        return given()


class TestFlowWithText(TestFlow):
    text_rate = 1e-4


class TestFlowInParts(TestFlow):
    """A block and the ends of one student by two roles, which a frozen role holds, too."""

    def objective(self) -> Any:
        made = super().objective()
        made.roles = {
            "before": Role(made.student),
            "block": Role(made.student, lr=1e-3, only=("*transformer_blocks.1.*",)),
            "ends": Role(made.student, lr=1e-3, only=("module.proj_*",)),
            "text": Role(made.text),
        }
        made.phases = (Phase("flow", ("block",)), Phase("ends", ("ends",), every=2))
        return made


class TestAffine(DistillerContract):
    def objective(self) -> Any:
        student, teacher = tiny_denoiser("video_dit"), tiny_denoiser("video_dit", 1)
        options = AffineOptions(output_weight=0.5)
        return AffineObjective(options, student, teacher, words(), [(0, 0), (2, 2)], Flow())

    def batch(self) -> Batch:
        return given()


class TestAdversarial(DistillerContract):
    judge = "dit_block"
    options: ClassVar[dict[str, Any]] = {}

    def objective(self) -> Any:
        student = tiny_denoiser("video_dit")
        options = {"frozen_blocks": 1, **({"learnable_blocks": 1} if self.judge == "dit_block" else {"width": 8})}
        part = make_part("discriminator", {"use": self.judge, **options}, installed())
        torch.manual_seed(2)
        judge = part.build().create(student)
        return AdversarialObjective(
            AdversarialOptions(**self.options), student, judge, words(), Flow(3.0, 4, 1.0), None
        )

    def batch(self) -> Batch:
        return given()


class TestAdversarialRenoised(TestAdversarial):
    options: ClassVar[dict[str, Any]] = {"renoise": "logit_normal", "r1": 0.3, "huber_over": "elements"}


class TestAdversarialApproximateR1(TestAdversarial):
    options: ClassVar[dict[str, Any]] = {"r1": 0.3, "r1_kind": "approximate", "r1_scale": 0.1}


class TestAdversarialFrames(TestAdversarial):
    judge = "resblock2d_temporal"
    options: ClassVar[dict[str, Any]] = {"r1": 0.3, "renoise": "grid"}


class TestAdversarialLight(TestAdversarial):
    judge = "light_resblock3d"


class TestDmd(DistillerContract):
    guide: str | None = None

    def objective(self) -> Any:
        student, teacher = tiny_denoiser("video_dit"), tiny_denoiser("video_dit", 1)
        guide = tiny_denoiser(self.guide, 2) if self.guide else None
        schedule = Flow(3.0, 3, 1.0)
        real = Real(teacher, Flow(3.0, 4, 2.0), euler)
        return DmdObjective(DmdOptions(), student, real, words(), schedule, guide)

    def batch(self) -> Batch:
        return given()


class TestDmdGuided(TestDmd):
    guide = "video_dit"


class TestDmdGuidedByAnotherGrid(TestDmd):
    """Wan joins two by two cells."""

    guide = "wan"


class TestScaled(DistillerContract):
    teacher = "wan"
    options: ClassVar[dict[str, Any]] = {}
    text_rate: float | None = None

    def objective(self) -> Any:
        teacher = tiny_denoiser(self.teacher, 1)
        theirs = None if self.text_rate is None else words()
        options = ScaledOptions(**self.options)
        return ScaledObjective(options, tiny_denoiser("video_dit"), teacher, words(), Flow(), self.text_rate, theirs)

    def batch(self) -> Batch:
        return given()


class TestScaledWithText(TestScaled):
    text_rate = 1e-4


class TestScaledOutput(TestScaled):
    teacher = "video_dit"
    options: ClassVar[dict[str, Any]] = {"features": False}


class TestScaledFixed(TestScaled):
    options: ClassVar[dict[str, Any]] = {"weight": 0.5}


class TestReward(DistillerContract):
    options: ClassVar[dict[str, Any]] = {}

    def objective(self) -> Any:
        critic, judge = (make_part("reward", {"use": name}, installed()) for name in ("shapes", "reader"))
        options = RewardOptions(**{"reward": critic, "judge": judge, **self.options})
        made = {"reward": Colours(), "judge": Colours()}
        return RewardObjective(
            options, tiny_denoiser("video_dit"), words(), Pixels(), made, Flow(3.0, 3, 2.0), tiny_denoiser("wan", 1)
        )

    def batch(self) -> Batch:
        return given()


class TestRewardRecomputed(TestReward):
    options: ClassVar[dict[str, Any]] = {"last_steps": 2, "recompute": True}


class TestRewardWithoutAnchor(TestReward):
    options: ClassVar[dict[str, Any]] = {"last_steps": 3, "anchor_weight": 0}


# ------------------------------------------------------------------ the contract catches what it is for


class Leaky(TestAdversarial):
    """In the discriminator's phase the generator's graph is kept: the mistake the contract is for."""

    def objective(self) -> Any:
        made = super().objective()
        student = made.student

        def loss(phase: Phase, batch: Batch) -> dict[str, Any]:
            for parameter in student.parameters():
                parameter.requires_grad_()
            streams = batch.streams.normal("noise", batch.x0.shape[1:])
            value = student(batch.x0 + streams, torch.full((len(batch.sample),), 0.5), made.text(batch.tokens))
            return {"loss": value.square().mean() + sum(p.square().sum() for p in made.judge.head.parameters())}

        made.loss = loss
        return made


class Summed(TestFlow):
    def objective(self) -> Any:
        made = super().objective()
        inner = made.loss
        made.loss = lambda phase, batch: {"loss": inner(phase, batch)["loss"] * len(batch.sample)}
        return made


class Dicing(TestFlow):
    def objective(self) -> Any:
        made = super().objective()
        inner = made.loss
        made.loss = lambda phase, batch: {"loss": inner(phase, batch)["loss"] * (1 + 1e-3 * torch.rand(()))}
        return made


class Idle(TestFlow):
    def objective(self) -> Any:
        made = super().objective()
        made.roles["aligner"] = Role(torch.nn.Linear(2, 2), lr=1e-3)
        return made


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Leaky, "test_only_the_roles_of_a_phase_get_gradients"),
        (Summed, "test_a_loss_is_a_mean_over_samples"),
        (Dicing, "test_a_loss_draws_from_the_streams_alone"),
        (Idle, "test_every_trainable_role_is_updated_by_a_phase"),
    ],
)
def test_a_broken_distiller_fails(broken: type[DistillerContract], test: str) -> None:
    with pytest.raises(AssertionError):
        getattr(broken(), test)()
