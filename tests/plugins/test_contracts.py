"""The contracts that strangers get, on built-in plugins of each kind."""

from __future__ import annotations

from typing import Any

import pytest
from toy import part

from dit_compress.testing.discriminators import DiscriminatorContract
from dit_compress.testing.granularities import GranularityContract
from dit_compress.testing.latents import LatentContract
from dit_compress.testing.searches import SearchContract
from dit_compress.testing.steps import DrawnClips, DrawnOptions


class TestMagnitude(SearchContract):
    def search(self) -> Any:
        return part("search", "magnitude")


class TestRandom(SearchContract):
    def search(self) -> Any:
        return part("search", "random")


class TestTaylor(SearchContract):
    """It measures losses, on the drawn clips."""

    def search(self) -> Any:
        return part("search", "taylor", batches=1, batch=4)


class TestMixed(SearchContract):
    """It measures losses without blocks."""

    def search(self) -> Any:
        return part("search", "mixed", blocks={"use": "greedy", "batches": 1, "batch": 4}, rest="magnitude")


class TestTorchPruning(SearchContract):
    """Of gradients, on the drawn clips."""

    def search(self) -> Any:
        return part("search", "torch_pruning", importance="taylor", objective="flow", batches=1, batch=4)


class TestHead(GranularityContract):
    def granularity(self) -> Any:
        return part("granularity", "head", remove=1)


class TestBlock(GranularityContract):
    def granularity(self) -> Any:
        return part("granularity", "block", remove=1)


class TestVideoVAE(LatentContract):
    def step(self) -> Any:
        return part(
            "latent", "video_vae", ratio="8x16x16", channels=8, widths=[8, 8], blocks=1, steps=1, batch=2, warmup=0
        )


class TestH3AE(LatentContract):
    """From random weights: more steps than PCA needs."""

    def step(self) -> Any:
        options = {"ratio": "4x8x8", "channels": 24, "widths": [24, 32], "blocks": 1, "heads": 2, "bf16": False}
        return part("latent", "h3ae", steps=60, batch=4, warmup=5, ema=0, **options)


class TestDitBlock(DiscriminatorContract):
    def discriminator(self) -> Any:
        return part("discriminator", "dit_block", frozen_blocks=1, learnable_blocks=1)


def test_drawn_clips_are_clips_that_move() -> None:
    source = DrawnClips(DrawnOptions(num_clips=3))
    train, test = source.clips(None, "train"), source.clips(None, "test")  # type: ignore[arg-type]
    assert (len(train), len(test)) == (3, 1)
    first = train[0].pixels()
    assert first.shape == (9, 32, 32, 3)
    assert first.dtype == "uint8"
    assert (train[0].pixels() == first).all()
    assert abs(train[1].pixels().astype(int) - first).mean() > 5
    assert abs(first[0].astype(int) - first[-1]).max() > 50, "something moves"
    assert test[0].identity() not in [clip.identity() for clip in train]
    with pytest.raises(OSError, match=r"0\.mp4"):
        train[0].path.stat()
