"""PSNR, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dit_compress_plugins.evaluate_psnr.psnr import CEILING, PEAK_SIGNED, PEAK_UINT8, psnr, psnr_per_clip, summarise

CLIP = np.full((2, 4, 4, 3), 100, dtype=np.uint8)


def test_a_constant_error_by_hand() -> None:
    # 10·log10(255² / 5²) = 20·log10(51)
    assert psnr(CLIP + 5, CLIP, PEAK_UINT8) == pytest.approx(34.1514, abs=1e-4)
    assert psnr(CLIP - 5, CLIP, PEAK_UINT8) == pytest.approx(34.1514, abs=1e-4)  # no wrap of uint8


def test_both_ranges_give_one_number() -> None:
    rng = np.random.default_rng(0)
    clip, decoded = rng.integers(0, 256, (2, 3, 8, 8, 3)).astype(np.uint8)
    signed = [video.astype(np.float32) / 127.5 - 1 for video in (decoded, clip)]
    assert psnr(*signed, PEAK_SIGNED) == pytest.approx(psnr(decoded, clip, PEAK_UINT8), abs=1e-4)


def test_equal_clips_reach_the_ceiling() -> None:
    assert psnr(CLIP, CLIP, PEAK_UINT8) == CEILING


def test_each_clip_counts_for_itself() -> None:
    decibels = psnr_per_clip(np.stack([CLIP + 5, CLIP]), np.stack([CLIP, CLIP]), PEAK_UINT8)
    assert decibels == pytest.approx([34.1514, 100.0], abs=1e-4)
    expected = {"psnr_db": 67.0757, "psnr_worst_db": 34.1514, "num_clips": 2}
    assert summarise(decibels) == pytest.approx(expected, abs=1e-4)


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(CLIP[:1], CLIP, PEAK_UINT8)
