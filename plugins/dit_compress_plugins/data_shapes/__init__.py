"""Data: a procedural world of moving shapes, with captions and ground truth."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dit_compress.hooks import Keyed, Plugin, VideoOptions, hookimpl


class ShapesOptions(VideoOptions):
    """The content of the world.

    num_clips, num_test: clips of the train and of the test split.
    frames, size, fps: of every clip; size is (Y, X).
    max_objects: 2 for one or two objects in a clip, 1 for one.
    alike: up to so many objects that differ in nothing but their places, "three tiny red circles moving left slowly",
        instead of those; 0 for none.
    test_fraction: share of the combinations of attributes that only the test split shows.
    grid: pitch of the places that objects may take, as a share of the short side; 0 for anywhere. A coarse
        grid makes a world that a small model learns in minutes.
    seed: another seed draws other clips.

    Clips are files of one folder, numbered with six digits; what is no rate of a video file is no ``fps``. A
    ``test_fraction`` or ``grid`` with which scenes can't be found is refused.
    """

    num_clips: int = Field(2000, ge=1, le=1_000_000)
    num_test: int = Field(200, ge=1, le=1_000_000)
    frames: int = Field(17, ge=2)
    size: tuple[int, int] = (96, 96)
    fps: float = Field(8.0, ge=0.01, le=1000)
    max_objects: Literal[1, 2] = 2
    alike: Annotated[int, Keyed("alike")] = Field(0, ge=0, le=4)
    test_fraction: float = Field(0.1, gt=0, lt=1)
    grid: float = Field(16 / 96, ge=0, le=0.5)
    seed: int = 0

    @property
    def idle(self) -> dict[str, str]:
        """Return what counts objects that differ, where all are alike."""
        return {"max_objects": "'alike: 0'"} if self.alike else {}

    @property
    def expected_clips(self) -> int:
        """Return the clips of both splits."""
        return self.num_clips + self.num_test

    @property
    def longest(self) -> int:
        """Return the frames that every clip has."""
        return self.frames

    @field_validator("size")
    @classmethod
    def _drawable(cls, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < 64 or any(side % 2 for side in size):
            raise ValueError(f"{size[0]}x{size[1]} pixels: give two even sides of at least 64")
        return size

    @field_validator("grid")
    @classmethod
    def _visible(cls, grid: float) -> float:
        if 0 < grid < 1e-6:
            raise ValueError(f"{grid:g} of the short side is finer than can be computed: give 0 for places anywhere")
        return grid

    @model_validator(mode="after")
    def _has_scenes(self) -> Self:
        from dit_compress_plugins.data_shapes.world import are_rare

        for split in ("train", "test"):
            for count in range(1, (self.alike or self.max_objects) + 1):
                if are_rare(split, count, self.size, self.test_fraction, self.grid, alike=bool(self.alike)):
                    raise ValueError(
                        f"hardly any {split} scene of {count} object{'s'[: count - 1]} can be drawn with "
                        f"'test_fraction' {self.test_fraction:g} and 'grid' {self.grid:g}: give a finer grid, "
                        "or a share nearer to a half"
                    )
        return self


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
