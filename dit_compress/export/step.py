"""The export step: a bundle's networks, exported and proven, in the step's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import torch

from dit_compress.core.randomness import Streams
from dit_compress.export.components import dit_component, text_encoder, vae_decoder
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
    from dit_compress.model.flow import Flow
    from dit_compress.model.protocols import Codec
    from dit_compress.step.context import Context

FOLDER = "files"
DEFAULT_FPS = 8.0
WALKED = "latent = dit_walk(noise, conditions); sigmas and guidance are inside"
TYPICAL_CAPTION = "a large red circle moving left fast on a grey background"
CAPTIONS = {
    "typical": TYPICAL_CAPTION,
    "short": "a star",
    "empty": "",
    "long": " and ".join([TYPICAL_CAPTION] * 8),
}
"""Input sets of a text encoder: no tensor of it can be scaled."""


def export(exporter: Exporter, context: Context, flow: Flow | None = None) -> Result:
    """Export the input bundle's text encoder, DiT and VAE decoder at batch 1 and prove the files.

    flow: how the package samples; as the bundle says if absent. Raises UserError where a file is refused.
    """
    loaded = Loaded.of(context, flow)

    def more(folder: Path) -> Any:
        return write_phone_files(context, loaded, TYPICAL_CAPTION, folder, exporter.sizes)

    report = export_components(
        exporter,
        components(context, loaded, exporter.sizes),
        exporter.profile,
        context.folder / FOLDER,
        about(context, loaded.codec, walk=loaded.fixed is not None),
        more,
    )
    metrics = {key: report[key] for key in ("passed", "fidelity", "bytes")}
    metrics["psnr_db_min"] = min(
        (row["psnr_db"] for row in report["rows"] if row.get("psnr_db") is not None), default=None
    )
    if loaded.fixed is not None:
        metrics["steps_in_one_file"], metrics["left_out"] = loaded.flow.num_steps, loaded.fixed.note
    metrics |= {"rows": report["rows"], "warnings": report["warnings"], "seconds_by_component": report["seconds"]}
    return Result(metrics=metrics, files={"manifest": f"{FOLDER}/manifest.json"})


def components(context: Context, loaded: Loaded, sizes: Sequence[Video] = ()) -> list[Component]:
    """Return text encoder (where it fits a device), the DiT and VAE decoder (where there is one), with typical inputs.

    sizes: further videos (frames, height, width) that the files shall take.
    """
    own = context.video or context.input.spec.video
    latent = _latent(context, own)
    latents = {size_name(video): _latent(context, video) for video in further(sizes, own)}
    with torch.no_grad():
        _, _, t, h, w = latent.shape
        cond = with_typical(loaded.denoiser, loaded.text.cond([TYPICAL_CAPTION]), (t, h, w))
    encoder = loaded.text.encoder
    found = [
        *([text_encoder(encoder, CAPTIONS)] if on_device(encoder) else []),
        dit_component(loaded.denoiser, latent, cond, loaded.flow, loaded.fixed).with_sizes(latents),
    ]
    if loaded.codec.decodes:
        found.append(vae_decoder(cast("nn.Module", loaded.codec), latent).with_sizes(latents))
    return [without_unused(component) for component in found]


def _latent(context: Context, video: tuple[int, int, int] | None) -> Tensor:
    """Return a noise latent ``[1,C,T,H,W]`` of a video."""
    shape = replace(context, video=video).latent_shape()
    return Streams(context.seed, 0, [0]).normal("export", shape)


def about(context: Context, codec: Codec, *, walk: bool = False) -> dict[str, Any]:
    """Return what the manifest says of the exporter and of sampling. walk: all steps are in one file."""
    config = context.input.spec.need_latent().config
    step = context.record["parts"]["step"]
    options = {key: value for key, value in step["options"].items() if key not in ("use", "sampler")}
    device = options.get("device")
    if isinstance(device, str) and device.endswith(".json"):
        options["device"] = PurePath(device).name  # where it lies is nobody's business; what it says is in ``profile``
    if context.input.width is not None:
        options["widths"] = [context.input.width]  # of all that the step exports, this package's own
    licence = context.licence or context.input.data.get("licence")
    sampling = {"guidance": context.input.flow.guidance, **({"prediction": WALKED} if walk else {})}
    return {"exporter": {"plugin": step["plugin"], "options": options}} | describe_video(
        sigmas=context.input.flow.sigmas(),
        ratio=codec.ratio,
        video=context.video or context.input.spec.video or (0, 0, 0),
        fps=fps_of(context),
        frame_rule=codec.frame_rule,
        latent_mean=config.get("latent_mean"),
        latent_std=config.get("latent_std"),
    ) | {**sampling, "licence": licence}  # fmt: skip


def fps_of(context: Context) -> float:
    """Return frames per second of the recipe's data."""
    data = context.parts.get("data")
    stated = data.options.fps if data is not None and isinstance(data.options, VideoOptions) else None
    return stated or DEFAULT_FPS
