"""The step: choose blocks, replace their self-attention, and say how near the model stays to what it was."""

from __future__ import annotations

from dataclasses import replace as replaced
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress_plugins.transform_attention import AttentionOptions
from dit_compress_plugins.transform_attention.forms import Form
from dit_compress_plugins.transform_attention.global_local import GlobalLocal
from dit_compress_plugins.transform_attention.linconv import LinearConvolution
from dit_compress_plugins.transform_attention.places import Replaceable, replaceable
from dit_compress_plugins.transform_attention.search import LayoutSearch, need_blocks
from dit_compress_plugins.transform_attention.stride import Strided
from dit_compress_plugins.transform_attention.swap import Mixer, insert, watch_grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result

NAME, REVISION = "attention", 1
FULL = "full"


class AttentionTransform:
    """Step ``transform: {use: attention, …}``."""

    def __init__(self, options: AttentionOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the model with other attentions; reads no weights."""
        denoiser = spec.build_denoiser().to("meta")
        found = replaceable(denoiser)
        if self.options.layout is not None:
            kinds, note = self.search(denoiser, found).foreseen(spec)
            notes = [note]
        else:
            kinds, left = chosen(found, self.options.blocks)
            notes = [f"{block} keeps its attention: {why}" for block, why in left.items()]
        entry = entry_of(found, kinds, self.options)
        return replaced(spec, denoiser=spec.need_denoiser().appended(entry), notes=(*spec.notes, *notes))

    def run(self, context: Context) -> Result:
        """Replace the attentions and write a bundle."""
        denoiser = context.input.denoiser()
        found, metrics, files = replaceable(denoiser), dict[str, Any](), dict[str, str]()
        if self.options.layout is not None:
            search, spec = self.search(denoiser, found), context.input.spec
            kinds, metrics = search.settled(replaced(spec, video=context.video or spec.video), context)
            files = search.files
        else:
            kinds, _ = chosen(found, self.options.blocks)
        entry = entry_of(found, kinds, self.options)
        put(denoiser, entry)
        return replaced(context.give({"denoiser": denoiser.module}, log=[entry], metrics=metrics), files=files)

    def search(self, denoiser: Denoiser, found: Replaceable) -> LayoutSearch:
        """Return the search of a layout over the blocks that can be replaced."""
        kinds = {
            block: (FULL, *(kind for kind in self.options.offer if kind not in (FULL, *place.why_not)))
            for block, place in found.places.items()
        }
        need_blocks(kinds, found.refused)
        return LayoutSearch(
            self.options, denoiser, kinds, lambda made, layout: put(made, entry_of(found, layout, self.options))
        )

    @staticmethod
    def replay(module: nn.Module, data: Mapping[str, Any]) -> None:
        """Put mixers into the attentions of a module without weights."""
        watch_grid(module, data["axes"])
        for place in data["places"]:
            insert(module.get_submodule(place["owner"]), mixer_of(place))


def replace(denoiser: Denoiser, kinds: Mapping[str, str], options: AttentionOptions | None = None) -> dict[str, Any]:
    """Replace self-attentions in place, by path of the block; return the entry of the transform log.

    ``full`` leaves a block as it is. UserError where a block's self-attention can't become what is asked.
    """
    entry = entry_of(replaceable(denoiser), kinds, options or AttentionOptions(blocks={"*": FULL}))
    put(denoiser, entry)
    return entry


def put(denoiser: Denoiser, entry: Mapping[str, Any]) -> None:
    """Put new attentions in their places, with what they begin with."""
    AttentionTransform.replay(denoiser.module, entry["data"])
    weight = next(denoiser.module.parameters())
    for place in entry["data"]["places"]:
        mixer: Any = denoiser.module.get_submodule(f"{place['owner']}.mixer".lstrip("."))
        mixer.to(weight)
        mixer.start()
    denoiser.forget_structure()


def chosen(found: Replaceable, blocks: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return kinds by block, and why blocks that only a pattern names are left.

    UserError where a block that is named can't be replaced, or where a name or pattern fits none.
    """
    known = [*found.places, *found.refused]
    for pattern in blocks:
        if not any(fnmatchcase(block, pattern) for block in known):
            raise UserError(f"'blocks' names {pattern!r}; there are {', '.join(known)}", mend="Name one of them")
    kinds: dict[str, str] = {}
    left: dict[str, str] = {}
    for block in known:
        pattern = next((pattern for pattern in blocks if fnmatchcase(block, pattern)), None)
        if pattern is None or blocks[pattern] == FULL:
            continue
        why = why_not(found, block, blocks[pattern])
        if why is None:
            kinds[block] = blocks[pattern]
        elif pattern == block:
            raise refusal(block, blocks[pattern], why)
        else:
            left[block] = why
    if left and not kinds:
        block, why = next(iter(left.items()))
        raise refusal(block, blocks[next(pattern for pattern in blocks if fnmatchcase(block, pattern))], why)
    return kinds, left


def why_not(found: Replaceable, block: str, kind: str) -> str | None:
    """Return why a block's self-attention can't become this kind; None if it can."""
    if block in found.places:
        return found.places[block].why_not.get(kind)
    return found.refused.get(block, "there is no such block")


def refusal(block: str, kind: str, why: str) -> UserError:
    """Return the error that names block, kind and reason."""
    return UserError(
        f"the self-attention of {block!r} can't become {kind!r}: {why}",
        mend="Leave the block out, or name it by a pattern ('*'), which leaves what can't be replaced",
    )


def entry_of(found: Replaceable, kinds: Mapping[str, str], options: AttentionOptions) -> dict[str, Any]:
    """Return the entry of the transform log."""
    places = []
    for block, kind in kinds.items():
        if kind == FULL:
            continue
        if (why := why_not(found, block, kind)) is not None:
            raise refusal(block, kind, why)
        own = getattr(options, kind).model_dump(mode="json")
        places.append({"kind": kind, **found.places[block].data(), "options": own})
    return {"name": NAME, "revision": REVISION, "data": {"axes": found.axes, "places": places}}


def mixer_of(place: Mapping[str, Any]) -> Mixer:
    """Make the mixer of one place of a transform log."""
    heads, width, own = place["heads"], place["width"], place["options"]
    if place["kind"] == "stride":
        return Strided(call=place["call"], **own)
    if place["kind"] == "global_local":
        reads, tokens = place["reads"]
        return GlobalLocal(heads, width, tokens, call=place["call"], reads=reads, **own)
    features = {side: Form(**place[side]) for side in ("query", "key")}
    return LinearConvolution(heads, width, call=place["call"], features=features, **own)
