"""The common work of distillers around their objectives: load the roles, train, give the bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_data
from dit_compress.plugin.options import marked
from dit_compress.plugin.registry import installed
from dit_compress.structure.compact import kept_blocks
from dit_compress.structure.files.digest import digest_of
from dit_compress.structure.files.tensor_files import open_weights
from dit_compress.train.guards import Alarms
from dit_compress.train.held import hold, is_held, widened
from dit_compress.train.loop import fit
from dit_compress.train.lora import FILE, adapt, fold, take_off, write_lora
from dit_compress.train.objective import Distiller, Role
from dit_compress.train.options import DistillOptions
from dit_compress.train.validation import Monitors, Validator, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from dit_compress.model.bundle import Bundle
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import ComponentSpec, Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context, Result
    from dit_compress.train.options import TrainOptions


def student_role(student: Denoiser, options: TrainOptions) -> Role:
    """Make the role of a denoiser that is trained, with the rates of the step's options."""
    student.requires_grad_()
    role = Role(
        student, lr=options.lr, muon_lr=options.muon_lr, weight_decay=options.weight_decay, ema=options.ema or None
    )
    if not isinstance(options, DistillOptions):
        return role
    return replace(role, betas=options.betas, clip=options.clip, decay_norms=options.decay_norms)


def distill(step: Distiller, context: Context) -> Result:
    """Train the input's denoiser by the step's objective and give the bundle."""
    for slot, other in context.bundles.items():
        _need_same_latents(slot, context.input, other)
    given = context.slot("teacher")
    student, text = context.input.denoiser(), context.text()
    options = step.options if isinstance(step.options, DistillOptions) else DistillOptions()
    teacher = hold(given.denoiser(), options.teacher_dtype) if given else None
    objective = step.objective(context, student, teacher, text)
    if options.lora is not None:
        adapt(objective.roles, options.lora, context.seed)
    fit(objective, context.latents("train", text), step.options, context, monitors(step, context, student, text))
    files = {} if options.lora is None else {"lora": _kept_apart(student, context)}
    modules = {"denoiser": step.finish(student)}
    if "text" in objective.roles and objective.roles["text"].lr is not None:
        modules["text"] = text.encoder
    return replace(context.give(modules, flow=step.flow(context.input.flow)), files=files)


def _kept_apart(student: Denoiser, context: Context) -> str:
    """Write a student's LoRA beside its bundle, and fold it into the weights; return the file's name."""
    base = digest_of(open_weights(context.input.path / "denoiser"))
    write_lora(student.module, context.folder / FILE, base)
    layers = take_off(student.module)
    if is_held(student):
        widened(student, context.input.denoiser().module.state_dict())
    fold(layers)
    return FILE


def _need_same_latents(slot: str, student: Bundle, other: Bundle) -> None:
    """UserError where both bundles have a VAE, and not the same; of one yet to be trained no plan knows it."""
    if student.spec.latent and other.spec.latent and student.latents != other.latents:
        raise UserError(
            f"the {slot} knows the latents of another VAE than the student's",
            where=str(other.path),
            mend=f"Name a {slot} that was trained on the latents of the step's input",
        )


def need_same_captions(slot: str, student: Bundle, other: Bundle) -> None:
    """UserError where both bundles have a text encoder, and not the same: one's embeddings say nothing to the other."""
    ours, theirs = student.spec.text, other.spec.text
    alike = not (ours and theirs) or (same_at_first(ours, theirs) and student.weights("text") == other.weights("text"))
    if not alike:
        raise _other_captions(slot, str(other.path))


def other_encoders(student: Spec, others: Mapping[str, Spec]) -> list[UserError]:
    """Return what to say of bundles in other slots whose text encoder is another by its config; reads no weights."""
    return [
        _other_captions(slot)
        for slot, other in others.items()
        if student.text and other.text and not same_at_first(student.text, other.text)
    ]


def _other_captions(slot: str, where: str = "") -> UserError:
    return UserError(
        f"the {slot} knows the captions of another text encoder than the student's",
        where=where,
        mend=f"Name a {slot} that was trained with the text encoder of the step's input",
    )


