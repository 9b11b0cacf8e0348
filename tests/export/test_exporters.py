"""DiT step and VAE decoder through exporters: reloaded from disk, executed, at the gates.

Each is made and traced once for all. Every component on every target in every precision: ``benchmarks/exports.py``.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn

from dit_compress.export import Component, dit_step, export_components, vae_decoder
from dit_compress_plugins.export_coreml import CoreMLOptions
from dit_compress_plugins.export_onnx import ONNXOptions
from dit_compress_plugins.latent_h3ae.codec import H3AE
from dit_compress_plugins.latent_video_vae.vae import VideoVAE
from dit_compress_plugins.model_video_dit.adapter import VideoDiTDenoiser
from dit_compress_plugins.model_video_dit.model import VideoDiT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(25)

pytest.importorskip("coremltools")
pytest.importorskip("onnxruntime")
torch.set_num_threads(1)

LATENT = (1, 16, 3, 2, 4)


def seeded(module: nn.Module) -> nn.Module:
    """Biases and tables away from zero, as training leaves them."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.03)
    return module.eval()


def text() -> dict[str, Tensor]:
    torch.manual_seed(5)
    mask_BL = torch.ones(1, 6)
    mask_BL[:, 4:] = 0
    return {"embedding": torch.randn(1, 6, 24), "mask": mask_BL}


@cache
def video_dit() -> Component:
    torch.manual_seed(0)
    module = VideoDiT(
        layers=2, hidden=64, heads=[2, 1], cross_heads=2, ffn=[96, 128], head_width=32, channels=16, text_width=24,
        patch=(1, 1, 2),
    )  # fmt: skip
    return dit_step(VideoDiTDenoiser(seeded(module)), torch.randn(LATENT), text())


@cache
def decoder() -> Component:
    torch.manual_seed(0)
    vae = VideoVAE(channels=16, widths=(8, 12, 16, 16), num_blocks=1)
    vae.set_statistics([0.1] * 16, [1.5] * 16)
    return vae_decoder(seeded(vae), torch.randn(LATENT))


@cache
def attending_decoder() -> Component:
    torch.manual_seed(0)
    codec = H3AE(channels=16, widths=(8, 12, 16, 16), num_blocks=1, heads=2, radius=1)
    codec.set_statistics([0.1] * 16, [1.5] * 16)
    return vae_decoder(seeded(codec), torch.randn(LATENT))


class LTX(nn.Module):
    """diffusers' LTX with packed tokens and its own timestep convention."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = LTXVideoTransformer3DModel(
            in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
            num_layers=1, caption_channels=24,
        )  # fmt: skip

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        size = latent_BCTHW.shape[2:]
        tokens_BSD = self.transformer(
            hidden_states=latent_BCTHW.flatten(2).transpose(1, 2), encoder_hidden_states=text_BLD,
            timestep=sigma_B * 1000, encoder_attention_mask=mask_BL, num_frames=size[0], height=size[1],
            width=size[2], return_dict=False,
        )[0]  # fmt: skip
        return tokens_BSD.transpose(1, 2).unflatten(2, size)


@cache
def ltx() -> Component:
    torch.manual_seed(0)
    inputs = {"latent": torch.randn(LATENT), "sigma": torch.tensor([0.7]), **text()}
    return Component("ltx", seeded(LTX()), inputs, ("velocity",), varied=("latent", "embedding"), precise=("sigma",))


def exporter(name: str, **options: Any) -> Any:
    if name == "coreml":
        from dit_compress_plugins.export_coreml.exporter import CoreMLExport

        return CoreMLExport(CoreMLOptions(**options))
    from dit_compress_plugins.export_onnx.exporter import ONNXExport

    return ONNXExport(ONNXOptions(**options))


@pytest.mark.parametrize(
    ("name", "options", "component"),
    [
        ("coreml", {"minimum_os": "iOS18"}, video_dit),
        ("coreml", {"minimum_os": "iOS17", "precision": "float32"}, video_dit),
        ("coreml", {"minimum_os": "iOS17"}, ltx),
        ("coreml", {}, decoder),
        ("onnx", {"precision": "float16"}, video_dit),
        ("onnx", {}, ltx),
        ("onnx", {"precision": "float16"}, decoder),
        ("coreml", {}, attending_decoder),
        ("onnx", {"precision": "float16"}, attending_decoder),
    ],
)
def test_component_passes_its_gates(name: str, options: dict[str, Any], component: Any, tmp_path: Path) -> None:
    made = exporter(name, **options)
    report = export_components(made, [component()], made.profile, tmp_path / "out")
    assert report["passed"], report["rows"]
    assert report["fidelity"] == {"coreml": "interpreter", "onnx": "production"}[name]
    assert {row["input_set"] for row in report["rows"]} == {
        "typical", "zero", "tiny", "huge", *(["padded"] if component is video_dit else []),
    }  # fmt: skip


def test_one_piece_is_what_the_codec_decodes() -> None:
    torch.manual_seed(0)
    vae = VideoVAE(channels=16, widths=(8, 12, 16, 16), num_blocks=1).eval()
    latent = torch.randn(LATENT)
    torch.testing.assert_close(vae_decoder(vae, latent).module(latent), vae.decode(latent))


@pytest.mark.parametrize("name", ["coreml", "onnx"])
def test_check_needs_no_weights(name: str) -> None:
    made = exporter(name)
    with torch.device("meta"):
        module = VideoDiT(
            layers=1, hidden=64, heads=2, cross_heads=2, ffn=96, head_width=32, channels=16, text_width=24
        )
        condition = {"embedding": torch.empty(1, 6, 24), "mask": torch.empty(1, 6)}
        component = dit_step(VideoDiTDenoiser(module), torch.empty(LATENT), condition)
    assert made.check(component, made.profile) == []
