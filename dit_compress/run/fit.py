"""What must fit together before a step runs: its needs, captions, latents of a teacher. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.plugin.options import VideoOptions, marked
from dit_compress.plugin.registry import installed
from dit_compress.recipe.model import BASE
from dit_compress.run.keys import nodes
from dit_compress.train.options import DistillOptions, check_objectives

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.recipe.model import Recipe
    from dit_compress.run.keys import Node


def check_needs(recipe: Recipe) -> None:
    """Raise one UserError with what every step of a recipe lacks, as far as the recipe alone says it."""
    errors = []
    for node in nodes(recipe):
        try:
            need(node, recipe)
        except UserError as error:
            errors.append(located(error, recipe, node))
    if errors:
        raise UserError.join(errors)


def need(node: Node, recipe: Recipe) -> None:
    """UserError where a step lacks a slot, clips or captions, or the recipe's captions do not fit its model."""
    if node.name == BASE:
        _need_width(recipe)
    for slot in node.needs:
        if slot not in node.inputs:
            raise UserError(f"step {node.name!r} has no {slot}", mend=f"Add '{slot}: <an earlier step>'")
    if node.needs_data and recipe.data is None:
        raise UserError(f"step {node.name!r} needs clips", mend="Name a 'data' source in the recipe")
    _need_one_size(node, recipe)
    _need_unseen_images(node, recipe)
    if wrong := [*_idle(node), *(error for part in node.inner for error in check_objectives(part))]:
        raise UserError.join(wrong)
    trains = any(part.kind == "distill" for part in node.inner)
    if trains:
        _need_any_schedule(node, recipe)
    if trains and not _has_text(node.inputs.get("input"), recipe):
        raise UserError(f"step {node.name!r} needs a text encoder", mend="Name a 'text' in the recipe")


def _need_one_size(node: Node, recipe: Recipe) -> None:
    """UserError where the data has clips of several sizes, and a step can't take them."""
    for part in node.inner if len(recipe.videos) > 1 else ():
        if (part.plugin.data or part.options.reads_data != "no") and not part.options.any_size:
            raise UserError(
                f"step {node.name!r} reads clips of one size ({part.kind}: {part.name}), the data has "
                f"{len(recipe.videos)}",
                mend="Give the data one 'size' in place of 'sizes', in a recipe of this step's own",
            )


def _need_unseen_images(node: Node, recipe: Recipe) -> None:
    """UserError where a training on first frames is told them."""
    data = recipe.data.options if recipe.data is not None else None
    if not (isinstance(data, VideoOptions) and data.first_frame):
        return
    if any(isinstance(part.options, DistillOptions) and part.options.images for part in node.inner):
        raise UserError(
            "'images' trains on the first frames of clips, and 'first_frame' of 'data' gives them away",
            mend="Take one of the two out",
        )


def _idle(node: Node) -> list[UserError]:
    """Return what to say of options that belong to slots which the step does not have, and of slots that do nothing."""
    if "step" not in node.parts:
        return []
    options = node.part.options
    found = [
        UserError(f"the {slot} {node.inputs[slot]!r} belongs to {to}", mend=f"Take '{slot}' out, or give that")
        for slot, to in options.idle_slots.items()
        if slot in node.inputs
    ]
    for slot, names in options.for_slots.items():
        given = [repr(name) for name in names if options.differs(name)]
        if given and slot not in node.inputs:
            what = f"{' and '.join(given)} belong{'' if given[1:] else 's'} to a {slot}, and the step has none"
            found.append(UserError(what, mend=f"Add '{slot}: <an earlier step>', or leave out what does nothing"))
    return found


def _need_any_schedule(node: Node, recipe: Recipe) -> None:
    """UserError where a step trains with a model that an earlier step made for the noise levels of one schedule."""
    for slot, given in node.inputs.items():
        source: str | None = given
        while source is not None and (step := recipe.step(source)) is not None:
            if step.part.options.one_schedule:
                raise UserError(
                    f"step {node.name!r} trains at any noise level, and since step {source!r} "
                    f"its {slot} knows those of one schedule",
                    mend=f"Put step {source!r} behind this one",
                )
            source = step.inputs.get("input")


