"""The training of a codec: reconstruction, a posterior, and what else the options weigh.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1], latent ``[B,C,T,H,W]``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.train.codec import losses
from dit_compress.train.codec.critics import FrameCritic, RandomFeatures
from dit_compress.train.losses import hinge_discriminator, hinge_generator
from dit_compress.train.objective import Batch, Phase, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from dit_compress.train.codec.likeness import Likeness
    from dit_compress.train.codec.options import CodecTraining

ALIGNER_LR = 1e-3
"""Peak rate of the maps between the streams of student and teacher."""
JUDGE = "judge"
"""The phase in which the critic learns."""


class CodecObjective:
    """Reconstruction + KL of a posterior whose std is drawn per sample up to ``options.noise``.

    Args:
        codec: with ``encode_raw`` and ``decode_raw``.
        options: of the training.
        likeness: by which the decoder's streams also follow those of a larger VAE on the same clips.
        only: patterns of the parameters that are trained; all without.
        seed: of the critic's first weights.
    """

    def __init__(
        self,
        codec: nn.Module,
        options: CodecTraining,
        likeness: Likeness | None = None,
        only: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        self.codec: Any = codec
        self.options, self.likeness = options, likeness
        how: dict[str, Any] = {"betas": (0.9, 0.99), "ema": options.ema or None}
        how |= {"weight_decay": options.weight_decay, "decay_norms": options.decay_norms}
        self.roles = {"vae": Role(codec, lr=options.lr, only=only, **how)}
        if likeness is not None:
            self.roles |= {"teacher": Role(likeness.teacher), "aligner": Role(likeness.aligner, lr=ALIGNER_LR)}
        self.random = RandomFeatures() if options.losses.perceptual else None
        if self.random is not None:
            self.roles["distance"] = Role(self.random)
        trained = tuple(name for name, role in self.roles.items() if role.lr is not None)
        self.phases: tuple[Phase, ...] = (Phase("reconstruct", trained),)
        self.critic = FrameCritic(seed) if options.losses.adversarial else None
        if self.critic is not None:
            self.roles["critic"] = Role(self.critic, lr=options.losses.critic_lr, betas=(0.0, 0.99))
            self.phases = (Phase(JUDGE, ("critic",)), *self.phases)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of ``losses``, and its terms for the log; in its own phase the critic's loss."""
        video = batch.x0
        if phase.name == JUDGE:
            return self._judged(batch)
        mean = self.codec.encode_raw(video)
        features: list[Tensor] | None = None if self.likeness is None else []
        decoded = self.decoded(mean + self._noise(batch, mean), batch, features)
        terms = self._terms(decoded.float(), video, mean.float())
        if self.likeness is not None and features is not None:
            terms["features"] = self.likeness(features, video)
        weights = dict(self.options.losses)
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        logged = {name: value.detach() for name, value in terms.items()}
        return {"loss": total, **logged, "psnr": losses.psnr(decoded.detach().float(), video).mean()}

    def decoded(self, raw: Tensor, batch: Batch, features: list[Tensor] | None) -> Tensor:  # noqa: ARG002 - for others
        """Decode a batch's raw latent; ``features`` gets the decoder's streams."""
        return self.codec.decode_raw(raw) if features is None else self.codec.decode_raw(raw, features=features)

    def _judged(self, batch: Batch) -> dict[str, Tensor]:
        assert self.critic is not None
        with torch.no_grad():
            mean = self.codec.encode_raw(batch.x0)
            fake = self.decoded(mean + self._noise(batch, mean), batch, None)
        real_BS, fake_BS = self.critic(batch.x0), self.critic(fake.float())
        right = (real_BS < 0).float().mean() / 2 + (fake_BS > 0).float().mean() / 2
        return {"loss": hinge_discriminator(real_BS, fake_BS), "accuracy": right}

    def _noise(self, batch: Batch, mean: Tensor) -> Tensor:
        noise = batch.streams.normal("posterior", mean.shape[1:]).to(mean)
        std_B = batch.streams.uniform("posterior_std").to(mean) * self.options.noise
        return noise * std_B.reshape(-1, 1, 1, 1, 1)

    def _terms(self, decoded: Tensor, video: Tensor, mean: Tensor) -> dict[str, Tensor]:
        weights = self.options.losses
        epsilon, levels = weights.epsilon, weights.levels
        terms = {
            "pixel": losses.pixel(decoded, video, epsilon),
            "temporal": losses.temporal_difference(decoded, video, epsilon),
            "haar": losses.haar(decoded, video, epsilon, levels) if weights.haar else video.new_zeros(()),
            "kl": losses.kl(mean, self.options.noise),
        }
        if weights.multiscale:
            terms["multiscale"] = losses.multiscale(decoded, video, epsilon, levels)
        if weights.consistency:
            terms["consistency"] = self.consistency(decoded, mean)
        if weights.scale:
            terms["scale"] = self.scale(decoded, video, mean)
        if self.random is not None:
            terms["perceptual"] = self.random(decoded, video)
        if self.critic is not None:
            terms["adversarial"] = hinge_generator(self.critic(decoded))
        return terms

    def consistency(self, decoded: Tensor, mean: Tensor) -> Tensor:
        """Return the latent consistency ``‖E(D(E(x))) - sg E(x)‖²``, the outer encoder held fixed (H3AE).

        It takes one more encoding. The decoder moves, and the inner encoder through the latent that it gave.
        """
        with held(self.codec):
            return losses.consistency(self.codec.encode_raw(decoded).float(), mean)

    def scale(self, decoded: Tensor, video: Tensor, mean: Tensor) -> Tensor:
        """Return the distance of the decoded smaller latent to the smaller video, a mean over ``losses.scales``.

        With ``scale_target: decoded`` to the decoded video made smaller: then only the decoder has a gradient.
        """
        weights, terms = self.options.losses, []
        own = weights.scale_target == "decoded"
        latent, target = (mean.detach(), decoded.detach()) if own else (mean, video)
        for scale in weights.scales:
            found = self.codec.decode_raw(losses.smaller(latent, scale)).float()
            terms.append(losses.pixel(found, losses.smaller(target, scale), weights.epsilon))
        return torch.stack(terms).mean()


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Let what runs inside pass gradients to its inputs, and none to the module's parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
