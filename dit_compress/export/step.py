"""The export step: a bundle's networks, exported and proven, in the step's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import torch

from dit_compress.core.randomness import Streams
from dit_compress.export.components import dit_step, text_encoder, vae_decoder
from dit_compress.export.inputs import without_unused
from dit_compress.export.loaded import Loaded
from dit_compress.export.package import describe_video, export_components
from dit_compress.export.phone import on_device, write_phone_files
from dit_compress.export.sizes import further, size_name
from dit_compress.model.conditions import with_typical
from dit_compress.plugin.options import VideoOptions
from dit_compress.step.context import Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from dit_compress.export.component import Component
    from dit_compress.export.contract import Exporter
    from dit_compress.export.sizes import Video
    from dit_compress.model.protocols import Codec
    from dit_compress.step.context import Context

FOLDER = "files"
DEFAULT_FPS = 8.0
TYPICAL_CAPTION = "a large red circle moving left fast on a grey background"
CAPTIONS = {
    "typical": TYPICAL_CAPTION,
    "short": "a star",
    "empty": "",
    "long": " and ".join([TYPICAL_CAPTION] * 8),
}
"""Input sets of a text encoder: no tensor of it can be scaled."""


def export(exporter: Exporter, context: Context) -> Result:
    """Export the input bundle's text encoder, DiT step and VAE decoder at batch 1 and prove the files.

    Raises UserError where a file is refused.
    """
    context.input.flow.need_euler()
    loaded = Loaded.of(context)

    def more(folder: Path) -> Any:
        return write_phone_files(context, loaded, TYPICAL_CAPTION, folder, exporter.sizes)

    report = export_components(
        exporter,
        components(context, loaded, exporter.sizes),
        exporter.profile,
        context.folder / FOLDER,
        about(context, loaded.codec),
        more,
    )
    metrics = {key: report[key] for key in ("passed", "fidelity", "bytes")}
    metrics["psnr_db_min"] = min(
        (row["psnr_db"] for row in report["rows"] if row.get("psnr_db") is not None), default=None
    )
    metrics |= {"rows": report["rows"], "warnings": report["warnings"], "seconds_by_component": report["seconds"]}
    return Result(metrics=metrics, files={"manifest": f"{FOLDER}/manifest.json"})


def components(context: Context, loaded: Loaded, sizes: Sequence[Video] = ()) -> list[Component]:
    """Return text encoder (where it fits a device), DiT step and VAE decoder, with inputs as they occur.

    sizes: further videos (frames, height, width) that the files shall take.
    """
    own = context.video or context.input.spec.video
    latent = _latent(context, own)
    latents = {size_name(video): _latent(context, video) for video in further(sizes, own)}
    with torch.no_grad():
        _, _, t, h, w = latent.shape
        cond = dict(with_typical(loaded.denoiser, loaded.text.cond([TYPICAL_CAPTION]), (t, h, w)))
    encoder = loaded.text.encoder
    found = [
        *([text_encoder(encoder, CAPTIONS)] if on_device(encoder) else []),
        dit_step(loaded.denoiser, latent, cond).with_sizes(latents),
        vae_decoder(cast("nn.Module", loaded.codec), latent).with_sizes(latents),
    ]
    return [without_unused(component) for component in found]


def _latent(context: Context, video: tuple[int, int, int] | None) -> Tensor:
    """Return a noise latent ``[1,C,T,H,W]`` of a video."""
    shape = replace(context, video=video).latent_shape()
    return Streams(context.seed, 0, [0]).normal("export", shape)


def about(context: Context, codec: Codec) -> dict[str, Any]:
    """Return what the manifest says of the exporter and of sampling."""
    config = context.input.spec.need_latent().config
    step = context.record["parts"]["step"]
    options = {key: value for key, value in step["options"].items() if key != "use"}
    device = options.get("device")
    if isinstance(device, str) and device.endswith(".json"):
        options["device"] = PurePath(device).name  # where it lies is nobody's business; what it says is in ``profile``
    if context.input.width is not None:
        options["widths"] = [context.input.width]  # of all that the step exports, this package's own
    licence = context.licence or context.input.data.get("licence")
    return {"exporter": {"plugin": step["plugin"], "options": options}} | describe_video(
        sigmas=context.input.flow.sigmas(),
        ratio=codec.ratio,
        video=context.video or context.input.spec.video or (0, 0, 0),
        fps=fps_of(context),
        frame_rule=codec.frame_rule,
        latent_mean=config.get("latent_mean"),
        latent_std=config.get("latent_std"),
    ) | {"guidance": context.input.flow.guidance, "licence": licence}  # fmt: skip


def fps_of(context: Context) -> float:
    """Return frames per second of the recipe's data."""
    data = context.parts.get("data")
    stated = data.options.fps if data is not None and isinstance(data.options, VideoOptions) else None
    return stated or DEFAULT_FPS
