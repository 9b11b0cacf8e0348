"""The step: choose blocks, replace their self-attention, and say how near the model stays to what it was."""

from __future__ import annotations

import copy
from dataclasses import replace as replaced
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import write_json
from dit_compress.measure.figure3 import latent_size
from dit_compress.measure.quality import data_grid, drift_grid
from dit_compress_plugins.transform_attention import AttentionOptions
from dit_compress_plugins.transform_attention.forms import Form
from dit_compress_plugins.transform_attention.global_local import GlobalLocal
from dit_compress_plugins.transform_attention.linconv import LinearConvolution
from dit_compress_plugins.transform_attention.nearness import Rows, answers, error, fit, outputs, run
from dit_compress_plugins.transform_attention.places import Replaceable, replaceable
from dit_compress_plugins.transform_attention.search import LayoutSearch, need_blocks
from dit_compress_plugins.transform_attention.stride import Strided
from dit_compress_plugins.transform_attention.swap import MIXER, Mixer, insert, watch_grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress.structure.choices import Layout

NAME, REVISION = "attention", 1
FULL = "full"
ROWS = 4
"""Clips on which attentions are fitted and compared, each at every noise level."""


class AttentionTransform:
    """Step ``transform: {use: attention, …}``."""

    def __init__(self, options: AttentionOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the model with other attentions; reads no weights."""
        found = replaceable(spec.outline())
        if self.options.layout is not None:
            kinds, note = self.search(spec.build_denoiser(), found).foreseen(spec)
            notes = [note]
        else:
            kinds, left = chosen(found, self.options.blocks)
            notes = [f"{block} keeps its attention: {why}" for block, why in left.items()]
        entry = entry_of(found, kinds, self.options)
        return replaced(spec, denoiser=spec.need_denoiser().appended(entry), notes=(*spec.notes, *notes))

    def run(self, context: Context) -> Result:
        """Replace the attentions, bring each near to what it was, and write a bundle."""
        denoiser = context.input.denoiser().eval()
        found, metrics, files = replaceable(denoiser), dict[str, Any](), {"attention": "attention.json"}
        rows, left = rows_of(context, denoiser), found.refused
        if self.options.layout is not None:
            search, spec = self.search(denoiser, found, rows), context.input.spec
            kinds, metrics = search.settled(replaced(spec, video=context.video or spec.video), context)
            files |= search.files
        else:
            kinds, left = chosen(found, self.options.blocks)
        for block, why in left.items():
            context.say(f"{block} keeps its attention: {why}")
        entry, blocks = nearest(denoiser, kinds, self.options, rows)
        if blocks:
            metrics |= summary(blocks)
            context.say(f"{len(blocks)} attentions replaced; their blocks differ by {metrics['block_error_mean']:.2%}")
        write_json(context.folder / "attention.json", {"blocks": blocks, "left": left})
        return replaced(context.give({"denoiser": denoiser.module}, log=[entry], metrics=metrics), files=files)

    def search(self, denoiser: Denoiser, found: Replaceable, rows: Rows | None = None) -> LayoutSearch:
        """Return the search of a layout over the blocks that can be replaced. rows: for those that are tried."""
        kinds = {
            block: (FULL, *(kind for kind in self.options.offer if kind not in (FULL, *place.why_not)))
            for block, place in found.places.items()
        }
        need_blocks(kinds, found.refused)
        fitted: dict[tuple[str, str], Any] = {}

        def put_layout(made: Denoiser, layout: Layout) -> None:
            put(made, entry_of(found, layout, self.options))

        def near(made: Denoiser, layout: Layout) -> None:
            put_layout(made, layout)
            for block, kind in layout.items():
                if kind != FULL:
                    if (block, kind) not in fitted:
                        alone = copy.deepcopy(denoiser)
                        nearest(alone, {block: kind}, self.options, rows or [])
                        fitted[block, kind] = mixer_at(alone, found.places[block].data()).state_dict()
                    mixer_at(made, found.places[block].data()).load_state_dict(fitted[block, kind])

        return LayoutSearch(self.options, denoiser, kinds, put_layout, near)

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
        mixer = mixer_at(denoiser, place)
        mixer.to(weight)
        mixer.start()
    denoiser.forget_structure()


def nearest(
    denoiser: Denoiser, kinds: Mapping[str, str], options: AttentionOptions, rows: Rows
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Replace self-attentions in place and fit each to what it gave; the log's entry, and figures by block.

    kind; ``start``: relative error of the attention as it began; ``attention``: after the fit; ``block``: that of the
    block's output, which has its stream in it.
    """
    places, streams = replaceable(denoiser).places, outputs(denoiser.structure().stacks)
    owners = {block: places[block].owner for block, kind in kinds.items() if kind != FULL and block in places}
    own = answers(denoiser, rows, dict.fromkeys(owners.values()))
    blocks = answers(denoiser, rows, {block: streams[block] for block in owners})
    entry = replace(denoiser, kinds, options)
    run(denoiser, rows[:1])  # so that the mixers know the grid
    figures: dict[str, dict[str, Any]] = {}
    for (block, path), place in zip(owners.items(), entry["data"]["places"], strict=True):
        owner = denoiser.module.get_submodule(path)
        start = error(owner, own[path])
        fit(owner, mixer_at(denoiser, place), own[path], options.fit)
        figures[block] = {"kind": kinds[block], "start": start, "attention": error(owner, own[path])}
        figures[block]["block"] = error(denoiser.module.get_submodule(block), blocks[block], streams[block])
    return entry, figures


def rows_of(context: Context, denoiser: Denoiser) -> Rows:
    """Return a clip of the training data at every noise level; noise where there is no data, VAE or text encoder."""
    spec, flow = context.input.spec, context.input.flow
    if spec.latent is None or spec.text is None or "data" not in context.parts:
        return list(drift_grid(denoiser, latent_size(context, denoiser), ROWS, flow).rows)
    text = context.text()
    return list(data_grid(context.latents("train", text), text, flow, ROWS, denoiser.possible).rows)


def summary(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and maximum of the figures over all blocks."""
    metrics: dict[str, Any] = {"replaced": len(blocks)}
    for name in ("start", "attention", "block"):
        values = [figures[name] for figures in blocks.values()]
        metrics |= {f"{name}_error_mean": sum(values) / len(values), f"{name}_error_max": max(values)}
    return metrics


def mixer_at(denoiser: Denoiser, place: Mapping[str, Any]) -> Any:
    """Return the mixer of one place of a transform log."""
    return denoiser.module.get_submodule(place["owner"]).get_submodule(MIXER)


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
        named = next((pattern for pattern in blocks if fnmatchcase(block, pattern)), None)
        if named is None or blocks[named] == FULL:
            continue
        why = why_not(found, block, blocks[named])
        if why is None:
            kinds[block] = blocks[named]
        elif named == block:
            raise refusal(block, blocks[named], why)
        else:
            left[block] = why
    if left and not kinds:
        block, why = next(iter(left.items()))
        raise UserError(
            f"no self-attention that 'blocks' names can be replaced: that of {block!r} can't become "
            f"{blocks[next(pattern for pattern in blocks if fnmatchcase(block, pattern))]!r}: {why}",
            mend="Leave this step out",
        )
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
        if kind == "linconv":
            own["frames"] = "T" in found.axes
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
