"""The codec h3ae: time, chunks, tiles, attention by hand, its start, training, the first frame, exporting."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.data.samples import to_video
from dit_compress.testing.steps import drawn, tiny_context
from dit_compress.train.codec import step as codec_step
from dit_compress.train.codec.critics import FrameCritic
from dit_compress.train.objective import Batch
from dit_compress_plugins.latent_h3ae import H3AEOptions, latent, start
from dit_compress_plugins.latent_h3ae.blocks import Attention
from dit_compress_plugins.latent_h3ae.codec import H3AE
from dit_compress_plugins.latent_h3ae.step import H3AEStep

SMALL: dict[str, Any] = {"channels": 6, "widths": (8, 8, 8, 8), "num_blocks": 1, "heads": 2, "radius": 1}
RATIOS = [(4, 16, 16), (4, 32, 32), (8, 32, 32), (8, 64, 64)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def clips(count: int, frames: int = 17, size: int = 64) -> Tensor:
    """Smooth random videos in [-1, 1]."""
    coarse = torch.rand(count, 3, frames, size // 8, size // 8) * 2 - 1
    return functional.interpolate(coarse, (frames, size, size), mode="trilinear")


def shaken(codec: H3AE, much: float = 0.3) -> H3AE:
    """A codec whose branches, delays and gates matter."""
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(torch.randn_like(parameter) * much)
    return codec.eval()


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5 * wanted.abs().max().item(), rtol=0)


# ------------------------------------------------------------------ shapes and time


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_papers_ratios_come_from_one_config_and_chunks_of_any_length_are_the_whole(
    ratio: tuple[int, int, int],
) -> None:
    codec, video = shaken(H3AE(ratio=ratio, chunk=2, **SMALL)), clips(2, 1 + 4 * ratio[0])
    first = video[:, :, 0]
    with torch.no_grad():
        latent_BCTHW = codec.encode(video)
        assert latent_BCTHW.shape == (2, 6, 5, 64 // ratio[1], 64 // ratio[2])
        same(latent_BCTHW, codec.encode_raw(video))
        assert codec.decode(codec.encode(video[:, :, :1])).shape == (2, 3, 1, 64, 64)
        for given in ({}, {"first": first}):
            whole = codec.decode_raw(latent_BCTHW, **given)
            assert whole.shape == video.shape
            for chunk in (1, 2, 3):
                pieces = codec.decode_chunks(latent_BCTHW, chunk, given.get("first"))
                same(torch.cat(list(pieces), 2), whole)
        second = codec.decode_raw(latent_BCTHW[:, :, 2:])
    # What the comparison sees does depend on what is carried over.
    assert (second[:, :, 1:] - whole[:, :, 1 + 2 * ratio[0] :]).abs().max() > 1e-3 * whole.abs().max()


def test_a_latent_frame_ignores_later_frames_bit_for_bit_and_so_does_the_decoder() -> None:
    codec, video = shaken(H3AE(**SMALL)), clips(1, 25)
    with torch.no_grad():
        reference = codec.encode(video)
        for first_changed, unchanged in ((1, 1), (9, 2), (17, 3)):
            changed = video.clone()
            changed[:, :, first_changed:] = torch.randn_like(changed[:, :, first_changed:])
            encoded = codec.encode(changed)
            assert torch.equal(encoded[:, :, :unchanged], reference[:, :, :unchanged])
            assert not torch.equal(encoded[:, :, unchanged], reference[:, :, unchanged])
        decoded, moved = codec.decode(reference), reference.clone()
        moved[:, :, 1] += 1
        again = codec.decode(moved)
    assert torch.equal(again[:, :, :1], decoded[:, :, :1])
    assert not torch.equal(again[:, :, 9:17], decoded[:, :, 9:17])
    assert not torch.equal(again[:, :, 17:], decoded[:, :, 17:]), "the bottleneck looks back"


def test_tiles_and_chunks_together_join_exactly_with_the_first_frame_and_without() -> None:
    codec = shaken(
        H3AE(channels=4, widths=(8, 8, 8), num_blocks=1, heads=2, radius=1, ratio=(4, 16, 16), tile=12, chunk=2)
    )
    assert codec.decode_tiling.overlap == 2 * codec.decode_tiling.reach == 6
    video = clips(1, 9, 16 * 16)[..., : 10 * 16]
    with torch.no_grad():
        latent_BCTHW = codec.encode(video)
        same(latent_BCTHW, codec.encode_raw(video))
        same(codec.decode(latent_BCTHW), codec.forward(latent_BCTHW))
        first = video[:, :, 0]
        same(codec.decode(latent_BCTHW, first), codec.decode_raw(latent_BCTHW, first=first))


def test_attention_over_the_whole_frame_has_no_reach_that_tiles_could_keep() -> None:
    codec = H3AE(**{**SMALL, "radius": None}, tile=8)
    assert codec.decode_tiling.overlap == 4
    assert codec.decode_tiling.margin == 1.0, "tiles blend"


# ------------------------------------------------------------------ attention


@pytest.mark.parametrize("radius", [1, None])
def test_attention_is_softmax_over_near_places_of_the_window(radius: int | None) -> None:
    layer, (frames, height, width) = Attention(8, heads=2, window=2, radius=radius), (3, 2, 4)
    with torch.no_grad():
        layer.delay.normal_()
        layer.keys.bias.normal_()
    x_NCHW = torch.randn(frames, 8, height, width)
    with torch.no_grad():
        found = layer(x_NCHW, frames)
        normed = layer.norm(x_NCHW)
        query, (keys, values) = layer.query(normed), layer.keys(normed).chunk(2, 1)
        expected = torch.zeros_like(x_NCHW)
        for t in range(frames):
            for place in range(height * width):
                y, x = divmod(place, width)
                for head in (slice(0, 4), slice(4, 8)):
                    scores, seen = [], []
                    for delay in range(2):
                        for there in range(height * width):
                            v, u = divmod(there, width)
                            if radius is not None and max(abs(v - y), abs(u - x)) > radius:
                                continue
                            known = t - delay >= 0  # before the first frame there are zeros
                            key = keys[t - delay, head, v, u] if known else torch.zeros(4)
                            scores.append(query[t, head, y, x] @ (key + layer.delay[delay, head]) / 2)
                            seen.append(values[t - delay, head, v, u] if known else torch.zeros(4))
                    expected[t, head, y, x] = torch.softmax(torch.stack(scores), 0) @ torch.stack(seen)
        same(found, x_NCHW + layer.out(expected))


def test_heads_share_the_width_and_ratios_are_powers_of_two() -> None:
    with pytest.raises(UserError, match="3 heads can't share a width of 8"):
        H3AE(**{**SMALL, "heads": 3})
    with pytest.raises(UserError, match="an? h3ae can't be built with ratio 8x24x24"):
        H3AE(ratio=(8, 24, 24), **SMALL)
    with pytest.raises(UserError, match="16 frames"):
        H3AE(**SMALL).encode(torch.zeros(1, 3, 16, 64, 64))


# ------------------------------------------------------------------ the start


def test_the_start_is_a_low_pass_and_its_transpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "NOISE", 0.0)
    rows = start.cosines(4, 48)
    torch.testing.assert_close(rows @ rows.T, torch.eye(48), atol=1e-6, rtol=0)
    # The first three are the mean colours; a colour is 16 values in the order of a pixel unshuffle.
    assert rows[1].tolist() == pytest.approx([0.0] * 16 + [0.25] * 16 + [0.0] * 16)
    values = torch.arange(32.0)  # 2 frames of 4 channels of 2 x 2 places, to 4 channels: means over frames and places
    layer, back = start.averaging(32, 4, 2), start.repeating(4, 32, 2)
    with torch.no_grad():
        shares, repeats = (each.weight[:, :, 0, 0] * each.gain for each in (layer, back))
        # Channel 0 is values 0 … 3 of the first frame and 16 … 19 of the second: a mean of 9.5.
        assert (shares @ values).tolist() == pytest.approx([9.5, 13.5, 17.5, 21.5], rel=1e-5)
        assert (repeats @ torch.tensor([1.0, 2, 3, 4]))[16:24].tolist() == pytest.approx(
            [1.0] * 4 + [2.0] * 4, rel=1e-5
        )


@pytest.mark.parametrize("ratio", RATIOS)
def test_at_the_start_a_plain_colour_comes_back(ratio: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise in the linear maps and with the branches at zero; the first frame adds nothing yet."""
    monkeypatch.setattr(start, "NOISE", 0.0)
    codec = H3AE(ratio=ratio, channels=12, widths=(12, 12, 24), num_blocks=1, heads=2).eval()
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name.endswith("out.weight"):
                parameter.zero_()
        video = torch.tensor([0.5, -0.25, 1.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 1 + ratio[0], 64, 64)
        back = codec.decode(codec.encode(video))
    torch.testing.assert_close(back, video, atol=1e-4, rtol=0)


# ------------------------------------------------------------------ training


def trained(step: H3AEStep, video: Tensor, steps: int, rate: float = 2e-2) -> tuple[H3AE, list[dict[str, float]]]:
    """A codec after some steps of the objective on one batch."""
    codec = step.create(seed=3)
    objective = step.objective(codec)
    optimizer = torch.optim.Adam(codec.parameters(), lr=rate, betas=(0.9, 0.99))
    index, curve = range(len(video)), []
    for at in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * at / steps)) / 2
        terms = objective.loss(objective.phases[-1], Batch(at, index, video, Streams(0, at, index)))
        terms["loss"].backward()
        gradients = [parameter.grad for parameter in codec.parameters()]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
        optimizer.step()
        optimizer.zero_grad()
        curve.append({name: value.item() for name, value in terms.items()})
    return codec, curve


