"""Evaluate: CLIPScore, LPIPS, SSIM, FID and FVD of generated clips, by judges that lie on this machine."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import File, Options, Plugin, hookimpl

Judge = Annotated[str | None, File()]


class MetricsOptions(Options):
    """The judges, each a local file or folder, and the videos to generate. Without a judge its figure is left out.

    clip: a folder of CLIP in transformers' layout, for CLIPScore.
    lpips: safetensors of the package lpips' network and its heads.
    fid: what sees frames: a vision model's folder in transformers' layout, or an ONNX file.
    fvd: what sees videos, likewise.
    num_clips: how many clips of the test split; a video is generated for each.
    frames: of each video, evenly spaced, that ``clip``, ``lpips`` and ``fid`` see.
    num_steps, guidance: of the sampler; None takes the bundle's.
    batch: videos generated at once.
    seed: of the noise; equal seeds give paired figures.
    """

    clip: Judge = None
    lpips: Judge = None
    fid: Judge = None
    fvd: Judge = None
    num_clips: int = Field(256, ge=2)
    frames: int = Field(4, ge=1)
    num_steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0)
    batch: int = Field(8, ge=1)
    seed: int = 0


@hookimpl
def evaluate() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="metrics",
        options=MetricsOptions,
        load="dit_compress_plugins.evaluate_metrics.step:MetricsEvaluation",
        requires=("torchmetrics",),
        extra="metrics",
        slots=("against",),
        data=True,
        quality="clip_score",
        summary="CLIPScore, LPIPS, SSIM, FID and FVD of generated clips, with errors and floors",
    )
