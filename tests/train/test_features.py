"""Tokens of two grids, compared: values by hand."""

from __future__ import annotations

import torch

from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.features import grid_of, projection, resampled


def test_a_coarser_grid_averages_neighbours_and_a_finer_one_lies_between() -> None:
    feature = torch.arange(8.0).reshape(1, 8, 1)  # of 2×2×2 tokens, the last axis fastest
    assert resampled(feature, (2, 2, 2), (2, 1, 1)).flatten().tolist() == [1.5, 5.5]
    assert resampled(feature, (2, 2, 2), (1, 1, 1)).flatten().tolist() == [3.5]
    # Cell centres: a quarter and three quarters of the way between two tokens, the ends as they are.
    row = torch.tensor([0.0, 4.0]).reshape(1, 2, 1)
    assert resampled(row, (1, 1, 2), (1, 1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


def test_the_same_grid_is_left() -> None:
    feature = torch.randn(2, 8, 3)
    assert resampled(feature, (2, 2, 2), (2, 2, 2)) is feature


def test_the_grid_is_the_latents_over_the_patch() -> None:
    latent = torch.zeros(1, 8, 3, 4, 6)
    assert grid_of(tiny_denoiser("video_dit"), latent) == (3, 4, 6)
    assert grid_of(tiny_denoiser("wan"), latent) == (3, 2, 3)


def test_a_projection_keeps_the_size_of_what_it_maps() -> None:
    torch.manual_seed(0)
    layer = projection(64, 64)
    assert not layer.bias.any()
    assert 0.8 < float(layer(torch.randn(500, 64)).detach().std()) < 1.2
