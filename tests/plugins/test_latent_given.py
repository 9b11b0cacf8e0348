"""Latents without a VAE: geometry, the bundle's component, and what has no pixels to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from toy import context_in, part

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.spec import Spec

if TYPE_CHECKING:
    from pathlib import Path


def test_a_cell_is_a_pixel() -> None:
    spec = part("latent", "given", channels=5).plan(Spec(video=(3, 4, 6)))
    assert spec.latent_size() == (3, 4, 6)
    assert spec.codec().channels == 5


def test_the_bundle_has_it_without_weights(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    made = part("latent", "given", channels=5).run(context).bundle
    codec = Bundle.open(made.path).codec()
    assert (codec.channels, codec.ratio) == (5, (1, 1, 1))
    assert list(codec.parameters()) == []


def test_pixels_are_refused(tmp_path: Path) -> None:
    codec = part("latent", "given").from_config({"channels": 2})
    with pytest.raises(UserError, match="'latent: {use: given}' can't encode clips"):
        codec.encode(torch.zeros(1, 3, 1, 2, 2))
    for decode in (codec, codec.decode):
        with pytest.raises(UserError, match="'latent: {use: given}' can't show pixels"):
            decode(torch.zeros(1, 2, 1, 2, 2))
