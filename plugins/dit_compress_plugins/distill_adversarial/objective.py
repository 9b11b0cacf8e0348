"""Eq. 7–9: jump from t, noise what comes out and the data alike, judge both; and reconstruct x0 from t.

``t`` is drawn from {T1 … TN}, each as often: every sampling step is trained as much as any other. Nothing is judged at
sigma 0, where the discriminator's frozen blocks were never trained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from dit_compress.model import flow
from dit_compress.train.distill import student_role
from dit_compress.train.losses import HUBERS, hinge_discriminator, hinge_generator, r1_approximate, r1_exact
from dit_compress.train.objective import Phase, Role, Weighing
from dit_compress_plugins.distill_adversarial.penalty import logits_and_leaf

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.text import Captions
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_adversarial import AdversarialOptions
    from dit_compress_plugins.distill_adversarial.pairs import TeacherPairs

WEIGHT, SHARE = "adversarial_weight", "adversarial_share"
"""Buffers of the discriminator, so that checkpoints hold them: the weight of the adversarial loss, and its weighted
gradient's norm over the reconstruction's as measured last."""
MOST = 1e4
"""Largest weight that a ratio of gradients sets, as in VQGAN: a discriminator's slope may vanish for a while."""


class AdversarialObjective:
    """Two phases: the discriminator learns to tell, the generator to pass. Without an adversarial loss, the latter."""

    def __init__(
        self,
        options: AdversarialOptions,
        student: Denoiser,
        judge: nn.Module | None,
        text: Captions,
        schedule: Flow,
        pairs: TeacherPairs | None,
    ) -> None:
        self.options, self.student, self.text, self.pairs = options, student, text, pairs
        self.grid, self.between = torch.tensor(schedule.calls()), schedule.between or (0.0, 1.0)
        self.huber = HUBERS[options.huber_over]
        self.roles = {"student": student_role(student, options), "text": Role(text)}
        self.weighed = bool(options.adversarial_weight and options.reconstruction_weight)
        weighing = self.weighing() if self.weighed else None
        generator = Phase(
            "generator",
            ("student",),
            options.first_update,
            options.generator_every if options.adversarial_weight else 1,
            score="reconstruction_loss",
            weighing=weighing,
        )
        self.phases: tuple[Phase, ...] = (generator,)
        if judge is not None:
            self.judge = judge
            given = options.adversarial_weight if options.balance == "fixed" else 0.0
            judge.register_buffer(WEIGHT, torch.tensor(given))
            judge.register_buffer(SHARE, torch.tensor(0.0))
            self.roles["discriminator"] = Role(judge, lr=options.discriminator_lr)
            self.phases = (Phase("discriminator", ("discriminator",)), generator)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Return Eq. 8, or Eq. 9 and the reconstruction loss."""
        x0, noise, cond = self.clean(batch)
        t, then, weight_B = self.times(batch, phase)
        x = flow.interpolate(x0, noise, t)
        if phase.name == "discriminator":
            with torch.no_grad():
                velocity = self.student(x, t, cond)
            sigma, again = self.judged_at(batch, noise, then)
            fake = self.fake(x, velocity, t, sigma, again)
            return self.discriminator_loss(batch, flow.interpolate(x0, again, sigma), fake, sigma, cond)
        velocity = self.student(x, t, cond)
        reconstruction = self.huber(flow.predict_x0(x, velocity, t), x0, self.options.huber)
        total = self.options.reconstruction_weight * reconstruction
        logged = {"reconstruction_loss": reconstruction}
        if self.options.adversarial_weight:
            sigma, again = self.judged_at(batch, noise, then)
            logits_BS = self.judge(self.fake(x, velocity, t, sigma, again), sigma, cond)
            logged["adversarial_loss"] = hinge_generator(weight_B[:, None] * logits_BS)
            total = total + self.noted(WEIGHT) * logged["adversarial_loss"]
        if self.weighed:
            logged |= {WEIGHT: self.noted(WEIGHT), SHARE: self.noted(SHARE)}
        return {"loss": total, **logged}

    def times(self, batch: Batch, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
        """Draw t and, for ``renoise: grid``, a lower t' from {T2 … TN}, each as often; and the weight of its judgement.

        No t' is below T_N: the discriminator's phase leaves it out, the generator's gives it no weight (and t' = t),
        the other starts N/(N - 1) of one, so that the mean over samples is that over the judged.
        """
        last, on_grid = len(self.grid) - 1, self.options.renoise == "grid"
        start = batch.streams.integers("t", last if on_grid and phase.name == "discriminator" else last + 1)
        lower, grid = last - start, self.grid.to(start.device)
        weight = (lower > 0) * ((last + 1) / last) if on_grid else torch.ones_like(grid[start])
        end = (start + 1 + (batch.streams.uniform("t_next") * lower).long()).clamp(max=last)
        return grid[start], grid[end], weight

    def judged_at(self, batch: Batch, noise: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma ``[B]`` and noise of what is judged: t' and that of x, or both drawn anew.

        The logit of a drawn sigma is normal, as sigma / (1 - sigma) is lognormal in SF-V; of an expert cut to the
        sigmas that it is for, as its frozen blocks know no others.
        """
        if self.options.renoise == "grid":
            return then, noise
        mean, std = self.options.renoise_mean, self.options.renoise_std
        again = batch.streams.normal("renoise", noise.shape[1:])
        if self.between == (0.0, 1.0):
            return torch.sigmoid(mean + std * batch.streams.normal("renoise/sigma", ())), again
        logits = torch.logit(torch.tensor(self.between, dtype=torch.float64))
        low, high = torch.special.ndtr((logits - mean) / std)
        place = batch.streams.uniform("renoise/sigma").double()
        sigma = torch.sigmoid(mean + std * torch.special.ndtri(low + (high - low) * place))
        return sigma.clamp(*self.between).to(noise.dtype), again

    def fake(self, x: Tensor, velocity: Tensor, t: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Return what the generator makes as it is judged: jumped to t', or its x0 noised anew."""
        if self.options.renoise == "grid":
            return flow.jump(x, velocity, t, sigma)
        return flow.interpolate(flow.predict_x0(x, velocity, t), noise, sigma)

    def discriminator_loss(
        self, batch: Batch, real: Tensor, fake: Tensor, sigma: Tensor, cond: Cond
    ) -> dict[str, Tensor]:
        """Return Eq. 8, and R1 where it is asked for."""
        judged_real, judged_fake = self.judge(real, sigma, cond), self.judge(fake, sigma, cond)
        right = ((judged_real < 0).float().mean() + (judged_fake > 0).float().mean()) / 2
        hinge = hinge_discriminator(judged_real, judged_fake)
        if not self.options.r1:
            return {"loss": hinge, "accuracy": right}
        penalty = self.penalty(batch, judged_real, real, sigma, cond)
        return {"loss": hinge + self.options.r1 / 2 * penalty, "r1": penalty, "accuracy": right}

    def penalty(self, batch: Batch, judged_BS: Tensor, real: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Return R1 on real samples, exact or approximate."""
        if self.options.r1_kind == "approximate":
            nearby = real + self.options.r1_scale * batch.streams.normal("r1", real.shape[1:])
            return r1_approximate(judged_BS, self.judge(nearby, sigma, cond), self.options.r1_scale)
        return r1_exact(*logits_and_leaf(self.judge, real, sigma, cond))

    def clean(self, batch: Batch) -> tuple[Tensor, Tensor, Cond]:
        """Return x0, noise and condition: of the data, or of the teacher's samples."""
        if self.pairs is not None:
            return self.pairs.draw(batch, self.text)
        with torch.no_grad():
            cond = self.text(batch.tokens)
        return batch.x0, batch.streams.normal("noise", batch.x0.shape[1:]), cond

    # -- the balance of the generator's two terms

    def weighing(self) -> Weighing:
        """Return that both terms' gradients are measured."""
        instead = "balance" if self.options.balance == "gradient" else ""
        terms = ("reconstruction_loss", "adversarial_loss")
        return Weighing(terms, "student", self.options.share_every, self.weigh, instead)

    def noted(self, name: str) -> Tensor:
        """Return the weight or the share as it is now."""
        return self.roles["discriminator"].module.get_buffer(name)

    def weigh(self, norms: Mapping[str, float]) -> None:
        """Note the adversarial gradient over the reconstruction's, then set its weight where that is what is given.

        The share noted is that of the weight which trained until now; at first, when there was none, of the new one.
        Esser et al., "Taming transformers for high-resolution image synthesis", Eq. 7; over all trained parameters.
        """
        reconstruction = self.options.reconstruction_weight * norms["reconstruction_loss"]
        adversarial = norms["adversarial_loss"]
        if not math.isfinite(reconstruction + adversarial) or not reconstruction:
            return  # the loop raises over losses that are not finite
        trained_by = float(self.noted(WEIGHT))
        if self.options.balance == "gradient" and adversarial:
            wanted = self.options.adversarial_weight * reconstruction / adversarial
            self.noted(WEIGHT).fill_(min(wanted, MOST))
        self.noted(SHARE).fill_((trained_by or float(self.noted(WEIGHT))) * adversarial / reconstruction)
