"""Figure 3: what a row says is what the pruned model weighs, costs and answers; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import finish, start
from toy import CAPTIONS, SIZE, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams, generator
from dit_compress.data.samples import Samples
from dit_compress.measure.figure3 import Settings, axes_of, opened, sensitivity
from dit_compress.measure.memory import LiveBytes, peak_bytes, weight_bytes
from dit_compress.measure.quality import data_grid, drift_grid, sigmas
from dit_compress.measure.sensitivity import masked_loss, quality_curves, steps_of
from dit_compress.model import flow
from dit_compress.model.bundle import write_bundle
from dit_compress.model.cut import compact
from dit_compress.model.denoiser import Denoiser
from dit_compress.model.figures import count_flops, count_parameters
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.search.curves import curves_from_report
from dit_compress.search.importance import magnitude, top
from dit_compress.structure.facts import Axis
from dit_compress.testing.models import MODELS, tiny_denoiser

# ------------------------------------------------------------------ memory


def test_peak_memory_by_hand() -> None:
    """Two live tensors of 4000 bytes and one of 8000; the first is gone before the third is made."""
    with LiveBytes() as live:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = torch.cat([second, second])
        assert live.now == 4000 + 8000
        view = third.view(2, -1)
        view.add_(1)
        assert live.now == 12_000
    assert live.peak == 12_000
    del view, third, second
    with LiveBytes() as live:
        kept = [torch.zeros(1000) for _ in range(3)]
        kept.clear()
        torch.zeros(500)
    assert (live.peak, live.now) == (12_000, 0)


@pytest.mark.parametrize("name", MODELS)
def test_peak_memory_is_the_same_without_data(name: str) -> None:
    """Weights and a few streams at least; on the meta device the same sizes are counted (attention's own buffers
    differ between kernels)."""
    denoiser = tiny_denoiser(name)

    def peak() -> int:
        example = denoiser.example(1, denoiser.example_size)
        with torch.no_grad():
            return peak_bytes(denoiser, lambda: denoiser(*example))

    real, weights = peak(), weight_bytes(denoiser)
    assert weights < real < 3 * weights
    denoiser.to("meta")
    assert peak() == pytest.approx(real, rel=0.1)


# ------------------------------------------------------------------ quality


def few_samples(count: int = 5) -> Samples:
    x0 = Streams(0, 0, range(count)).normal("latents", (8, *SIZE))
    captions = [CAPTIONS[index % 4] for index in range(count)]
    return Samples(x0.numpy(), captions, words().encoder.tokenize(captions), pixels=False)


def test_the_grids_loss_is_the_plain_mean() -> None:
    """Sample by sample and level by level, with the noise drawn by NumPy."""
    denoiser, text, samples = tiny_denoiser("video_dit"), words(), few_samples()
    total = []
    for index in range(4):
        for place in range(8):
            sigma = Flow(3.0).warp((place + 0.5) / 8)
            noise = torch.from_numpy(generator(0, "grid", place, index).standard_normal((8, *SIZE), dtype="float32"))
            x0, cond = samples.x0([index]), text(samples.tokens([index]))
            x = flow.interpolate(x0, noise[None], torch.tensor([sigma]))
            with torch.no_grad():
                found = denoiser(x, torch.tensor([sigma]), cond)
            total.append(float((found - (noise[None] - x0)).square().mean()))
    grid = data_grid(samples, text, Flow(3.0), 4)
    assert grid.loss(denoiser) == pytest.approx(sum(total) / len(total), rel=1e-5)
    assert grid.loss(denoiser) == grid.loss(denoiser)


def test_noise_levels_are_the_middles_of_the_schedule() -> None:
    assert sigmas(Flow(1.0), 4) == pytest.approx([0.125, 0.375, 0.625, 0.875])


def test_drift_is_zero_for_the_whole_and_one_for_silence() -> None:
    denoiser = tiny_denoiser("video_dit")
    grid = drift_grid(denoiser, SIZE, 3, Flow())
    assert grid.loss(denoiser) == 0.0
    with torch.no_grad():
        denoiser.module.proj_out.weight.zero_()
        denoiser.module.proj_out.bias.zero_()
    assert grid.loss(denoiser) == pytest.approx(1.0, rel=1e-5)


# ------------------------------------------------------------------ curves


def largest(denoiser: Denoiser) -> Any:
    return lambda axes, keep: {axis.name: top(magnitude(denoiser.module, axis), keep[axis.name]) for axis in axes}


def test_steps_never_repeat_and_never_empty_an_axis() -> None:
    axes = [Axis("head:a", "head", 4, "s"), Axis("head:b", "head", 8, "s")]
    assert steps_of(axes, (0.1, 0.25, 0.99)) == [
        {"head:a": 3, "head:b": 7},
        {"head:a": 3, "head:b": 6},
        {"head:a": 1, "head:b": 1},
    ]


@pytest.mark.parametrize("name", MODELS)
def test_quality_is_that_of_the_compacted_model(name: str) -> None:
    denoiser = tiny_denoiser(name)
    levels = axes_of(denoiser, ("block", "head", "ffn"))
    grid = drift_grid(denoiser, denoiser.example_size, 2, Flow())
    report = quality_curves(levels, largest(denoiser), masked_loss(denoiser, levels, grid), "drift", (0.5,), each=True)
    assert report["whole"] == {"drift": 0.0}
    for level, axes in levels.items():
        (row,) = report["levels"][level]
        variant = tiny_denoiser(name)
        compact(variant, axes, row["kept"])
        assert grid.loss(variant) == pytest.approx(row["drift"], rel=1e-3)
    (blocks,) = report["blocks"].values()
    assert len(blocks) == 3
    assert report["axes"].keys() == {axis.name for level in ("head", "ffn") for axis in levels[level]}
    curves = curves_from_report(report)
    assert curves.axes.keys() == report["axes"].keys()


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def report(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The command on a bundle of a run, its table and its report."""
    out = tmp_path_factory.mktemp("sensitivity")
    target = smoke / "steps" / "teacher" / "bundle"
    wanted = ("sensitivity", target, "--out", out / "s", "--samples", "4", "--rounds", "2", "--share", "0.25")
    done = finish(start(*wanted, "--share", "0.5", "--table", out / "table.json", log=out / "log"))
    assert done.status == 0, done.printed
    found = json.loads((out / "s" / "sensitivity.json").read_text())
    return {**found, "printed": done.printed, "out": out, "target": target}


