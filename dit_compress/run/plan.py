"""``plan``: walk the recipe without weights; what each step makes of the model, and what is cached."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.spec import Spec
from dit_compress.plugin.options import VideoOptions
from dit_compress.run.fit import encoder_at, encoder_of, located, need, other_width
from dit_compress.run.keys import nodes
from dit_compress.train.options import DistillOptions, check_parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from dit_compress.export.check_early import Networks
    from dit_compress.model.protocols import TextEncoder
    from dit_compress.model.spec import ComponentSpec
    from dit_compress.recipe.model import Recipe
    from dit_compress.run.fit import Encoder
    from dit_compress.run.keys import Node


@dataclass(frozen=True)
class Planned:
    """One step's row: the bundle it reads and the one it makes, in figures.

    held, trained: parameters that a training step holds, besides those of its other slots, and that it trains.
    width, blocks: of the denoiser's main stream, and of all stacks together, where the step trains it.
    calls: of the denoiser, that one backward pass goes through.
    """

    node: Node
    before: dict[str, Any]
    after: dict[str, Any]
    notes: tuple[str, ...]
    held: int = 0
    trained: int = 0
    width: int = 0
    blocks: int = 0
    calls: int = 1


def plan(recipe: Recipe, *, deep: bool = True, processes: int = 1) -> list[Planned]:
    """Return every step's figures before and after; raise one UserError that joins all steps' problems.

    ``deep``: exporters say what would break on their targets, too. ``processes``: that will train together.
    """
    from dit_compress.model.figures import describe

    specs: dict[str, Spec] = {}
    figures: dict[str, dict[str, Any]] = {}
    rows: list[Planned] = []
    errors: list[UserError] = []
    networks: list[Networks] = []
    encoders: dict[str, Encoder | None] = {}
    steps = nodes(recipe)
    names = {node.name for node in steps}
    for node in steps:
        source = node.inputs.get("input", "")
        try:
            before = _spec_of(source, specs, recipe)
            need(node, recipe)
            for part in node.together:
                check_parts(part.options, processes)
            if node.kind == "distill" and before is not None:
                _check_slots(node, before, specs, encoders, recipe)
            first = Spec(video=recipe.video, data=recipe.data is not None, longest=recipe.longest)
            after = _planned(node, before or first, recipe.videos)
            _check_beside(node, after, recipe)
            encoders[node.name] = encoder_of(node, encoders, recipe.seed)
            figures[node.name] = (
                figures[source]
                if source in figures and before is not None and _alike(before, after)
                else describe(after)
            )
            fresh = after.notes[len(before.notes) :] if before else ()
            if deep and node.kind == "export":
                fresh += _check_export(node, after, networks)
            training = _training(node, after) if node.kind == "distill" else ()
            rows.append(Planned(node, figures.get(source, {}), figures[node.name], fresh, *training))
            specs[node.name] = after
        except UserError as error:
            if not _consequence(node, specs, names):
                errors.append(located(error, recipe, node))
    if errors:
        raise UserError.join(errors)
    return rows


def _training(node: Node, after: Spec) -> tuple[int, ...]:
    """Return what a training step holds and trains, width and number of its blocks, and the calls that it keeps."""
    from dit_compress.structure.observe.trace import FAILURES

    outline = after.outline()
    step = node.build()
    held, trained = step.num_parameters(outline)
    structure = outline.structure()
    width = max((attention.heads * attention.width for attention in structure.attentions), default=0)
    with suppress(*FAILURES):  # what looks at values does not run here: as wide as its heads are together
        width = after.build_denoiser().to("meta").stream_width()  # buffers of an outline hold values on the CPU
    return held, trained, width, sum(stack.length for stack in structure.stacks), step.calls(after.flow)


def _alike(before: Spec, after: Spec) -> bool:
    """Tell whether a step leaves every shape as it was."""
    return replace(before, flow=after.flow, notes=after.notes) == after


def _planned(node: Node, before: Spec, videos: Sequence[tuple[int, int, int]]) -> Spec:
    after = node.build().plan(before)
    _check_widths(node, before, after)
    if after.text is not None and after.denoiser is not None and not _alike(before, after):
        _check_captions(after.text, after)
    if after.latent is not None and not _alike(before, after):
        for video in videos[1:]:
            replace(after, video=video).latent_size()
        for video in videos or [after.video] if after.denoiser is not None else ():
            _check_fit(replace(after, video=video))
    return after


def _check_widths(node: Node, before: Spec, after: Spec) -> None:
    """UserError where a step would change a denoiser of nested widths, and knows of one width alone."""
    from dit_compress.structure.nesting import need_one_width

    if before.denoiser is None or after.denoiser is None or "step" not in node.parts:
        return
    changes = node.kind == "distill" or after.denoiser.log != before.denoiser.log
    if changes and not node.part.options.knows_widths:
        need_one_width(before.denoiser.log, f"'{node.title}'")


def _check_export(node: Node, spec: Spec, networks: list[Networks]) -> tuple[str, ...]:
    """Return the exporter's warnings; raise a UserError where it would refuse a network.

    networks: made so far; exporters of inputs that are alike look at the same ones.
    """
    from dit_compress.export.check_early import Networks, check_early

    made = next((each for each in networks if _alike(each.spec, spec) and _sampled_alike(each.spec, spec)), None)
    if made is None:
        networks.append(made := Networks(spec))
    return tuple(f"{found.path}: {found.message}" for found in check_early(node.build(), spec, made))


def _sampled_alike(one: Spec, other: Spec) -> bool:
    """Tell whether the files of two bundles hold the same: one step, or the same steps."""
    return one.flow == other.flow or (one.flow.by_steps and other.flow.by_steps)


def _check_fit(spec: Spec) -> None:
    """Raise a UserError where the denoiser does not take what the VAE gives."""
    denoiser, channels = spec.outline(), spec.codec().channels
    if denoiser.channels != channels:
        raise UserError(
            f"the denoiser takes {denoiser.channels} latent channels, the VAE gives {channels}",
            mend=f"Set 'channels: {channels}' in 'model', or 'channels: {denoiser.channels}' in the latent step",
        )
    size = spec.latent_size() if spec.video else denoiser.patch
    if any(cells % step for cells, step in zip(size, denoiser.patch, strict=True)):
        raise UserError(
            f"latent {size} can't be divided by the denoiser's patch {denoiser.patch}", mend="Change the video size"
        )


def _check_captions(text: ComponentSpec, spec: Spec) -> None:
    """UserError where a denoiser does not take the embeddings that a text encoder gives."""
    denoiser = spec.outline()
    embedding = denoiser.example(1, denoiser.example_size)[2].get("embedding")
    width = cast("TextEncoder", text.outline).width
    if embedding is not None and embedding.shape[-1] != width:
        raise other_width(width, embedding.shape[-1])


def _check_beside(node: Node, spec: Spec, recipe: Recipe) -> None:
    """UserError where the data gives a first frame that the denoiser does not take, or training lacks what it needs."""
    from dit_compress.model.conditions import BEYOND_TEXT, IMAGE, first_conditions, need_conditions

    options = recipe.data.options if recipe.data else None
    if spec.denoiser is None or not isinstance(options, VideoOptions):
        return
    given = set(first_conditions(spec.outline())) if options.first_frame else set[str]()
    if spec.text is not None and cast("TextEncoder", spec.text.outline).sees is None and not options.encoded:
        given -= {IMAGE}
    if node.kind == "distill":
        need_conditions(spec.outline(), given, within=BEYOND_TEXT)


def _check_slots(
    node: Node, before: Spec, specs: Mapping[str, Spec], encoders: Mapping[str, Encoder | None], recipe: Recipe
) -> None:
    """UserError where a teacher of a training step can't be given the student's latents and captions.

    And where a model in it is one for the noise levels of one schedule: training draws any.
    """
    from dit_compress.structure.modulation import need_any_timestep

    if before.denoiser is not None:
        need_any_timestep(before.outline().module, "training")
    ours, others = encoder_at(node.inputs.get("input"), encoders), dict[str, Spec]()
    size = before.latent_size() if before.latent and before.video else None
    options = node.part.options
    for slot, source in node.inputs.items():
        spec = None if slot == "input" else _spec_of(source, specs, recipe)
        if spec is None or spec.denoiser is None:
            continue
        need_any_timestep(spec.outline().module, f"training from the {slot} {source!r}")
        mend = f"Name a {slot} that was trained on the latents of the step's input"
        channels, denoiser = before.codec().channels if before.latent else None, spec.outline()
        if channels not in (None, denoiser.channels):
            what = f"the {slot} {source!r} takes {denoiser.channels} latent channels, the step's input has {channels}"
            raise UserError(what, mend=mend)
        theirs = encoder_at(source, encoders)
        if ours and theirs and not ours.same(theirs):
            raise UserError(
                f"the {slot} {source!r} knows the latents of {theirs}, the input those of {ours}", mend=mend
            )
        if before.text is not None:
            _check_captions(before.text, spec)
        if isinstance(options, DistillOptions) and options.images and denoiser.patch[0] > 1:
            what = f"'images' are single latent frames, and a token of the {slot} {source!r} takes {denoiser.patch[0]}"
            raise UserError(what, mend=f"Take 'images' out, or name a {slot} with a patch of one frame")
        if size is not None and any(cells % step for cells, step in zip(size, denoiser.patch, strict=True)):
            what = f"latent {size} can't be divided by the patch {denoiser.patch} of the {slot} {source!r}"
            raise UserError(what, mend=f"Name another {slot}, or change the video size")
        others[slot] = spec
    if others and (errors := node.build().misfits(before, others)):
        raise UserError.join(errors)


def _spec_of(source: str, specs: Mapping[str, Spec], recipe: Recipe) -> Spec | None:
    """Return what an earlier step gives, or a bundle at a path; None for the first step's input."""
    if source in specs or not source:
        return specs.get(source)
    spec = Bundle.open(source).spec
    video = recipe.video or spec.video
    return replace(spec, video=video, data=recipe.data is not None, longest=recipe.longest)


def _consequence(node: Node, specs: Mapping[str, Spec], names: Set[str]) -> bool:
    """Tell whether a step failed only because an earlier one did."""
    return any(source in names and source not in specs for source in node.inputs.values())
