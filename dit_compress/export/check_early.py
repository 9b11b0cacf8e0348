"""The check of an export before anything is trained: ``check`` over components without weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch

from dit_compress.core.errors import UserError
from dit_compress.export.components import DIT_STEP, DIT_WALK, dit_component, text_component, vae_decoder
from dit_compress.export.contract import is_exporter
from dit_compress.export.inputs import without_unused
from dit_compress.export.inspection import count_weights
from dit_compress.export.package import check_components
from dit_compress.export.phone import on_device
from dit_compress.export.sizes import further
from dit_compress.export.step import CAPTIONS
from dit_compress.export.widths import narrowed
from dit_compress.model.one_of_each import shorten

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.export.component import Component
    from dit_compress.export.contract import Exporter
    from dit_compress.export.types import Diagnostic
    from dit_compress.model.protocols import Codec
    from dit_compress.model.spec import Spec
    from dit_compress.step.protocols import Step


STEPS = 2
"""Of a graph of several, those that are looked at: the others have the same operators."""


class Networks:
    """The networks that a spec describes, as components without values; made and traced once for all exporters."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @cached_property
    def short(self) -> list[Component]:
        """With one block of each shape: traced in a fraction of the time."""
        return [without_unused(each) for each in components_early(self.spec, short=True)]

    @cached_property
    def whole(self) -> list[Component]:
        """With every block; what has no blocks is the same as in ``short``."""
        (dit,) = (each for each in components_early(self.spec) if each.name in (DIT_STEP, DIT_WALK))
        dit = without_unused(dit)
        return [dit if each.name == dit.name else each for each in self.short]


def check_early(exporter: Step, spec: Spec, networks: Networks | None = None) -> list[Diagnostic]:
    """Return warnings of the exporter's check over the networks that ``spec`` describes.

    What it objects to is asked again of the whole networks: every place is named, and none for a block left out.

    networks: those of ``spec``, where other exporters look at them too.

    Raises:
        UserError: the check found errors. A step that is no :class:`Exporter` is not asked.
    """
    if not is_exporter(exporter):
        return []
    whole = networks if exporter.widths is None else None
    found: list[Diagnostic] = []
    for each in narrowed(spec, exporter.widths):
        others = [Networks(replace(each, video=video)) for video in further(exporter.sizes, spec.video)]
        for asked in (whole or Networks(each), *others):
            found += [warning for warning in _check(exporter, asked) if warning not in found]
    return found


def _check(exporter: Exporter, networks: Networks) -> list[Diagnostic]:
    try:
        return check_components(exporter, networks.short, exporter.profile)
    except UserError:
        return check_components(exporter, networks.whole, exporter.profile)


def components_early(spec: Spec, *, short: bool = False) -> list[Component]:
    """Return the components of an export with the right shapes, without values: fake tensors, as tracers make them.

    short: the denoiser has one block of each shape; its size is that of the whole.
    Not the meta device: what a network makes on the way (``like.new_tensor(...)``) is traced as on a CPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # torch.export itself has no other door

    found: list[Component] = []
    if spec.text is None:
        raise UserError("the bundle has no text encoder", mend="Name a 'text' in the recipe")
    encoder: Any = spec.text.build()
    tokens = {name: encoder.tokenize([caption]) for name, caption in CAPTIONS.items()} if on_device(encoder) else None
    denoiser, codec, size = spec.build_denoiser(), cast("Codec", spec.need_latent().build()), spec.latent_size()
    channels, num_weights = codec.channels, count_weights(denoiser.module)
    fixed = spec.flow.fixed(lambda: denoiser)
    if short:
        shorten(denoiser)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (denoiser.module, cast("nn.Module", codec), *([encoder] if tokens else [])):
            module.to_empty(device="cpu")
        if tokens:
            typical: dict[str, Any] = {
                name: mode.from_tensor(value.to(torch.int32)) for name, value in tokens["typical"].items()
            }
            found.append(text_component(encoder, typical, ("text", "text_mask")))
        latent, _, cond = denoiser.example(1, size)
        found.append(replace(dit_component(denoiser, latent, cond, spec.flow, fixed, STEPS), num_weights=num_weights))
        if codec.decodes:
            found.append(vae_decoder(cast("nn.Module", codec), torch.empty(1, channels, *size)))
        return found
