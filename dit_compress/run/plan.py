"""``plan``: walk the recipe without weights; what each step makes of the model, and what is cached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.spec import Spec
from dit_compress.recipe.model import BASE
from dit_compress.run.keys import nodes
from dit_compress.train.options import check_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.export.check_early import Networks
    from dit_compress.recipe.model import Recipe
    from dit_compress.run.keys import Node


@dataclass(frozen=True)
class Planned:
    """One step's row: the bundle it reads and the one it makes, in figures."""

    node: Node
    before: dict[str, Any]
    after: dict[str, Any]
    notes: tuple[str, ...]


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
    for node in nodes(recipe):
        source = node.inputs.get("input", "")
        try:
            before = _input_spec(node, specs, recipe)
            for part in node.together:
                check_parts(part.options, processes)
            after = _planned(node, before or Spec(video=recipe.video))
            figures[node.name] = (
                figures[source]
                if source in figures and before is not None and _alike(before, after)
                else describe(after)
            )
            fresh = after.notes[len(before.notes) :] if before else ()
            if deep and node.kind == "export":
                fresh += _check_export(node, after, networks)
            rows.append(Planned(node, figures.get(source, {}), figures[node.name], fresh))
            specs[node.name] = after
        except UserError as error:
            if not _consequence(node, specs, recipe):
                errors.append(_located(error, recipe, node))
    if errors:
        raise UserError.join(errors)
    return rows


def _alike(before: Spec, after: Spec) -> bool:
    """Tell whether a step leaves every shape as it was."""
    return replace(before, flow=after.flow, notes=after.notes) == after


def _planned(node: Node, before: Spec) -> Spec:
    step = node.build()
    for slot in node.needs:
        if slot not in node.inputs:
            raise UserError(f"step {node.name!r} has no {slot}", mend=f"Add '{slot}: <an earlier step>'")
    after = step.plan(before)
    if after.latent is not None and after.denoiser is not None and not _alike(before, after):
        _check_fit(after)
    return after


def _check_export(node: Node, spec: Spec, networks: list[Networks]) -> tuple[str, ...]:
    """Return the exporter's warnings; raise a UserError where it would refuse a network.

    networks: made so far; exporters of inputs that are alike look at the same ones.
    """
    from dit_compress.export.check_early import Networks, check_early

    made = next((each for each in networks if _alike(each.spec, spec)), None)
    if made is None:
        networks.append(made := Networks(spec))
    return tuple(f"{found.path}: {found.message}" for found in check_early(node.build(), spec, made))


def _check_fit(spec: Spec) -> None:
    """Raise a UserError where the denoiser does not take what the VAE gives."""
    denoiser, channels = spec.build_denoiser(), spec.codec().channels
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


def _input_spec(node: Node, specs: Mapping[str, Spec], recipe: Recipe) -> Spec | None:
    source = node.inputs.get("input")
    if source is None:
        return None
    if source in specs:
        return specs[source]
    spec = Bundle.open(source).spec
    return replace(spec, video=recipe.video or spec.video)


def _consequence(node: Node, specs: Mapping[str, Spec], recipe: Recipe) -> bool:
    """Tell whether a step failed only because an earlier one did."""
    source = node.inputs.get("input")
    return source in {other.name for other in nodes(recipe)} and source not in specs


def _located(error: UserError, recipe: Recipe, node: Node) -> UserError:
    """Return the same problems with the recipe's file and the step's line."""
    place = f"{recipe.path}:{node.line}" if recipe.path and node.line else f"step {node.name}"
    if node.name == BASE and recipe.model is not None:
        place = recipe.model.where or place
    inside = node.kind == "export"  # a place in the model says nothing of the step that exports it
    error.problems = [
        (f"{place}: {where}" if where and inside else where or place, what, mend)
        for where, what, mend in error.problems
    ]
    return error
