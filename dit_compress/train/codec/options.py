"""Options that every training of a codec shares. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dit_compress.plugin.options import Keyed, Options
from dit_compress.train.options import TrainOptions

NOT_FOR_A_VAE = ("compile", "shard", "bf16_gather", "checkpoint_activations", "muon_lr")
"""Options of a training step that are about the blocks of a denoiser."""
Scale = Annotated[int, Field(ge=2, le=8)]


class LossWeights(Options):
    """Weights of the training loss, and the error below which it is quadratic (of pixels in -1 … 1).

    A small epsilon makes errors count by their size alone: corners, large errors of few pixels, are given up.
    0 is plain L1.

    pixel: of smooth L1. temporal: of the differences of successive frames. haar: of spatial detail bands.
    multiscale: of frames averaged over 2x2, 4x4 … pixels. kl: of the distance of the posterior to a standard normal.
    features: of the distance of the decoder's streams to those of the VAE in the slot ``teacher``.
    consistency: of the squared distance of the latent, encoded anew from the decoded video, to the latent.
    perceptual: of the distance of frames in features of a fixed random network. adversarial: of a critic's judgement.
    critic_lr: of that critic.
    scale: of smooth L1 between the decoded smaller latent and the smaller video, or ``scale_target: decoded``, the
    decoded video made smaller, which trains the decoder alone. scales: how many times smaller, along height and width.
    levels: of the Haar bands, and of the averages.
    """

    pixel: float = Field(default=1.0, ge=0)
    temporal: float = Field(default=0.25, ge=0)
    haar: float = Field(default=0.0, ge=0)
    multiscale: float = Field(default=0.0, ge=0)
    kl: float = Field(default=1e-5, ge=0)
    features: float = Field(default=0.0, ge=0)
    consistency: Annotated[float, Keyed("consistency")] = Field(default=0.0, ge=0)
    perceptual: Annotated[float, Keyed("perceptual")] = Field(default=0.0, ge=0)
    adversarial: Annotated[float, Keyed("adversarial")] = Field(default=0.0, ge=0)
    critic_lr: Annotated[float, Keyed("adversarial")] = Field(default=2e-3, gt=0)
    scale: Annotated[float, Keyed("scale")] = Field(default=0.0, ge=0)
    scale_target: Annotated[Literal["video", "decoded"], Keyed("scale")] = "video"
    scales: Annotated[tuple[Scale, ...], Keyed("scale")] = Field(default=(2,), min_length=1, max_length=4)
    epsilon: float = Field(default=1.0, ge=0)
    levels: int = Field(default=1, ge=1, le=3)

    @property
    def idle(self) -> dict[str, str]:
        """What is about a term that has no weight."""
        found = {} if self.adversarial else {"critic_lr": "'adversarial' above 0"}
        if not self.scale:
            found |= dict.fromkeys(("scales", "scale_target"), "'scale' above 0")
        if not self.haar and not self.multiscale:
            found["levels"] = "'haar' or 'multiscale' above 0"
        return super().idle | found


class CodecTraining(TrainOptions):
    """Options of a codec's training, besides those every training step shares.

    noise: largest std of the posterior in training; the decoder learns to forgive a generator so much.
    decay_norms: let ``weight_decay`` pull on biases and gains (weights of one axis), too.
    """

    noise: float = Field(default=0.1, gt=0)
    batch: int = Field(default=4, ge=1)
    # ``weight_decay`` did nothing here once: by this option, keys of recipes that set it differ from those of then.
    decay_norms: Annotated[bool, Keyed("decay_norms", "weight_decay")] = False
    losses: LossWeights = LossWeights()

    @property
    def idle(self) -> dict[str, str]:
        """What decays, where nothing does."""
        return super().idle | ({} if self.weight_decay else {"decay_norms": "'weight_decay' above 0"})

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, where its features are learnt."""
        return ("teacher",) if self.losses.features else ()

    @property
    def idle_slots(self) -> dict[str, str]:
        """The teacher, where its features are not."""
        return {} if self.losses.features else {"teacher": "'features' above 0 in 'losses'"}

    @property
    def held_out(self) -> bool:
        """Its quality is measured on held-out clips."""
        return True

    @model_validator(mode="after")
    def _has_no_denoiser(self) -> Self:
        given = [name for name, value in self if name in NOT_FOR_A_VAE and value]
        if given:
            raise ValueError(f"a VAE's step trains no denoiser, whose blocks {given[0]!r} is about: take it out")
        return self


class CodecOptions(CodecTraining):
    """Options of a codec that is made and trained here.

    ratio: pixels per latent cell along time, height, width: 4x16x16, 4x32x32, 8x32x32, 8x64x64.
    channels: of the latent.
    tile: frames of more latent cells a side are encoded and decoded in tiles of so many.
    chunk: videos of more latent frames are encoded and decoded in chunks of so many.
    """

    ratio: str = Field(default="8x32x32", pattern=r"^[1-9]\d{0,2}x[1-9]\d{0,2}x[1-9]\d{0,2}$")
    channels: int = Field(default=64, ge=1, le=16384)
    steps: int = Field(default=3000, ge=1)
    lr: float = Field(default=2e-2, gt=0)
    decay: float = Field(default=0.02, gt=0, le=1)
    ema: float = Field(default=0.99, ge=0, lt=1)
    bf16: bool = True
    tile: int = Field(default=24, ge=4)
    chunk: int = Field(default=16, ge=1)

    def ratio_numbers(self) -> tuple[int, int, int]:
        """Return the ratio as numbers."""
        time, height, width = map(int, self.ratio.split("x"))
        return time, height, width
