"""Channels of VAE decoders by Torch-Pruning's graph: exact, never of latents or pixels, in a bundle that reloads."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from fresh import run_fresh
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.halves import halves
from dit_compress.structure.compact import TOLERANCE
from dit_compress.structure.facts import MaskPoint
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress_plugins.latent_diffusers_vae.codec import DiffusersCodec, describe
from dit_compress_plugins.prune_channels.proof import count, distance, exact, filled
from dit_compress_plugins.prune_channels.step import ChannelPruning, Chosen, latent_of

if TYPE_CHECKING:
    from torch import nn

CONFIGS: dict[str, dict[str, Any]] = {
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8, "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5,
    },
    "AutoencoderKLWan": {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
}  # fmt: skip


LOOK = """\
import sys
import torch
from dit_compress.model.bundle import Bundle

codec, given = Bundle.open(sys.argv[1]).codec(), torch.load(sys.argv[2])
with torch.no_grad():
    torch.testing.assert_close(codec.decode(given["latent"]), given["decoded"])
assert "torch_pruning" not in sys.modules, "a pruned bundle needs no library"
"""


def step(**options: Any) -> ChannelPruning:
    return part("prune", "channels", **({"ratio": 0.5} if "params" not in options else {}) | options)


def wrapped(name: str, config: dict[str, Any] | None = None) -> DiffusersCodec:
    torch.manual_seed(0)
    vae = getattr(diffusers, name)(**(config or CONFIGS[name])).eval().requires_grad_(requires_grad=False)
    return DiffusersCodec(vae, describe(vae))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("base") / "bundle")


@cache
def chosen_of(name: str) -> tuple[DiffusersCodec, Chosen]:
    """A codec, and what goes of it."""
    codec = wrapped(name)
    return codec, step().choose(codec, values=True)


@pytest.mark.parametrize(("name", "groups"), [("video_vae", 3), ("AutoencoderKLLTXVideo", 5), ("AutoencoderKLWan", 10)])
def test_masked_equals_compact_in_float64(base: Bundle, name: str, groups: int) -> None:
    codec: Any = base.codec()
    codec, chosen = (codec, step().choose(codec, values=True)) if name == "video_vae" else chosen_of(name)
    assert len(chosen.axes) == groups
    probe, latent = filled(codec, chosen.decoder), latent_of(codec)
    assert distance(probe, latent, chosen.axes, chosen.kept) <= TOLERANCE == 1e-10
    assert distance(codec, latent, chosen.axes, chosen.kept) <= TOLERANCE
    assert all(len(units) == axis.units // 2 for axis in chosen.axes for units in [chosen.kept[axis.name]])
    # It is no empty equality: what goes counts, and a slice of other channels, or a mask that is missing, is seen.
    axis = chosen.axes[0]
    rolled = replace(axis.members[-1], indices=np.roll(axis.members[-1].indices, 1, 0))
    wrongs = (replace(axis, members=(*axis.members[:-1], rolled)), replace(axis, masks=()))
    for wrong in wrongs if name == "video_vae" else ():
        assert exact(probe, latent, [wrong, *chosen.axes[1:]], chosen.kept).keys() == {axis.name}
    # Latents and pixels keep their channels; the encoder keeps all.
    owned = {(member.tensor, member.dim) for axis in chosen.axes for member in axis.members}
    assert {tensor for tensor, _ in owned} <= chosen.decoder == halves(codec).decoder
    first, last = {
        "video_vae": ("decoder.stem", "decoder.head.linear"),
        "AutoencoderKLLTXVideo": ("vae.decoder.conv_in.conv", "vae.decoder.conv_out.conv"),
        "AutoencoderKLWan": ("vae.decoder.conv_in", "vae.decoder.conv_out"),
    }[name]
    assert (f"{first}.weight", 1) not in owned
    assert (f"{last}.weight", 0) not in owned
    assert {first, last} <= chosen.left.keys()


def test_a_layer_that_the_graph_does_not_cover_is_named_and_never_cut() -> None:
    chosen = chosen_of("AutoencoderKLWan")[1]
    time_conv = "vae.decoder.up_blocks.0.upsamplers.0.time_conv"
    assert chosen.left[time_conv] == "Torch-Pruning's graph does not reach it"
    assert "vae.decoder.mid_block.attentions.0.to_qkv" in chosen.left
    assert not any(member.tensor.startswith(time_conv) for axis in chosen.axes for member in axis.members)
    said = step().described(chosen)
    assert "; nothing of vae.post_quant_conv, vae.decoder.conv_in, vae.decoder.up_blocks" in said
    assert said.endswith("time_conv and 2 more (Torch-Pruning's graph does not reach it)")
    assert said.count("(it stands in no block of several layers)") == 1
    hunyuan: dict[str, Any] = {
        "latent_channels": 4, "block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"(\S+, ){2}\S+ and \d+ more: a GroupNorm stands over its channels") as raised:
        step().choose(wrapped("AutoencoderKLHunyuanVideo", hunyuan), values=True)
    assert raised.value.problems[0][2] == "Train a small decoder onto its latents instead: latent: {use: decoder}"


def test_a_pruned_codec_reloads_in_a_fresh_process_with_the_latents_of_the_whole_one(
    base: Bundle, tmp_path: Path
) -> None:
    planned = step().plan(base.spec)
    result = step().run(tiny_context(tmp_path / "pruned", input=base))
    assert result.bundle is not None
    bundle = Bundle.open(result.bundle.path)
    assert bundle.latents == base.latents == base.digest("latent") != bundle.digest("latent")
    before, after, shaped = base.codec(), bundle.codec(), planned.codec()
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (after, shaped)]
    assert shapes[0] == shapes[1], "plan and run cut differently"
    video = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(before.encode(video), after.encode(video))
        latent = after.encode(video)
        decoded = after.decode(latent)
    torch.save({"latent": latent, "decoded": decoded}, tmp_path / "expected.pt")
    ran = run_fresh(LOOK, bundle.path, tmp_path / "expected.pt", folder=tmp_path)
    assert ran.status == 0, ran.printed
    metrics, written = result.metrics, json.loads((tmp_path / "pruned" / "channels.json").read_text("utf-8"))
    names = halves(before).decoder
    assert metrics["params_before"] == count(before, names) == 16508
    assert metrics["params_after"] == count(after, names) == 13736
    assert planned.notes[0].startswith(f"16,508 → {metrics['params_after']:,} parameters in the decoder; channels of 3")
    assert {name: entry["of"] for name, entry in written["kept"].items()} == {
        "channel:decoder.stages.0.blocks.0.mix.conv": 16,
        "channel:decoder.stages.1.blocks.0.mix.conv": 16,
        "channel:decoder.frames.blocks.0.mix.conv": 8,
    }
    assert "decoder.head.linear" in written["left"]


def test_a_pruned_decoder_is_trained_after_the_whole_one(base: Bundle, tmp_path: Path) -> None:
    pruned = step().run(tiny_context(tmp_path / "pruned", input=base)).bundle
    assert pruned is not None
    train = part("latent", "decoder", student="input", steps=2, batch=2, validation={"every": 1}, warmup=0, ema=0)
    healed = train.run(tiny_context(tmp_path / "healed", input=pruned, teacher=base))
    assert healed.bundle.spec.need_latent().log == pruned.spec.need_latent().log
    assert healed.bundle.latents == base.latents
    one, two = (bundle.codec().state_dict() for bundle in (pruned, healed.bundle))
    moved = {name for name in one if not torch.equal(one[name], two[name])}
    assert any(".mix." in name for name in moved)
    assert all(name.startswith("decoder.") for name in moved)
    # Its decoder can be cut again, and a decoder that was trained small as well.
    again = step(ratio=0.5).run(tiny_context(tmp_path / "again", input=healed.bundle)).bundle
    assert again is not None
    assert len(again.spec.need_latent().log) == 2
    small = part("latent", "decoder", widths=[8, 8], frame_width=8, steps=1, batch=2, validation={"every": 1})
    trained = small.run(tiny_context(tmp_path / "small", input=again)).bundle
    cut = step().run(tiny_context(tmp_path / "cut", input=trained))
    assert cut.metrics["params_after"] < cut.metrics["params_before"]
    assert cut.bundle.latents == base.latents


def test_params_are_met_from_below_or_refused_with_what_can_be(base: Bundle) -> None:
    codec: Any = base.codec()
    names = halves(codec).decoder

    def size(**options: Any) -> int:
        from dit_compress.structure.apply import apply_edits

        made: nn.Module = base.codec()  # type: ignore[assignment]
        apply_edits(made, step(**options).choose(codec, values=True).edits(made))
        return count(made, names)

    assert size(params=14000.0, multiple_of=1) in range(13500, 14001)
    assert size(params=0.8, multiple_of=1) in range(12700, int(0.8 * 16508) + 1)
    with pytest.raises(UserError, match=r"has 16,508 parameters, and at least ([\d,]+) with as many") as raised:
        size(params=100.0)
    assert "train a small decoder" in str(raised.value.problems[0][2])
    with pytest.raises(UserError, match="give either 'ratio' or 'params'"):
        part("prune", "channels")


def test_channels_that_stay_are_the_library_s_largest(base: Bundle) -> None:
    codec: Any = base.codec()
    block = codec.decoder.stages[0].blocks[0]
    scores = block.mix.conv.weight.double().square().flatten(1).sum(1)
    scores = scores / 1 + block.out.weight.double().square().sum((0, 2, 3))
    chosen = step().choose(codec, values=True)
    name = "channel:decoder.stages.0.blocks.0.mix.conv"
    expected = tuple(sorted(scores.argsort(descending=True)[: len(scores) // 2].tolist()))
    assert chosen.kept[name] == expected
    kept = {
        importance: step(importance=importance).choose(codec, values=True).kept[name] for importance in ("lamp", "fpgm")
    }
    assert kept["lamp"] == expected, "within one group LAMP ranks as the magnitude does"
    assert len(kept["fpgm"]) == len(expected)


def test_masks_stand_where_channels_are_made_and_where_they_are_read(base: Bundle) -> None:
    chosen = step().choose(base.codec(), values=True)
    points = {(point.module, point.side): point for axis in chosen.axes[:1] for point in axis.masks}
    path = "decoder.stages.0.blocks.0"
    assert points.keys() == {(f"{path}.mix.conv", "output"), (f"{path}.out", "input")}
    assert all(isinstance(point, MaskPoint) and point.dim == 1 for point in points.values())
