"""The step: find groups of channels, choose which go, prove it, write the bundle."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch_pruning.pruner import importance as library

from dit_compress.core.errors import UserError
from dit_compress.core.files import write_json
from dit_compress.core.progress import say
from dit_compress.model.halves import CELLS, halves, latent_frames
from dit_compress.search.importance import top
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import LOG_NAME, TOLERANCE, CompactionError, log_data
from dit_compress.structure.copies import meta_copy
from dit_compress.structure.edits import REVISION, compile_edits
from dit_compress_plugins.prune_channels.groups import Channels, channels_of
from dit_compress_plugins.prune_channels.proof import count, distance, exact, filled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress.structure.facts import Axis, Kept
    from dit_compress_plugins.prune_channels import ChannelsOptions

CLASSES = {
    "magnitude": library.GroupMagnitudeImportance,
    "lamp": library.LAMPImportance,
    "fpgm": library.FPGMImportance,
}
LONG = 2
"""Frame steps of the latent that is decoded in the proof: blocks with a memory are called on from one."""

NAMED = 3
"""Layers of one reason that are named."""


@dataclass(frozen=True)
class Chosen:
    """What goes. decoder: names of the decoder's tensors. left: layer → why nothing of it goes."""

    axes: list[Axis]
    kept: Kept
    left: Mapping[str, str]
    decoder: frozenset[str]
    before: int

    def edits(self, codec: nn.Module) -> list[Any]:
        """Return the edit table."""
        return compile_edits(codec, self.axes, self.kept)

    def entry(self, codec: nn.Module) -> dict[str, Any]:
        """Return the entry of the transform log: the engine's own edits, so that bundles load without this plugin."""
        return {"name": LOG_NAME, "revision": REVISION, "data": log_data(self.axes, self.kept, self.edits(codec))}


class ChannelPruning:
    """Step ``prune: {use: channels, …}``."""

    def __init__(self, options: ChannelsOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle with a smaller decoder; random values stand for its weights."""
        component, codec = spec.need_latent(), spec.codec()
        chosen = self.choose(codec, values=False)
        small: Any = meta_copy(codec)  # type: ignore[type-var]
        entry = chosen.entry(small)
        apply_edits(small, chosen.edits(small))
        note = (
            f"{chosen.before:,} → {count(small, chosen.decoder):,} parameters in the decoder; {self.described(chosen)}"
        )
        return replace(spec, latent=component.appended(entry), notes=(*spec.notes, note))

    def run(self, context: Context) -> Result:
        """Cut the decoder of the input's VAE; its latents stay as they are."""
        spec, codec = context.input.spec, context.input.codec()
        module: Any = codec
        chosen = self.choose(codec, values=True)
        say(f"proving that {type(codec).__name__} cut equals it masked")
        error = distance(module, latent_of(codec), chosen.axes, chosen.kept)
        if not error <= TOLERANCE:
            raise CompactionError(f"masked and compact differ by {error:.1e} of the largest value")
        entry = chosen.entry(module)
        apply_edits(module, chosen.edits(module))
        after = count(module, chosen.decoder)
        write_json(context.folder / "channels.json", {"kept": entry["data"]["kept"], "left": dict(chosen.left)})
        metrics: dict[str, Any] = {
            "params_before": chosen.before,
            "params_after": after,
            "params_kept": after / chosen.before,
        }
        metrics |= {"left_alone": [self.described(chosen)]} if chosen.left else {}
        latent = replace(spec.need_latent().appended(entry), latents=context.input.latents)
        given = context.give({"latent": module}, spec=replace(spec, latent=latent), metrics=metrics)
        return replace(given, files={"channels": "channels.json"})

    def described(self, chosen: Chosen) -> str:
        """Show ``channels of 6 groups; nothing of decoder.stem (it stands in no block of several layers)``."""
        whole = "; ".join(f"{layers} ({reason})" for reason, layers in _by_reason(chosen.left).items())
        return f"channels of {len(chosen.axes)} groups" + (f"; nothing of {whole}" if whole else "")

    def choose(self, codec: Any, *, values: bool) -> Chosen:
        """Choose the channels that stay.

        Raises:
            UserError: no channel can go, or not as many as ``params`` asks for.
        """
        decoder, latent = halves(codec).decoder, latent_of(codec)
        probe = filled(codec, decoder)
        found, left = channels_of(codec if values else probe, latent, decoder)
        some = {one.axis.name: self.kept(one, 0.5) for one in found}
        refused = exact(probe, latent, [one.axis for one in found], some)
        left |= {layer: refused[one.axis.name] for one in found if one.axis.name in refused for layer in one.layers}
        found = [one for one in found if one.axis.name not in refused]
        if not found:
            reasons = "; ".join(f"{layers}: {reason}" for reason, layers in _by_reason(left).items())
            raise UserError(
                f"no channel of the decoder of {type(codec).__name__} can be cut exactly: {reasons}",
                mend="Train a small decoder onto its latents instead: latent: {use: decoder}",
            )
        before = count(codec, decoder)
        kept = self.at(self.ratio(codec, found, decoder, before), found)
        return Chosen([one.axis for one in found], kept, left, decoder, before)

    def at(self, ratio: float, found: list[Channels]) -> Kept:
        """Return the channels that stay where a share of each group goes."""
        return {one.axis.name: self.kept(one, ratio) for one in found}

    @torch.no_grad()
    def kept(self, one: Channels, ratio: float) -> tuple[int, ...]:
        """Return the channels of a group that stay, by the library's importance."""
        units, step = one.axis.units, self.options.multiple_of
        keep = min(units, max(1, math.ceil(round((1 - ratio) * units / step, 6))) * step)
        return top(CLASSES[self.options.importance](p=self.options.p)(one.group), keep)

    def ratio(self, codec: Any, found: list[Channels], decoder: frozenset[str], before: int) -> float:
        """Return the option, or the smallest share at which the decoder has at most ``params`` parameters."""
        if self.options.ratio is not None:
            return self.options.ratio
        asked = self.options.params or 0.0
        most = asked * before if asked < 1 else asked

        def size(ratio: float) -> int:
            small = meta_copy(codec)
            apply_edits(small, compile_edits(small, [one.axis for one in found], self.at(ratio, found)))
            return count(small, decoder)

        low, high = 0.0, 1.0
        if (least := size(high)) > most:
            raise UserError(
                f"the decoder has {before:,} parameters, and at least {least:,} with as many channels cut as can be",
                mend=f"Set 'params' to {least:,} or more, or train a small decoder: latent: {{use: decoder}}",
            )
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (low, middle) if size(middle) <= most else (middle, high)
        return high


def _by_reason(left: Mapping[str, str]) -> dict[str, str]:
    """Name the layers that are left alone for each reason: three of them, and how many more."""
    layers: dict[str, list[str]] = {}
    for path, reason in left.items():
        layers.setdefault(reason, []).append(path)
    return {
        reason: ", ".join(paths[:NAMED]) + (f" and {len(paths) - NAMED} more" if len(paths) > NAMED else "")
        for reason, paths in layers.items()
    }


def latent_of(codec: Any) -> Tensor:
    """Return a small latent to decode, the same always."""
    shape = (1, codec.channels, latent_frames(codec, LONG), CELLS, CELLS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