def _need_width(recipe: Recipe) -> None:
    """UserError where model and text encoder say in their options that they do not fit."""
    if recipe.model is None or recipe.text is None:
        return
    taken, given = recipe.model.options.caption_width, recipe.text.options.caption_width
    if taken is not None and given is not None and taken != given:
        raise other_width(given, taken, recipe.text.where)


def other_width(given: int, taken: int, where: str = "") -> UserError:
    """Return what to say of captions that a model can't take."""
    return UserError(
        f"the text encoder gives embeddings of width {given}, the model takes {taken}",
        where=where,
        mend="Give 'width' of 'text' and 'text_width' of 'model' the same value",
    )


def _has_text(source: str | None, recipe: Recipe) -> bool:
    """Whether captions can be encoded where a step reads ``source``; that there is a model is told elsewhere."""
    while source is not None and (step := recipe.step(source)) is not None:
        source = step.inputs.get("input")
    if source in (None, BASE):
        return recipe.text is not None or recipe.model is None
    return "text" in Bundle.open(source).data["components"]


def place_of(recipe: Recipe, node: Node) -> str:
    """Name file and line of a step, as far as there are any; of the first step those of 'model'."""
    if node.name == BASE and recipe.model is not None and recipe.model.where:
        return recipe.model.where
    return f"{recipe.path}:{node.line}" if recipe.path and node.line else f"step {node.name}"


def located(error: UserError, recipe: Recipe, node: Node) -> UserError:
    """Return the same problems with the recipe's file and the step's line."""
    place = place_of(recipe, node)
    inside = node.kind == "export"  # a place in the model says nothing of the step that exports it
    error.problems = [
        (f"{place}: {where}" if where and inside else where or place, what, mend)
        for where, what, mend in error.problems
    ]
    return error


# ------------------------------------------------------------------ whose latents


@dataclass(frozen=True)
class Encoder:
    """The VAE whose latents a model works on: that of a step of the recipe, or of a bundle from elsewhere."""

    node: Node | None = None
    bundle: Bundle | None = None
    seed: int = 0

    def __str__(self) -> str:
        return f"step {self.node.name!r}" if self.node else str(self.bundle.path if self.bundle else "")

    def same(self, other: Encoder) -> bool:
        """Tell whether both are one VAE, as far as it is known before their weights are: if in doubt, they are."""
        if self.node and other.node:
            return self.node.name == other.node.name or _exactly(self.node) == _exactly(other.node)
        if self.bundle and other.bundle:
            return self.bundle.latents == other.bundle.latents
        ours, theirs = self._made(), other._made()
        return not (ours and theirs) or all(theirs.get(name, value) == value for name, value in ours.items())

    def _made(self) -> dict[str, Any]:
        """Plugin, options but for files, and seed of the step that made it; nothing where no record says."""
        seed: dict[str, Any]
        if self.node:
            step = self.node.describe()["step"]
            seed = {"seed": self.seed} if self.node.reads_data else {}
        else:
            lineage = self.bundle.lineage if self.bundle else []
            made = [entry for entry in lineage if entry["kind"] == "latent"]
            entry = made[-1] if made else {}
            step, seed = entry.get("parts", {}).get("step"), {"seed": entry.get("seed")}
        if step is None:
            return {}
        try:
            files = marked(installed().get("latent", step["plugin"]).options)
        except UserError:
            return {}
        options = {f"option {name}": value for name, value in step["options"].items() if name not in files}
        return {"plugin": step["plugin"], **options, **seed}


def _exactly(node: Node) -> Any:
    return node.describe(contents=True), dict(node.inputs) if node.needs else {}


def encoder_of(node: Node, encoders: Mapping[str, Encoder | None], seed: int) -> Encoder | None:
    """Return the VAE whose latents belong to what a step gives; None where there is none.

    encoders: those of the steps before.
    """
    if node.kind == "latent" and not node.part.options.keeps_latents:
        part = replace(node.part, options=node.part.options.of_latents)
        return Encoder(node=replace(node, parts={**node.parts, "step": part}), seed=seed)
    return encoder_at(node.inputs.get("input"), encoders)


def encoder_at(source: str | None, encoders: Mapping[str, Encoder | None]) -> Encoder | None:
    """Return the VAE of an earlier step, or of a bundle at a path."""
    if source is None or source in encoders:
        return encoders.get(source or "")
    bundle = Bundle.open(source)
    return Encoder(bundle=bundle) if "latent" in bundle.data["components"] else None
