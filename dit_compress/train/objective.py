"""The declarations of a training step: roles, phases, losses. The loop does the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol

from dit_compress.core.errors import UserError
from dit_compress.step.protocols import Step
from dit_compress.train.options import DistillOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from dit_compress.core.randomness import Streams
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context


@dataclass
class Role:
    """A module with a part in training: teacher, student, discriminator, aligner, masks, text.

    Every trainable tensor lives in a role's module, so that the loop can clip, average, save and
    shard it. ``lr`` None means frozen: the loop turns gradients off and never saves it.
    ``only``: patterns (of ``fnmatch``) of the names of the parameters that are trained, whatever their
    ``requires_grad`` says; without it those that require grad when training begins. Roles may share a module as long
    as each trains a part of its own. ``whole``: every process holds all of it, where the blocks of a denoiser would be
    shared out.
    ``muon_lr``: the matrices of linears inside module lists are trained by Muon at this rate; None: AdamW for all.
    ``decay_norms``: ``weight_decay`` pulls on weights of one axis (norms and biases), too.
    """

    module: nn.Module
    lr: float | None = None
    only: tuple[str, ...] = ()
    muon_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay_norms: bool = False
    ema: float | None = None
    clip: float | None = 1.0
    whole: bool = False

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name; raise a UserError where an ``only`` pattern matches none."""
        if self.lr is None:
            return {}
        named = dict(self.module.named_parameters())
        if not self.only:
            return {name: value for name, value in named.items() if value.requires_grad}
        unmatched = [pattern for pattern in self.only if not any(fnmatchcase(name, pattern) for name in named)]
        if unmatched:
            raise UserError(
                f"no parameter is named like {', '.join(map(repr, unmatched))}",
                where=type(self.module).__name__,
                mend=f"The names are such as {', '.join(map(repr, list(named)[:3]))}",
            )
        return {name: named[name] for name in named if any(fnmatchcase(name, pattern) for pattern in self.only)}


@dataclass(frozen=True)
class Weighing:
    """Terms of a phase's loss whose gradients are measured one by one, for an objective that weighs them.

    terms: entries of the loss. role: at whose trained parameters.
    every: at the first and each ``every``-th update of the phase, before it.
    tell: is given the norm of each term's gradient, of the whole batch on all processes. What it makes of them it keeps
        in buffers of a trained role: checkpoints hold those.
    instead: where the loss lacks terms until ``tell`` was called, the option that would weigh them without it.
    """

    terms: tuple[str, ...]
    role: str
    every: int
    tell: Callable[[Mapping[str, float]], None]
    instead: str = ""


@dataclass(frozen=True)
class Phase:
    """One update within a step: which roles move, by which loss.

    start: first step it runs at.
    every: it runs at that one and each ``every``-th after it. Warm-up, decay and moving averages count its own updates.
    score: the entry of the loss that a validation of the last phase compares; lower is better.
    shown: further ones that a validation logs. Where ``critic`` and ``judge`` are among them, guards compare the two:
        what the phase trains for, and what is to follow.
    weighing: terms of the loss whose gradients are measured.
    tell: is given what the loss returned at each update, after it: means over the whole batch on all processes. What it
        takes out is not logged. What it makes of them it keeps in buffers of a trained role: checkpoints hold those.
    """

    name: str
    updates: tuple[str, ...]
    start: int = 0
    every: int = 1
    score: str = "loss"
    shown: tuple[str, ...] = ()
    weighing: Weighing | None = None
    tell: Callable[[dict[str, float]], None] | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"phase {self.name!r} would run each {self.every}-th step")

    def runs(self, step: int) -> bool:
        """Tell whether it is its turn."""
        return step >= self.start and (step - self.start) % self.every == 0

    def updates_before(self, step: int) -> int:
        """Count how often it has run before ``step``."""
        return max(0, -((self.start - step) // self.every))


@dataclass
class Batch:
    """One batch, with the random streams that belong to its samples.

    sample: index of each sample in the training set.
    x0: clean latents ``[B,C,T,H,W]`` (or video ``[B,3,F,Y,X]`` where the step trains on pixels).
    tokens: what the text encoder's ``tokenize`` gave, or cached embeddings where it is frozen, and the conditions that
        no caption gives (:mod:`dit_compress.model.conditions`); leading B.
    streams: noise, sigma, dropout … as functions of (seed, step, sample, stream).
    held_out: a validation's batch; ``sample`` is then the index among the held-out samples.
    """

    step: int
    sample: Sequence[int]
    x0: Tensor
    streams: Streams
    captions: Sequence[str] = ()
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    held_out: bool = False

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device; what the streams draw arrives there, too."""
        tokens = {name: value.to(device) for name, value in self.tokens.items()}
        return replace(self, x0=self.x0.to(device), tokens=tokens, streams=self.streams.to(device))


class Objective(Protocol):
    """Roles, phases, and one loss per phase.

    ``loss`` returns ``{"loss": total, ...}``: ``loss`` is a mean over samples and is
    differentiated; every other entry is logged. Only the roles of the phase's ``updates`` have
    ``requires_grad`` while it runs.
    """

    @property
    def roles(self) -> dict[str, Role]:
        """Roles by name: student, teacher, text, aligner, discriminator, masks."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """In the order they run within a step."""

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of one phase on one batch."""


class Distiller(Step, Protocol):
    """A training step. A subclass of ``DistillStep`` adds ``objective`` to the engine's own work.

    options: of a subclass of ``dit_compress.train.options.TrainOptions``.
    """

    options: Any

    def objective(self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions) -> Objective:
        """Return roles, phases and losses over the loaded models; a search calls it with a masked student."""

    def flow(self, before: Flow) -> Flow:
        """Return how the result is meant to be sampled."""

    def misfits(self, spec: Spec, others: Mapping[str, Spec]) -> list[UserError]:  # noqa: ARG002 - the contract
        """Return why the bundles of its other slots, by name, can't go with its input.

        Latents and the width of captions were compared before; reads no weights.
        """
        return []

    def finish(self, student: Denoiser) -> nn.Module:
        """Return the student's module, whole by now, without what the training put into it: as a bundle holds it."""
        return student.module

    def num_parameters(self, student: Denoiser) -> tuple[int, int]:
        """Count the parameters that training holds, and those of them that it moves, for ``plan``.

        Those of its other slots' bundles are counted elsewhere. The student's, twice, or those of its LoRA; more
        for what is made besides, fewer where some are frozen. ``student`` has no weights, and is to be read only. A
        UserError that making the rest raises refuses the step.
        """
        size = sum(parameter.numel() for parameter in student.parameters())
        lora = self.options.lora if isinstance(self.options, DistillOptions) else None
        if lora is None:
            return size, size
        from dit_compress.train.targets import count

        added = count(student, lora)
        return size + added, added

    def calls(self, flow: Flow) -> int:  # noqa: ARG002 - the contract
        """Return how many calls of the student one backward pass goes through, for ``plan``; a guided one is two.

        flow: as the result is sampled.
        """
        return 1


class DiscriminatorPart(Protocol):
    """Makes a discriminator out of a frozen copy of the generator."""

    def create(self, generator: Denoiser) -> nn.Module:
        """Make a module ``(latent_BCTHW, sigma_B, cond) -> logits [B,S]``; its trainable parameters require grad."""
