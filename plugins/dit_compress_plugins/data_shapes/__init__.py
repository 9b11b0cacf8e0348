"""Data: a procedural world of moving shapes, with captions and ground truth."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dit_compress.hooks import Plugin, VideoOptions, hookimpl


class ShapesOptions(VideoOptions):
    """The content of the world.

    num_clips, num_test: clips of the train and of the test split.
    frames, size, fps: of every clip; size is (Y, X).
    max_objects: 2 for one or two objects in a clip, 1 for one.
    test_fraction: share of the combinations of attributes that only the test split shows.
    grid: pitch of the places that objects may take, as a share of the short side; 0 for anywhere. A coarse
        grid makes a world that a small model learns in minutes.
    seed: another seed draws other clips.
    """

    num_clips: int = Field(2000, ge=1)
    num_test: int = Field(200, ge=1)
    frames: int = Field(17, ge=2)
    size: tuple[int, int] = (96, 96)
    fps: float = Field(8.0, gt=0)
    max_objects: Literal[1, 2] = 2
    test_fraction: float = Field(0.1, gt=0, lt=1)
    grid: float = Field(16 / 96, ge=0, le=0.5)
    seed: int = 0

    @property
    def expected_clips(self) -> int:
        """Return the clips of both splits."""
        return self.num_clips + self.num_test

    @field_validator("size")
    @classmethod
    def _drawable(cls, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < 64 or any(side % 2 for side in size):
            raise ValueError(f"{size[0]}x{size[1]} pixels: give two even sides of at least 64")
        return size


@hookimpl
def data() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="shapes",
        options=ShapesOptions,
        load="dit_compress_plugins.data_shapes.data:Shapes",
        requires=("av",),
        extra="video",
        summary="moving circles, squares and triangles, drawn on demand, with ground truth",
    )
