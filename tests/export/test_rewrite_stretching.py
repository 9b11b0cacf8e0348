"""What VAEs do to stretch a video: nearest neighbours over one to three axes, frames interleaved through six axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dit_compress.export import Component, Profile, export_components
from dit_compress.export.rewrite import rewrite_graph
from dit_compress_plugins.export_coreml import CoreMLOptions
from dit_compress_plugins.export_coreml.exporter import CoreMLExport

if TYPE_CHECKING:
    from pathlib import Path


class Stretch(nn.Module):
    """One stretch; of integers torch has none."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return interpolate(x, **self.how)


@pytest.mark.parametrize(
    ("shape", "how", "count"),
    [
        ((2, 3, 2, 3, 4), {"scale_factor": (2.0, 3.0, 1.0), "mode": "nearest"}, 1),
        ((1, 2, 1, 2, 3), {"size": (1, 2, 3), "mode": "nearest"}, 1),
        ((1, 2, 2, 2, 3), {"size": (8, 94, 123), "mode": "nearest"}, 0),  # 1/41 and 1/47 as singles fall short
        ((1, 2, 2, 2, 3), {"size": (8, 94, 123), "mode": "nearest-exact"}, 1),
        ((2, 3, 5), {"size": 15, "mode": "nearest-exact"}, 1),
        ((2, 3, 4, 5), {"scale_factor": 2.0, "mode": "nearest-exact"}, 1),
        ((2, 3, 4, 5), {"size": (4, 10), "mode": "nearest-exact"}, 1),
        ((2, 3, 4, 5), {"scale_factor": 1.5, "mode": "nearest-exact"}, 0),
        ((2, 3, 4, 4), {"scale_factor": 0.5, "mode": "nearest-exact"}, 0),
        ((2, 3, 4, 5), {"scale_factor": 2.3, "mode": "nearest-exact"}, 0),  # 4 values become 9
        ((2, 3, 4, 5), {"scale_factor": 2.0, "mode": "nearest"}, 0),  # every target has it
    ],
)
def test_whole_factors_are_copies(shape: tuple[int, ...], how: dict[str, Any], count: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Stretch(**how), (x,), strict=False).run_decompositions({})
    assert rewrite_graph(program).stretches == count
    nodes = list(program.graph.nodes)
    assert any("upsample" in str(node.target) for node in nodes) is not bool(count)
    assert torch.equal(program.module()(x), interpolate(x, **how))
    made = [node.meta["val"] for node in nodes if node.op == "call_function"]
    assert max(value.ndim for value in made) <= max(4, x.ndim)


class Decoder(nn.Module):
    """What Wan's decoder does to a chunk (frames interleaved, then the picture), and CogVideoX's to its latents."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        pair = x.reshape(batch, 2, channels // 2, frames, height, width)
        x = torch.stack((pair[:, 0], pair[:, 1, :, :, :, :]), 3)
        x = x.reshape(batch, channels // 2, frames * 2, height, width)
        x = x.repeat_interleave(2, dim=1)  # through six axes, in torch's own decomposition
        pictures = x.permute(0, 2, 1, 3, 4).reshape(-1, channels, height, width)
        large = interpolate(pictures, scale_factor=(2.0, 2.0), mode="nearest-exact")
        large = large.view(batch, 2 * frames, channels, 2 * height, 2 * width).permute(0, 2, 1, 3, 4)
        return large + interpolate(x, size=large.shape[-3:])


def test_core_ml_runs_a_decoders_stretches_bit_for_bit(tmp_path: Path) -> None:
    x = torch.randn(1, 4, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    exporter = CoreMLExport(CoreMLOptions(precision="float32"))
    component = Component("vae_decoder", Decoder(), {"latent": x}, ("video",), varied=("latent",))
    component = component.fitted(exporter.profile)
    assert exporter.check(component, exporter.profile) == []
    runner = exporter.runner(exporter.lower(component, exporter.profile, tmp_path)[0])
    found = runner({"latent": x.numpy()}, "float32")["video"]
    assert np.array_equal(found, Decoder()(x).numpy())


def test_core_ml_normalises_a_video_in_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.GroupNorm(2, 6), torch.randn(1, 6, 2, 3, 4) * 3 + 1
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    program = torch.export.export(module, (x,), strict=False).run_decompositions({})
    assert rewrite_graph(program).groups == 1
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), module(x), atol=5e-6, rtol=0)
    exporter = CoreMLExport(CoreMLOptions())
    profile = Profile("test", input_sets=("typical", "zero", "tiny", "huge"))
    component = Component("norm", module, {"x": x}, ("y",), varied=("x",))
    report = export_components(exporter, [component], profile, tmp_path / "out")
    assert report["passed"], report["rows"]


def test_a_factor_that_is_no_whole_number_is_refused_with_it() -> None:
    x = torch.randn(2, 3, 4, 4)
    exporter = CoreMLExport(CoreMLOptions())
    module = nn.Sequential(nn.Identity(), Stretch(scale_factor=1.5, mode="nearest-exact"))
    (found,) = exporter.check(Component("vae_decoder", module, {"x": x}, ("y",), varied=("x",)), exporter.profile)
    assert (found.operator, found.path, found.severity) == ("aten._upsample_nearest_exact2d", "1", "error")
    assert found.message == "it stretches [2, 3, 4, 4] to [2, 3, 6, 6] by a factor that is no whole number"
    assert found.mend == "Stretch by a whole number, or by another mode"
