"""Evaluate: how well the codec gives clips back: PSNR, SSIM, the error of differences in time, clip by clip."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Options, Plugin, hookimpl
from dit_compress.plugin.options import Frames, Side

PROTOCOLS = {"davis": (33, 512, 512)}
"""Frames, height and width at which others measure."""
MIN_SIDE = 11
"""Pixels: SSIM looks through a window of so many."""

Wide = Annotated[Side, Field(ge=MIN_SIDE)]


class ReconstructionOptions(Options):
    """The clips to encode and decode, and at which size.

    protocol: ``davis`` is the paper's, 33 frames of 512x512: each clip resized to cover them, cropped at the centre.
    frames, size: of every clip, instead; size is (Y, X). Those of the recipe's data if absent. Images have one frame.
    num_clips: how many clips of the test split.
    batch: clips encoded at once.
    """

    protocol: Literal["davis"] | None = None
    frames: Frames | None = None
    size: tuple[Wide, Wide] | None = None
    num_clips: int = Field(100, ge=1)
    batch: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _states_one_size(self) -> Self:
        if self.protocol and (self.frames or self.size):
            raise ValueError(f"'protocol: {self.protocol}' says 'frames' and 'size': leave those out")
        return self

    @property
    def any_size(self) -> bool:
        """Clips of several sizes are measured each at its own."""
        return True

    def video_of(self, video: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return frames, height and width at which a clip of such a video is measured; an image stays one."""
        stated = (self.frames or video[0], *(self.size or video[1:]))
        frames, height, width = PROTOCOLS[self.protocol] if self.protocol else stated
        return (1 if video[0] == 1 else frames, height, width)


@hookimpl
def evaluate() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="reconstruction",
        options=ReconstructionOptions,
        load="dit_compress_plugins.evaluate_reconstruction.step:ReconstructionEvaluation",
        requires=("av", "torchmetrics"),
        extra="video",
        data=True,
        headline="psnr_db",
        summary="PSNR, SSIM and temporal error of the codec on the test clips",
    )
