"""What would break an export, before anything is trained: ``check`` over components without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from dit_compress.export.components import dit_step, text_encoder, vae_decoder
from dit_compress.export.package import check_components
from dit_compress.export.phone import on_device
from dit_compress.export.step import CAPTIONS

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.export.types import Component, Diagnostic
    from dit_compress.spec import Spec


def check_ahead(exporter: Any, spec: Spec) -> list[Diagnostic]:
    """Warnings of the exporter's check over the networks that ``spec`` describes, on the meta device.

    Raises:
        UserError: the check found errors.
    """
    if not hasattr(exporter, "check"):
        return []
    return check_components(exporter, components_ahead(spec), exporter.profile)


def components_ahead(spec: Spec) -> list[Component]:
    """The components of an export, of the right shapes and without values."""
    found: list[Component] = []
    if spec.text is not None:
        encoder: Any = spec.text.build()
        if on_device(encoder):
            found.append(text_encoder(encoder.to("meta"), CAPTIONS))
    denoiser = spec.build_denoiser()
    size = spec.latent_size()
    denoiser.module.to("meta")
    latent, _, cond = denoiser.example(1, size)
    found.append(dit_step(denoiser, latent.to("meta"), {name: value.to("meta") for name, value in cond.items()}))
    codec = cast("nn.Module", spec.codec()).to("meta")
    shape = (1, spec.codec().channels, *size)
    found.append(vae_decoder(codec, torch.empty(shape, device="meta")))
    return found