def monitors(step: Distiller, context: Context, student: Denoiser, text: Captions) -> Monitors | None:
    """Make validation and watch, where the step's options ask for them."""
    options = step.options
    if not isinstance(options, DistillOptions) or (options.validation is None and options.watch is None):
        return None
    held_out, world = context.latents("test", text), context.world
    each = max(1, options.batch // (world.size * options.accumulate))  # as much memory as training has
    validator = sampler = None
    if options.validation is not None:
        validator = Validator(held_out, options.validation.samples, each, context.seed, world, bf16=options.bf16)
    if options.watch is not None:
        flow = step.flow(context.input.flow)
        sampler = Watcher(
            student,
            text,
            flow,
            held_out,
            options.watch,
            _decoder(context),
            seed=context.seed,
            world=world,
            trained=is_trained(context.input.lineage),
            bf16=options.bf16,
            batch=each,
            sample=context.sampler(flow),
        )
    alarms = Alarms(context, stop=options.watch is not None and options.watch.stop, mends=options.mends)
    return Monitors(options, alarms, validator, sampler)


def _decoder(context: Context) -> Callable[[Tensor], Tensor]:
    """Return the VAE's decoder where the training is; only the first process asks for videos."""
    if context.world.rank:
        return lambda latent: latent
    codec: Any = context.input.codec().eval()
    return codec.to(context.world.device).decode


def is_trained(lineage: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a bundle's denoiser was trained before: by an earlier step, or by whoever made its folder."""
    for record in lineage:
        model = record.get("parts", {}).get("model")
        if record["kind"] == "distill":
            return True
        if model and any(
            model["options"].get(name) is not None for name in marked(installed().get("model", model["plugin"]).options)
        ):
            return True
    return False


def text_lr(context: Context, options: DistillOptions) -> float | None:
    """Return the encoder's rate: trained with the denoiser in a bundle's first training step, frozen ever after.

    Frozen beside LoRA, whose file holds nothing of it.
    """
    component = context.input.spec.text
    if options.lora is not None or component is None or not component.loader().trainable:
        return None
    return None if any(record["kind"] == "distill" for record in context.input.lineage) else options.lr


def descends(student: Spec, teacher: Spec | None) -> bool:
    """Tell whether a student was made of its teacher: the same model at first, and every transform of the teacher's."""
    if teacher is None or student.denoiser is None or teacher.denoiser is None:
        return True
    ours, theirs = student.denoiser.log, teacher.denoiser.log
    return same_at_first(student.denoiser, teacher.denoiser) and list(ours[: len(theirs)]) == list(theirs)


def same_at_first(one: ComponentSpec, other: ComponentSpec) -> bool:
    """Tell whether two components are of one plugin and config, whatever was made of them; weights are not compared.

    Keys of a config that begin with an underscore say how it is kept, not what it computes.
    """
    configs = ({key: value for key, value in each.config.items() if not key.startswith("_")} for each in (one, other))
    return one.plugin == other.plugin and len({sha256_data(config) for config in configs}) == 1


def block_pairs(student: Bundle, teacher: Bundle | None, length: int, stack: str) -> list[tuple[int, int]]:
    """Return (student block, teacher block it came from), by the transform logs.

    Without a teacher bundle, or with an unpruned student, every block is its own origin.
    """
    whole = teacher.spec.denoiser if teacher is not None else None
    before, log = (component.log if component else () for component in (whole, student.spec.denoiser))
    if not descends(student.spec, teacher.spec if teacher is not None else None):
        raise UserError(
            "the student does not descend from this teacher: their transform logs differ",
            mend="Name the bundle the student was pruned from as 'teacher'",
        )
    origins = kept_blocks(log[len(before) :], stack) or tuple(range(length))
    return list(enumerate(origins))


def group_pairs(origins: Sequence[tuple[int, int]], length: int, groups: int, target: str) -> list[tuple[int, int]]:
    """Return (student block, teacher block) for ``groups`` equal runs of the teacher's ``length`` blocks.

    origins: as :func:`block_pairs` gives them. The student's output of a run is the last block that came from it; a run
    of which none stays joins the one before. target: ``ends``, the run's last block, as Eq. 5 compares outputs of
    groups; ``origins``, the block that the student's came from.
    """
    groups = min(groups, length)
    found: dict[int, int] = {}
    for index in range(groups):
        end = round((index + 1) * length / groups) - 1
        if standing := [pair for pair in origins if pair[1] <= end]:
            student, origin = standing[-1]
            found[student] = end if target == "ends" else origin
    return list(found.items())
