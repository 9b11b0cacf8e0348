"""Options every training step shares. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dit_compress.core.errors import UserError
from dit_compress.plugin.options import Keyed, Options, Part

FrozenDtype = Literal["float32", "bfloat16", "int8"]
"""How frozen weights are kept; whatever it is, they are computed with as before."""
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainOptions(Options):
    """Options of a step's training. Optimiser: AdamW with fp32 masters; Muon for the blocks' matrices on request."""

    steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch: int = Field(32, ge=1, description="Samples per step, over all processes and parts.")
    accumulate: int = Field(1, ge=1, description="Parts of a batch computed one after the other; less memory.")
    lr: float = Field(1e-4, gt=0, description="Peak learning rate of the main role.")
    muon_lr: float | None = Field(
        None, gt=0, description="Train the matrices inside blocks with Muon at this rate (0.02 is usual); else AdamW."
    )
    warmup: int = Field(50, ge=0, description="Steps over which the rate rises from 0.")
    decay: float = Field(1.0, gt=0, le=1, description="Share of the peak rate left at the end (cosine).")
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average that becomes the result; 0 is off.")
    bf16: bool = Field(False, description="Compute in bfloat16 (weights stay float32).")
    bf16_gather: Annotated[bool, Keyed("bf16_gather")] = Field(
        False,
        description="Under 'bf16', send sharded blocks' weights in bfloat16; gradients are summed in float32.",
    )
    checkpoint_activations: bool = Field(
        False, description="Compute each block's activations again in the backward pass; less memory, more time."
    )
    compile: Annotated[bool, Keyed()] = Field(
        False, description="Compile the denoisers' blocks (torch.compile); minutes at the start, faster steps."
    )
    deterministic: Annotated[bool, Keyed()] = Field(
        True,
        description="Equal runs give equal bits; false: kernels that sum in any order, faster backward attention.",
    )
    shard: Annotated[int | None, Keyed()] = Field(
        None,
        ge=1,
        description="Processes that share one copy of the weights; such groups are replicas; all if absent.",
    )
    images: Annotated[float, Keyed("images")] = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the steps on images: clips of one frame where the data has some, else clips' first latent"
        " frames alone.",
    )
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the last checkpoints stay.")

    @property
    def any_size(self) -> bool:
        """True: the loop draws each batch of one size."""
        return True

    @property
    def balanced_by(self) -> str:
        """The option by which training balances the loss' terms, empty where it balances none."""
        return ""

    mends: ClassVar[Mapping[str, str]] = {}
    """Mends by kind of alarm (``dit_compress.train.guards``), where these options have something better."""
    no_objective: ClassVar[str] = ""
    """Why a search can't take it as its objective; empty where one can."""
    around: ClassVar[frozenset[str]] = frozenset()
    """Options of a subclass of which its objective's losses know nothing, as of those here but ``lr``."""

    def sharing(self, processes: int) -> int:
        """Return how many of these processes share one copy of the weights."""
        return min(processes, self.shard or processes)

    @field_validator("bf16_gather")
    @classmethod
    def _computes_in_bf16(cls, gather: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's signature
        if gather and not info.data.get("bf16"):
            raise ValueError("weights are gathered in bfloat16 only where they are used in it: set 'bf16: true', too")
        return gather

    @field_validator("accumulate")
    @classmethod
    def _whole_parts(cls, accumulate: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch", accumulate)
        if batch % accumulate:
            raise ValueError(f"a batch of {batch} can't be cut into {accumulate} equal parts")
        return accumulate


def check_objectives(search: Part) -> list[UserError]:
    """Return what is wrong with the training steps that a search has as parts, for their losses.

    A search trains by its own options, or trains nothing: of an objective it needs what the losses know.
    """
    found = []
    shared = {*TrainOptions.model_fields, *DistillOptions.model_fields}
    for name, part in search.options:
        options = part.options if isinstance(part, Part) and part.kind == "distill" else None
        if not isinstance(options, TrainOptions):
            continue
        if options.no_objective:
            what = f"{part.name!r} can't be the {name!r} of a search: {options.no_objective}"
            found.append(UserError(what, where=part.where, mend="Name another 'distill' plugin"))
            continue
        trains = isinstance(search.options, TrainOptions)
        if options.balanced_by and not trains:
            what = f"{options.balanced_by} of the {name!r} of a search that trains nothing"
            found.append(UserError(f"terms are balanced by {what}", where=part.where, mend="Give the weight itself"))
            continue
        unread = (shared - {"lr"} if trains else shared) | options.around
        given = [repr(key) for key in type(options).model_fields if key in unread and options.differs(key)]
        if given:
            what = f"{', '.join(given)} of the {name!r} of a search would do nothing: it asks for losses alone"
            mend = "Leave out what does nothing" + ("; the search has such options of its own" if trains else "")
            found.append(UserError(what, where=part.where, mend=mend))
    return found


def check_parts(options: Options, processes: int) -> None:
    """Raise a UserError unless so many processes can share a training step's batch and weights, in equal parts.

    A training may stand inside a step's options, as 'finetune' does.
    """
    for _, inner in options:
        if isinstance(inner, Options):
            check_parts(inner, processes)
    if not isinstance(options, TrainOptions):
        return
    parts = processes * options.accumulate
    if options.batch % parts:
        raise UserError(
            f"a batch of {options.batch} can't be shared by {processes} processes in {options.accumulate} equal parts",
            mend=f"Set 'batch' to a multiple of {parts}",
        )
    if processes % options.sharing(processes):
        raise UserError(
            f"{processes} processes can't be cut into groups of {options.shard}",
            mend=f"Set 'shard' to a divisor of {processes}, or leave it out",
        )


class Validation(Options):
    """Held-out samples, at noise that never changes, judged by the moving average."""

    every: int = Field(100, ge=1, description="Steps between validations; a checkpoint is written at each.")
    samples: int = Field(32, ge=1, description="Held-out samples.")
    result: Literal["last", "best"] = Field("last", description="Which weights the step gives.")
    patience: Annotated[int | None, Keyed("patience")] = Field(
        None, ge=1, description="End the step after so many validations without a better one; with 'result: best'."
    )

    @model_validator(mode="after")
    def _gives_the_best(self) -> Self:
        if self.patience and self.result != "best":
            raise ValueError("a step that ends where nothing gets better gives the best: add 'result: best'")
        return self


class Watch(Options):
    """Samples of the model in training, compared with real clips and with the model the step began with."""

    every: int = Field(100, ge=1, description="Steps between looks.")
    captions: int = Field(4, ge=1, description="Captions sampled, two videos of each.")
    sheets: Annotated[int, Keyed()] = Field(8, ge=0, description="Looks whose frames are kept as a picture, at most.")
    sampling_steps: int | None = Field(None, ge=1, description="At most so many; the schedule's if absent.")
    stop: bool = Field(False, description="End the step at an alarm, with a checkpoint; else warn and go on.")


class Lora(Options):
    """Low-rank updates in the weights' place: trained, folded into them at the end, and kept as a file besides."""

    rank: int = Field(64, ge=1)
    alpha: float | None = Field(
        None, gt=0, description="Over the rank: the scale of the updates; twice the rank if absent."
    )
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Linears, by path, its end ('to_q') or a pattern ('*.ffn.*'); all inside blocks if absent.",
    )

    base: Annotated[FrozenDtype, Keyed("base")] = Field(
        "float32", description="How the frozen weights are kept meanwhile; folded are those of the input."
    )

    @model_validator(mode="after")
    def _has_peft(self) -> Self:
        if find_spec("peft") is None:
            raise ValueError("'lora' needs the package 'peft': run pip install \"dit-compress[lora]\", or leave it out")
        return self


class DistillOptions(TrainOptions):
    """The options of a step that trains a denoiser, and can look at it meanwhile."""

    betas: Annotated[tuple[Beta, Beta], Keyed("betas")] = Field((0.9, 0.999), description="Of AdamW, main role.")
    clip: Annotated[float | None, Keyed("clip")] = Field(
        1.0, gt=0, description="Largest norm of the main role's gradient; null: it is not clipped."
    )
    decay_norms: Annotated[bool, Keyed("decay_norms", "weight_decay")] = Field(
        False, description="Let 'weight_decay' pull on norms and biases (weights of one axis), too."
    )
    lora: Annotated[Lora | None, Keyed("lora")] = Field(
        None, description="Train low-rank updates in the denoiser's weights' place; a larger 'lr' is usual."
    )
    teacher_dtype: Annotated[FrozenDtype, Keyed("teacher_dtype")] = Field(
        "float32",
        description="How the weights of the teacher's blocks are kept: in half the bytes, or in a quarter.",
    )
    validation: Validation | None = Field(None, description="Measure a held-out loss; keeps the best checkpoint.")
    watch: Watch | None = Field(None, description="Measure motion, colour and diversity of samples.")

    for_slots: ClassVar[dict[str, tuple[str, ...]]] = {"teacher": ("teacher_dtype",)}

    @property
    def idle(self) -> dict[str, str]:
        """What decays, where nothing does."""
        return super().idle | ({} if self.weight_decay else {"decay_norms": "'weight_decay' above 0"})

    @property
    def held_out(self) -> bool:
        """True where it validates or watches."""
        return self.validation is not None or self.watch is not None

    @property
    def any_size(self) -> bool:
        """False: what a distiller draws besides its batches may be of one size."""
        return False

    @field_validator("validation", "watch")
    @classmethod
    def _comes_to_pass(cls, look: Validation | Watch | None, info: ValidationInfo) -> Validation | Watch | None:
        steps = info.data.get("steps", 0)
        if look is not None and look.every > steps > 0:
            raise ValueError(f"'every: {look.every}' never comes in {steps} steps")
        return look


class FlowMatchingOptions(DistillOptions):
    """Those of a step whose loss has flow matching as a term: its noise levels, and how often it sees no caption."""

    caption_dropout: float = Field(0.1, ge=0, lt=1, description="Share of captions dropped, which makes guidance work.")
    sigma: Literal["uniform", "logit_normal"] = Field(
        "logit_normal", description="How places on the schedule are drawn; its shift comes after."
    )
    sigma_mean: Annotated[float, Keyed("sigma_mean")] = Field(
        0.0, description="Of the logit of 'logit_normal'; lower trains finer detail."
    )
    sigma_std: Annotated[float, Keyed("sigma_std")] = Field(1.0, gt=0)

    @property
    def any_size(self) -> bool:
        """True: everything is of the batch's size."""
        return True

    @property
    def idle(self) -> dict[str, str]:
        """The logit's mean and deviation, where there is none."""
        own = (
            {} if self.sigma == "logit_normal" else dict.fromkeys(("sigma_mean", "sigma_std"), "'sigma: logit_normal'")
        )
        return super().idle | own


class ProbeOptions(Options):
    """The data that a search looks at, where it measures losses and trains nothing."""

    batches: int = Field(4, ge=1, description="Batches, drawn once; every choice is measured on the same.")
    batch: int = Field(32, ge=1, description="Samples per batch.")
