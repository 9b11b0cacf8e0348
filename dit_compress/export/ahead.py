"""What would break an export, before anything is trained: ``check`` over components without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from dit_compress.errors import UserError
from dit_compress.export.components import dit_step, text_component, vae_decoder
from dit_compress.export.package import check_components
from dit_compress.export.phone import on_device
from dit_compress.export.step import CAPTIONS

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.export.types import Component, Diagnostic
    from dit_compress.spec import Spec


def check_ahead(exporter: Any, spec: Spec, made: list[Component] | None = None) -> list[Diagnostic]:
    """Warnings of the exporter's check over the networks that ``spec`` describes, on the meta device.

    made: takes the networks of ``spec``, or holds them: those of one list are traced once for all exporters.

    Raises:
        UserError: the check found errors.
    """
    if not hasattr(exporter, "check"):
        return []
    made = [] if made is None else made
    if not made:
        made += components_ahead(spec)
    return check_components(exporter, made, exporter.profile)


def components_ahead(spec: Spec) -> list[Component]:
    """The components of an export, of the right shapes and without values: fake tensors, as tracers make them.

    Not the meta device: what a network makes on the way (``like.new_tensor(...)``) is traced as on a CPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # torch.export itself has no other door

    found: list[Component] = []
    if spec.text is None:
        raise UserError("the bundle has no text encoder", mend="Name a 'text' in the recipe")
    encoder: Any = spec.text.build()
    tokens = {name: encoder.tokenize([caption]) for name, caption in CAPTIONS.items()} if on_device(encoder) else None
    denoiser, codec, size = spec.build_denoiser(), cast("nn.Module", spec.codec()), spec.latent_size()
    channels = spec.codec().channels
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (denoiser.module, codec, *([encoder] if tokens else [])):
            module.to_empty(device="cpu")
        if tokens:
            typical: dict[str, Any] = {
                name: mode.from_tensor(value.to(torch.int32)) for name, value in tokens["typical"].items()
            }
            found.append(text_component(encoder, typical, ("text", "text_mask")))
        latent, _, cond = denoiser.example(1, size)
        found.append(dit_step(denoiser, latent, dict(cond)))
        found.append(vae_decoder(codec, torch.empty(1, channels, *size)))
    return found