def test_a_row_says_what_the_pruned_model_weighs(report: dict[str, Any], tmp_path: Path) -> None:
    assert (report["quality"], report["search"]) == ("flow_loss", "taylor")
    assert report["size"] == [2, 2, 2]
    assert {level: [row["removed"] for row in rows] for level, rows in report["levels"].items()} == {
        "block": [1, 2],
        "head": [1, 2],
        "ffn": [32, 64],
    }
    for level in ("block", "head", "ffn"):
        _, denoiser = opened(str(report["target"]), tmp_path)
        axes = axes_of(denoiser, [level])[level]
        row = report["levels"][level][1]
        kept = {axis.name: top(magnitude(denoiser.module, axis), axis.units // 2) for axis in axes}
        compact(denoiser, axes, kept)
        assert row["params"] == count_parameters(denoiser.module)
        assert row["flops"] == count_flops(denoiser, (2, 2, 2))
        assert row["peak_memory_bytes"] < report["whole"]["peak_memory_bytes"]
        assert row["latency_ms"] == pytest.approx(report["whole"]["latency_ms"] / row["times_faster"])


def test_it_prints_a_table_and_draws_four_panels(report: dict[str, Any]) -> None:
    lines = report["printed"].splitlines()
    assert "flow-matching loss" in lines[1]
    assert [line.split()[0] for line in lines[2:9]] == ["whole", *["block"] * 2, *["head"] * 2, *["ffn"] * 2]
    figure = report["out"] / "s" / "sensitivity.png"
    assert lines[-1] == str(figure)
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert figure.stat().st_size > 10_000


def test_a_bundle_without_data_is_measured_by_its_drift(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    settings = Settings(shares=(0.5,), samples=2, rounds=1, search="random", levels=("head",))
    found = sensitivity(str(bundle.path), tmp_path / "out", settings)
    assert found["quality"] == "drift"
    assert found["whole"]["drift"] == 0.0
    assert found["levels"]["head"][0]["drift"] > 0


FLUX = {
    "in_channels": 8, "num_layers": 4, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
    "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": [4, 6, 6], "guidance_embeds": False,
}  # fmt: skip


def test_each_stack_is_a_level_by_its_name(tmp_path: Path) -> None:
    """As ``prune --remove block.single_transformer_blocks=1`` names them."""
    torch.manual_seed(0)
    plugin = part("model", "diffusers", class_name="FluxTransformer2DModel", config=FLUX)
    module = plugin.create()
    spec = Spec(denoiser=ComponentSpec("model", "diffusers", plugin.config_of(module)))
    bundle = write_bundle(tmp_path / "bundle", spec, {"denoiser": module}, base=None, lineage=())
    levels = ("block", "block.single_transformer_blocks")
    settings = Settings(shares=(0.5,), samples=2, rounds=1, levels=levels, each=True)
    found = sensitivity(str(bundle.path), tmp_path / "out", settings)
    assert found["search"] == "magnitude", "there is no data"
    for level, (attribute, count) in zip(
        levels, (("transformer_blocks", 4), ("single_transformer_blocks", 2)), strict=True
    ):
        blocks = module.get_submodule(attribute)
        (row,) = found["levels"][level]
        assert (row["removed"], row["of"]) == (count // 2, count)
        assert row["params"] == count_parameters(module) - count // 2 * count_parameters(blocks[0])
        assert len(found["blocks"][f"block:{attribute}"]) == count
    assert found["levels"]["block"][0]["flops"] != found["levels"]["block.single_transformer_blocks"][0]["flops"]
    with pytest.raises(UserError, match="'nowhere' names no stack; there are transformer_blocks, single_transformer"):
        sensitivity(str(bundle.path), tmp_path / "out", replace(settings, levels=("block.nowhere",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": ("haed",)}, "there is no level 'haed'; there are block, ffn, head, width. Did you mean 'head'?"),
        ({"shares": (0.5, 1.0)}, r"shares to remove must lie between 0 and 1, got \[0.5, 1.0\]"),
        ({"search": "magnitud"}, "magnitud"),
    ],
)
def test_what_can_not_be_measured_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=message):
        sensitivity(str(bundle.path), tmp_path / "out", Settings(**settings))
    assert not (tmp_path / "out").exists()


def test_no_bundle_is_one_message(tmp_path: Path) -> None:
    done = finish(start("sensitivity", tmp_path, log=tmp_path / "log"))
    assert done.status == 2
    assert done.printed == f"{tmp_path}: no bundle here (bundle.json is missing)\n"
