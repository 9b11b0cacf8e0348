"""A text encoder S learns another one T, in front of a frozen DiT v.

    L = a·|m(S - T)|²/|mT|² + b·mean_m(1 - cos(S, T)) + c·|v(x, σ, S) - v(x, σ, T)|²/|v(x, σ, T)|²

m is T's mask. Shapes: B batch, L text length, D width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.model.denoiser import Cond
from dit_compress.model.spec import ComponentSpec
from dit_compress.model.text import Captions
from dit_compress.structure.empty import empty_weights
from dit_compress.train.base import DistillStep
from dit_compress.train.loop import fit
from dit_compress.train.losses import per_sample, relative_squared_distance
from dit_compress.train.objective import Phase, Role

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_text import TextOptions

ALONE = {"embedding", "mask"}
"""What a student can give in the teacher's place."""


class TextDistiller(DistillStep):
    """Step ``distill: {use: text}``: another text encoder in the bundle, the denoiser as it is."""

    options: TextOptions

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle with the student; UserError where there is nothing to learn from."""
        after = super().plan(spec)
        with empty_weights():
            student = self._student(spec)
        size = sum(parameter.numel() for parameter in student.parameters())
        note = f"the text encoder {_teacher(spec).plugin!r} becomes {self.options.student.name!r} of {size:,} weights"
        return replace(after, text=self._component(student), notes=(*after.notes, note))

    def run(self, context: Context) -> Result:
        """Encode the captions by the teacher, once; train the student; give the bundle with it."""
        teacher, spec = context.text().requires_grad_(False), context.spec()
        prompts = read_prompts(Path(self.options.prompts)) if self.options.prompts else []
        samples = context.latents("train", teacher, prompts)
        null = teacher.null()
        need_alone(set(null), _teacher(spec).plugin)
        encoder: Any = self._student(spec, sees_padding=sees_padding(null))
        need_alike(encoder, null)
        objective = TextObjective(self.options, Captions(encoder), teacher, context.input.denoiser(), spec.flow)
        fit(objective, samples, self.options, context)
        return context.give({"text": encoder}, spec=replace(spec, text=self._component(encoder)))

    def num_parameters(self, student: Denoiser) -> tuple[int, int]:
        """Count the frozen denoiser; the encoder that moves is small beside it."""
        return sum(parameter.numel() for parameter in student.parameters()), 0

    def _student(self, spec: Spec, *, sees_padding: bool = False) -> nn.Module:
        teacher = _teacher(spec)
        return self.options.student.build().follow(teacher.plugin, teacher.config, sees_padding=sees_padding)

    def _component(self, encoder: nn.Module) -> ComponentSpec:
        part = self.options.student
        return ComponentSpec("text", part.name, part.build().config_of(encoder))


class TextObjective:
    """Role ``encoder`` learns; ``teacher`` and ``denoiser`` are frozen."""

    phases: tuple[Phase, ...] = (Phase("text", ("encoder",)),)

    def __init__(
        self, options: TextOptions, student: Captions, teacher: Captions, denoiser: Denoiser, schedule: Flow
    ) -> None:
        self.options, self.student, self.teacher, self.denoiser = options, student, teacher, denoiser
        self.schedule = schedule
        role = Role(
            student.requires_grad_(), lr=options.lr, muon_lr=options.muon_lr, weight_decay=options.weight_decay,
            ema=options.ema or None,
        )  # fmt: skip
        self.roles = {"encoder": role, "teacher": Role(teacher)}
        if options.output:
            self.roles["denoiser"] = Role(denoiser)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return the weighted sum, and its terms."""
        options, dropped_B = self.options, batch.streams.uniform("dropout") < self.options.empty
        with torch.no_grad():
            wanted = self.teacher(batch.tokens).to(batch.x0.device).drop(dropped_B)
        numbers = self.student.encoder.tokenize
        tokens = Cond(numbers(batch.captions), numbers([""])).to(batch.x0.device).drop(dropped_B)
        found = Cond(self.student.encoder(tokens), wanted.null)
        terms = embedding_terms(found["embedding"], wanted["embedding"], wanted["mask"])
        if options.output:
            terms["output"] = self.velocities(batch, found, wanted)
        total = torch.stack([getattr(options, name) * value for name, value in terms.items()]).sum()
        return {"loss": total, **{name: value.detach() for name, value in terms.items()}}

    def velocities(self, batch: Batch, found: Cond, wanted: Cond) -> Tensor:
        """Return the squared distance of velocities by both conditions, over the teacher's."""
        noise = batch.streams.normal("noise", batch.x0.shape[1:])
        sigma_B = self.schedule.warp(batch.streams.positions("logit_normal"))
        x = flow.interpolate(batch.x0, noise, sigma_B)
        with torch.no_grad():
            target = self.denoiser(x, sigma_B, wanted)
        return relative_squared_distance(self.denoiser(x, sigma_B, found), target)


def embedding_terms(found_BLD: Tensor, wanted_BLD: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
    """Return ``mse`` and ``cosine`` where the mask is, means over samples."""
    found, wanted, mask = found_BLD.float(), wanted_BLD.float(), mask_BL.float()
    away_BL = (1 - F.cosine_similarity(found, wanted, dim=-1)) * mask
    return {
        "mse": relative_squared_distance(found * mask[..., None], wanted * mask[..., None]),
        "cosine": (per_sample(away_BL) / per_sample(mask)).mean(),
    }


def sees_padding(null: dict[str, Tensor]) -> bool:
    """Tell whether the empty caption has no padding that a mask would hide."""
    return bool(null["mask"].all()) and null["mask"].shape[1] > 1


def need_alone(names: set[str], teacher: str) -> None:
    """Raise a UserError where a teacher gives more than one embedding and its mask."""
    if more := sorted(names - ALONE):
        raise UserError(
            f"the text encoder {teacher!r} gives {', '.join(more)} beside its embeddings, which no student learns",
            mend="Distil the encoder of a model that is conditioned on one (Wan, LTX-Video, CogVideoX)",
        )


def need_alike(encoder: Any, null: dict[str, Tensor]) -> None:
    """Raise a UserError where the teacher's embeddings do not stand for its tokens, one each."""
    length, wanted = next(iter(encoder.tokenize([""]).values())).shape[1], null["embedding"].shape[1]
    if length != wanted:
        raise UserError(
            f"the text encoder gives {wanted} embeddings for {length} tokens, and a student one for each",
            mend="Distil the encoder of a model without a template (Wan, LTX-Video, CogVideoX)",
        )


def read_prompts(path: Path) -> list[str]:
    """Read a prompt a line, empty lines left out; UserError where there are none."""
    try:
        found = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        what = f"the prompts can't be read: {error}"
        raise UserError(what, where=str(path), mend="Give a text file (UTF-8) with a prompt a line") from error
    if not found:
        raise UserError("no prompt in this file", where=str(path), mend="Write a prompt a line")
    return found


def _teacher(spec: Spec) -> ComponentSpec:
    if spec.text is None:
        raise UserError("the bundle has no text encoder to learn from", mend="Name a 'text' in the recipe")
    return spec.text