def moving(count: int = 4) -> Tensor:
    """Squares that move, ``[B,3,9,32,32]``."""
    part = drawn(num_clips=count)
    return to_video(torch.stack([torch.from_numpy(clip.pixels()) for clip in part.build().clips(Path(), "train")]))


def test_from_random_weights_the_error_falls_below_the_best_constant() -> None:
    options = H3AEOptions(ratio="8x32x32", channels=24, widths=(24, 48, 48), blocks=1, bf16=False)
    video = moving()
    codec, curve = trained(H3AEStep(options), video, 40)
    with torch.no_grad():
        error = (codec.decode_raw(codec.encode_raw(video)) - video).abs().mean()
    # The constant of least absolute error is each clip's median, per colour.
    constant = (video - video.flatten(2).median(2).values[:, :, None, None, None]).abs().mean()
    assert error < constant
    assert curve[-1]["pixel"] < 0.75 * curve[0]["pixel"]
    assert {"loss", "pixel", "temporal", "kl", "consistency", "psnr"} <= set(curve[0])


def test_bf16_gradients_of_a_nine_frame_clip_are_right() -> None:
    video, codec = clips(2, 9), shaken(H3AE(**SMALL), 0.1)
    gradients = []
    for enabled in (False, True):
        codec.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            decoded = codec.decode_raw(codec.encode_raw(video), first=video[:, :, 0])
        (decoded.float() - video).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in codec.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_the_critic_begins_by_the_seed_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(codec_step, "fit", lambda objective, *_: seen.append(objective.critic))
    small: dict[str, Any] = {"ratio": "8x16x16", "channels": 2, "widths": (8, 8), "blocks": 1, "heads": 2, "steps": 1}
    step = H3AEStep(H3AEOptions(**small, losses={"adversarial": 0.1}))
    step.run(replace(tiny_context(tmp_path), seed=5))
    (critic,) = seen
    pairs = zip(critic.parameters(), FrameCritic(5).parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert not torch.equal(critic.near.weight, FrameCritic(0).near.weight)


# ------------------------------------------------------------------ the first frame


def test_the_first_frame_is_seen_where_it_is_given_sample_by_sample() -> None:
    codec, video = H3AE(**SMALL).eval(), clips(2, 9)
    first = video[:, :, 0]
    with torch.no_grad():
        latent_BCTHW = codec.encode(video)
        plain = codec.decode(latent_BCTHW)
        assert torch.equal(codec.decode(latent_BCTHW, first), plain), "at the start it adds nothing"
        shaken(codec)
        raw = codec.encode_raw(video)
        plain, given = codec.decode_raw(raw), codec.decode_raw(raw, first=first)
        mixed = codec.decode_raw(raw, first=first, known=torch.tensor([0.0, 1.0]))
    assert not torch.allclose(given[:, :, 5:], plain[:, :, 5:])
    same(mixed, torch.cat([plain[:1], given[1:]]))
    with pytest.raises(UserError, match="Give a first frame of the video's size"):
        codec.decode(latent_BCTHW, first[..., :32])


def test_one_network_learns_with_the_first_frame_and_without() -> None:
    """Half of the samples are given it, drawn anew each step. Of a still picture it tells the later frames."""
    options = H3AEOptions(
        ratio="8x16x16", channels=2, widths=(16, 16, 16), blocks=1, bf16=False, losses={"consistency": 0.0}
    )
    video = clips(4, 1, 32).expand(4, 3, 9, 32, 32).contiguous()
    codec, _ = trained(H3AEStep(options), video, 60)
    with torch.no_grad():
        raw = codec.encode_raw(video)
        errors = [
            (codec.decode_raw(raw, **given) - video)[:, :, 1:].square().mean().item()
            for given in ({}, {"first": video[:, :, 0]})
        ]
    assert errors[1] < 0.75 * errors[0]
    assert errors[0] < 0.75 * video.square().mean()


# ------------------------------------------------------------------ what exporters need


def test_the_decoder_exports_with_ranks_up_to_five_and_no_conv3d() -> None:
    codec, latent_BCTHW = shaken(H3AE(**SMALL)), torch.randn(1, 6, 3, 2, 3)
    program = torch.export.export(codec, (latent_BCTHW,)).run_decompositions({})
    values = [node.meta["val"] for node in program.graph.nodes if "val" in node.meta]
    assert max(value.ndim for value in values if hasattr(value, "ndim")) <= 5
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert {call for call in calls if "conv" in call} == {"aten.conv2d.default"}
    torch.testing.assert_close(program.module()(latent_BCTHW), codec.decode(latent_BCTHW), atol=1e-4, rtol=1e-4)


def test_the_hook_describes_the_plugin() -> None:
    plugin = latent()
    assert (plugin.name, plugin.data, plugin.slots) == ("h3ae", True, ("teacher",))
    options = H3AEOptions()
    assert (options.losses.epsilon, options.losses.consistency) == (0.0, 0.1), "L1 and consistency"
    assert H3AEOptions(losses={"haar": 0.5}).losses.epsilon == 0.0
