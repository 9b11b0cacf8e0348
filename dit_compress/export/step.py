"""The export step: a bundle's networks, exported and proven, in the step's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from dit_compress.context import Result
from dit_compress.export.components import dit_step, vae_decoder
from dit_compress.export.package import describe_video, export_components
from dit_compress.train.streams import Streams

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.context import Context
    from dit_compress.export.types import Component

FOLDER = "files"
DEFAULT_FPS = 8.0
TYPICAL_CAPTION = "a large red circle moving left fast on a grey background"


def export(exporter: Any, context: Context) -> Result:
    """Export the input bundle's DiT step and VAE decoder at batch 1 and prove the files.

    ``exporter`` follows ``hooks.Exporter`` and has a ``profile``. Raises UserError where a file is refused.
    """
    report = export_components(exporter, components(context), exporter.profile, context.folder / FOLDER, about(context))
    metrics = {key: report[key] for key in ("passed", "fidelity", "bytes")}
    metrics["psnr_db_min"] = min(
        (row["psnr_db"] for row in report["rows"] if row.get("psnr_db") is not None), default=None
    )
    metrics |= {"rows": report["rows"], "warnings": report["warnings"], "seconds_by_component": report["seconds"]}
    return Result(metrics=metrics, files={"manifest": f"{FOLDER}/manifest.json"})


def components(context: Context) -> list[Component]:
    """DiT step and VAE decoder, with inputs as they occur: a noise latent, an encoded caption."""
    shape = context.latent_shape()
    latent = Streams(context.seed, 0, [0]).normal("export", shape)
    text = context.text().eval()
    with torch.no_grad():
        cond = dict(text.cond([TYPICAL_CAPTION]))
    return [
        dit_step(context.input.denoiser().eval(), latent, cond),
        vae_decoder(cast("nn.Module", context.input.codec().eval()), latent),
    ]


def about(context: Context) -> dict[str, Any]:
    """What the manifest says of sampling."""
    codec = context.input.codec()
    config = getattr(codec, "config", {})
    data = context.parts.get("data")
    fps = getattr(data.options, "fps", None) if data else None
    return describe_video(
        sigmas=context.input.flow.sigmas(),
        ratio=codec.ratio,
        video=context.video or context.input.spec.video or (0, 0, 0),
        fps=fps or DEFAULT_FPS,
        latent_mean=config.get("latent_mean"),
        latent_std=config.get("latent_std"),
    ) | {"guidance": context.input.flow.guidance, "licence": context.input.data.get("licence")}
