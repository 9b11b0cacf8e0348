"""The video VAE: PCA, causality, tiles, losses, traps of bf16, saving, exporting."""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from toy import context_in

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.data.clips import write_captions
from dit_compress.data.samples import to_pixels
from dit_compress.data.video import write_video
from dit_compress.model.codec import tiles
from dit_compress.model.codec.layers import CausalConv, EqualConv, FromPatches
from dit_compress.model.codec.rows import merge_time, rows_of, split_time, video_of
from dit_compress.plugin.options import options_as_data
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.train.codec import losses
from dit_compress.train.codec.likeness import Likeness
from dit_compress.train.codec.step import measure_statistics
from dit_compress.train.objective import Batch
from dit_compress_plugins.latent_video_vae import VideoVAEOptions, latent, pca
from dit_compress_plugins.latent_video_vae.start import initialise
from dit_compress_plugins.latent_video_vae.step import VideoVAEStep
from dit_compress_plugins.latent_video_vae.vae import VideoVAE

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from dit_compress.step.context import Result

SMALL = {"channels": 6, "widths": (8, 8, 8, 8), "num_blocks": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.manual_seed(0)


def clips(count: int, frames: int = 17, size: int = 64) -> Tensor:
    """Smooth random videos in [-1, 1]."""
    coarse = torch.rand(count, 3, frames, size // 8, size // 8) * 2 - 1
    return functional.interpolate(coarse, (frames, size, size), mode="trilinear")


def shaken(vae: VideoVAE, much: float = 0.05) -> VideoVAE:
    """A VAE whose residual networks matter."""
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter) * much)
    return vae


# ------------------------------------------------------------------ PCA


def test_pca_agrees_with_numpy_svd() -> None:
    patches = torch.randn(60, 20) @ torch.randn(20, 20) + 3.0
    basis = pca.principal_components(patches, 7)
    values = patches.double().numpy()
    centred = values - values.mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(basis.variance, singular[:7] ** 2 / 60, rtol=1e-3)
    np.testing.assert_allclose(np.abs((basis.analysis.numpy() @ rows[:7].T).diagonal()), 1.0, atol=1e-3)
    expected = centred @ rows[:7].T @ rows[:7] + values.mean(0)
    np.testing.assert_allclose(basis.decode(basis.encode(patches)), expected, atol=2e-3)


def test_pca_of_fewer_patches_than_components_is_orthonormal_and_finite() -> None:
    basis = pca.principal_components(torch.randn(4, 30), 9)
    torch.testing.assert_close(basis.analysis @ basis.analysis.T, torch.eye(9), atol=1e-4, rtol=0)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_conditioning_keeps_the_reconstruction_and_gives_variance_one(whitening: float) -> None:
    patches = torch.randn(400, 30) * torch.linspace(0.1, 3.0, 30)
    plain = pca.principal_components(patches, 8)
    basis = pca.condition(plain, whitening)
    expected = plain.decode(plain.encode(patches))
    torch.testing.assert_close(basis.decode(basis.encode(patches)), expected, atol=1e-4, rtol=0)
    assert basis.encode(patches).var(0, correction=0).mean() == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(basis.encode(patches).var(0, correction=0), basis.variance, atol=0.3, rtol=0.3)


def test_alignment_finds_a_rotation() -> None:
    rotation, codes = pca.orthogonal(5), torch.randn(50, 5)
    torch.testing.assert_close(pca.alignment(codes, codes @ rotation.T), rotation, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [(8, 32, 32), (4, 16, 16), (4, 32, 32), (8, 64, 64)])
def test_at_the_start_the_vae_is_pca_of_first_frames_and_groups(ratio: tuple[int, int, int]) -> None:
    videos = clips(6)
    vae = VideoVAE(ratio=ratio, **SMALL)
    initialise(vae, [videos[:3], videos[3:]], whitening=0.5)
    decoded = vae.decode(vae.encode(videos))
    first, rest = rows_of(videos, ratio[0])
    assert rest is not None
    expected = []
    for rows in (first, rest):
        channels = functional.pixel_unshuffle(rows, ratio[1])
        patches = channels.permute(0, 2, 3, 1).flatten(0, 2)
        basis = pca.principal_components(patches, 6)
        restored = basis.decode(basis.encode(patches)).reshape(len(rows), *channels.shape[2:], -1).permute(0, 3, 1, 2)
        expected.append(functional.pixel_shuffle(restored, ratio[1]))
    torch.testing.assert_close(decoded, video_of(*expected), atol=2e-3, rtol=0)


# ------------------------------------------------------------------ shapes and time


@pytest.mark.parametrize("ratio", [(8, 32, 32), (4, 16, 16), (4, 32, 32), (8, 64, 64)])
def test_shapes(ratio: tuple[int, int, int]) -> None:
    vae = VideoVAE(ratio=ratio, **SMALL)
    for frames in (1, 1 + 2 * ratio[0]):
        latent_BCTHW = vae.encode(clips(2, frames, 128))
        assert latent_BCTHW.shape == (2, 6, 1 + (frames - 1) // ratio[0], 128 // ratio[1], 128 // ratio[2])
        assert vae.decode(latent_BCTHW).shape == (2, 3, frames, 128, 128)


def test_a_latent_frame_ignores_later_frames_bit_for_bit() -> None:
    vae, video = shaken(VideoVAE(**SMALL)), clips(1, 25)
    reference = vae.encode(video)
    for first_changed, unchanged in ((1, 1), (9, 2), (17, 3)):
        changed = video.clone()
        changed[:, :, first_changed:] = torch.randn_like(changed[:, :, first_changed:])
        encoded = vae.encode(changed)
        assert torch.equal(encoded[:, :, :unchanged], reference[:, :, :unchanged])
        assert not torch.equal(encoded[:, :, unchanged], reference[:, :, unchanged])


def test_decoding_ignores_later_latent_frames_and_sees_earlier_ones() -> None:
    vae, latent_BCTHW = shaken(VideoVAE(**SMALL)), torch.randn(1, 6, 3, 2, 2)
    reference = vae.decode(latent_BCTHW)
    changed = latent_BCTHW.clone()
    changed[:, :, 1] += 1
    decoded = vae.decode(changed)
    assert torch.equal(decoded[:, :, :1], reference[:, :, :1])
    assert not torch.equal(decoded[:, :, 9:], reference[:, :, 9:])


def test_rows_and_video_are_inverse() -> None:
    video = torch.randn(2, 3, 17, 8, 8)
    assert torch.equal(video_of(*rows_of(video, 8)), video)
    assert torch.equal(split_time(merge_time(video), 17), video)


def test_frames_or_sizes_that_do_not_fit_are_refused() -> None:
    vae = VideoVAE(**SMALL)
    with pytest.raises(UserError, match="16 frames"):
        vae.encode(torch.zeros(1, 3, 16, 64, 64))
    with pytest.raises(UserError, match="64x48"):
        vae.encode(torch.zeros(1, 3, 9, 64, 48))
    with pytest.raises(UserError, match="8x24x24"):
        VideoVAE(ratio=(8, 24, 24), **SMALL)


# ------------------------------------------------------------------ traps of bf16


def test_a_causal_conv_is_conv3d_padded_in_time_with_the_past() -> None:
    conv, x_BCTHW = CausalConv(4, 5, 3, taps=2), torch.randn(2, 4, 3, 6, 6)
    present, past = (conv.conv.weight * conv.conv.gain).chunk(2, 1)
    weight = torch.stack([past, present], 2)
    expected = functional.conv3d(functional.pad(x_BCTHW, (1, 1, 1, 1, 1, 0)), weight, conv.conv.bias)
    torch.testing.assert_close(split_time(conv(merge_time(x_BCTHW), 3), 3), expected, atol=1e-5, rtol=0)


def test_bf16_gradients_of_a_nine_frame_clip_are_right() -> None:
    """torch's bf16 conv3d gives garbage here when time is padded by ``padding=`` (relative error 1e36)."""
    video = clips(2, 9)
    vae = shaken(VideoVAE(**SMALL))
    gradients = []
    for enabled in (False, True):
        vae.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            decoded = vae.decoder(vae.encoder(video))
        (decoded.float() - video).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


@pytest.mark.parametrize(("channels", "cell"), [(3, 4), (24, 4), (24, 8), (24, 32)])
def test_bf16_patches_are_right(channels: int, cell: int) -> None:
    """A strided bf16 convolution of 24 channels is wrong by 130% on torch 2.13 with AMX."""
    patches, x_NCHW = FromPatches(EqualConv(channels * cell**2, 16), cell), torch.randn(2, channels, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        low = patches(x_NCHW).float()
    weight = (patches.linear.weight * patches.linear.gain).reshape(16, channels, cell, cell)
    expected = functional.conv2d(x_NCHW, weight, patches.linear.bias, stride=cell)
    assert (low - expected).norm() < 0.02 * expected.norm()


# ------------------------------------------------------------------ chunks of long videos


@pytest.mark.parametrize("ratio", [(8, 32, 32), (4, 16, 16), (4, 32, 32), (8, 64, 64)])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_decoding_in_chunks_is_decoding_the_whole(ratio: tuple[int, int, int], chunk: int) -> None:
    vae, latent_BCTHW = shaken(VideoVAE(ratio=ratio, **SMALL), 0.5), torch.randn(2, 6, 5, 2, 2)
    with torch.no_grad():
        whole = vae.forward(latent_BCTHW)
        pieces = list(vae.decode_chunks(latent_BCTHW, chunk))
    counts = [min(chunk, 5 - start) for start in range(0, 5, chunk)]
    frames = [1 + ratio[0] * (counts[0] - 1), *(ratio[0] * count for count in counts[1:])]
    assert [piece.shape[2] for piece in pieces] == frames
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


@pytest.mark.parametrize("ratio", [(8, 32, 32), (4, 16, 16)])
def test_encoding_in_chunks_is_encoding_the_whole(ratio: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    vae = shaken(VideoVAE(ratio=ratio, chunk=2, **SMALL), 0.5)
    video = clips(2, 1 + 4 * ratio[0])
    with torch.no_grad():
        whole, chunked = vae.encoder(video), vae.encode(video)
    torch.testing.assert_close(chunked, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


def test_chunks_that_forget_the_past_would_be_seen() -> None:
    """What the tests above compare does depend on what is carried over."""
    vae, latent_BCTHW = shaken(VideoVAE(**SMALL), 0.5), torch.randn(1, 6, 4, 2, 2)
    with torch.no_grad():
        whole, second = vae.forward(latent_BCTHW), vae.forward(latent_BCTHW[:, :, 2:])
    # The later frames of a chunk that begins afresh: 8 frames of its second latent frame.
    assert (second[:, :, 1:] - whole[:, :, 17:]).abs().max() > 1e-3 * whole.abs().max()


def test_a_long_video_is_decoded_in_chunks_by_itself() -> None:
    vae, latent_BCTHW = shaken(VideoVAE(chunk=2, **SMALL), 0.5), torch.randn(1, 6, 5, 2, 2)
    lengths: list[int] = []
    vae.decoder.register_forward_hook(lambda _module, given, _out: lengths.append(given[0].shape[2]))
    with torch.no_grad():
        whole = vae.forward(latent_BCTHW)
        lengths.clear()
        decoded = vae.decode(latent_BCTHW)
    assert lengths == [2, 2, 1]
    torch.testing.assert_close(decoded, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


# ------------------------------------------------------------------ tiles of large frames


def test_tiles_of_a_local_decoder_join_exactly() -> None:
    latent_BCTHW = torch.randn(1, 3, 2, 11, 7)

    def decode(part: Tensor, _place: tiles.Place = (0, 0)) -> Tensor:
        return part.repeat_interleave(4, -2).repeat_interleave(4, -1)

    for overlap, reach in ((2, 3), (2, 1), (0, 0)):
        joined = tiles.in_tiles(decode, latent_BCTHW, tiles.Tiling(4, overlap, reach), 1, 4)
        torch.testing.assert_close(joined, decode(latent_BCTHW), atol=1e-6, rtol=0)


def test_weights_of_a_tile_by_hand() -> None:
    # 4 cells of 2 values, overlap 2, reach 1: one cell weighs nothing, and there is nothing left to rise over.
    assert tiles.ramp(2, 8, tiles.Tiling(4, 2, 1), 2).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert tiles.ramp(0, 8, tiles.Tiling(4, 2, 1), 2).tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    # A reach of 3 does not fit: half a cell weighs nothing, and the weight rises over the one in the middle.
    assert tiles.ramp(2, 6, tiles.Tiling(4, 2, 3), 2).tolist() == [0, 0.25, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("ratio", [(4, 16, 16), (8, 32, 32)])
def test_tiles_that_see_far_enough_join_exactly(ratio: tuple[int, int, int]) -> None:
    """By default the overlap is twice the network's reach."""
    torch.manual_seed(2)
    vae = shaken(VideoVAE(channels=4, widths=(8, 8, 8, 8), num_blocks=1, ratio=ratio, tile=8), 0.5)
    assert vae.decode_tiling.overlap == 2 * vae.decode_tiling.reach == 4
    latent_BCTHW, video = torch.randn(1, 4, 3, 13, 10), clips(1, 1 + 2 * ratio[0], 16 * ratio[1])[..., : 10 * ratio[2]]
    with torch.no_grad():
        whole, tiled = vae.forward(latent_BCTHW), vae.decode(latent_BCTHW)
        raw, in_tiles = vae.encoder(video), vae.encode(video)
    torch.testing.assert_close(tiled, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)
    torch.testing.assert_close(in_tiles, raw, atol=1e-5 * raw.abs().max().item(), rtol=0)


def test_tiles_and_chunks_together_join_exactly() -> None:
    vae = shaken(VideoVAE(channels=4, widths=(8, 8, 8, 8), num_blocks=1, ratio=(4, 16, 16), tile=8, chunk=2), 0.5)
    latent_BCTHW = torch.randn(1, 4, 5, 13, 10)
    with torch.no_grad():
        whole, tiled = vae.forward(latent_BCTHW), vae.decode(latent_BCTHW)
    torch.testing.assert_close(tiled, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


def seam(tiled: Tensor, whole: Tensor) -> float:
    """How far the worst column stands out: the greatest jump of the error to the next column, over the mean jump."""
    error = tiled - whole
    jump_X = (error[..., 1:] - error[..., :-1]).abs().flatten(0, -2).mean(0)
    return float(jump_X.max() / jump_X[jump_X > 0].mean())


def test_tiles_with_less_overlap_show_no_seam_and_hard_cuts_would() -> None:
    """Tiles of 128 pixels that share 64: the picture is as good there as elsewhere, within 2%, and has no edge."""
    torch.manual_seed(3)
    settings = {"channels": 8, "widths": (8, 8, 8, 8), "num_blocks": 2, "ratio": (4, 16, 16)}
    vae = VideoVAE(**settings, tile=8, tile_overlap=4)
    assert vae.decode_tiling.overlap < 2 * vae.decode_tiling.reach
    video = clips(2, 5, 320)[..., :128, :]
    initialise(vae, [video], whitening=0.5)
    shaken(vae)
    hard = VideoVAE(**settings, tile=8, tile_overlap=0)
    hard.load_state_dict(vae.state_dict())
    with torch.no_grad():
        latent_BCTHW = vae.encode(video)
        whole, blended, cut = vae.forward(latent_BCTHW), vae.decode(latent_BCTHW), hard.decode(latent_BCTHW)
    shared = torch.zeros(320, dtype=torch.bool)
    for start in (64, 128, 192):
        shared[start : start + 64] = True

    def worse_where_shared(decoded: Tensor) -> float:
        error_X = (decoded - video).abs().flatten(0, -2).mean(0)
        return float(error_X[shared].mean() / error_X[~shared].mean())

    assert worse_where_shared(blended) == pytest.approx(worse_where_shared(whole), rel=0.02)
    assert seam(blended, whole) < 3
    assert seam(cut, whole) > 4
    assert (blended - whole).abs().max() < 0.1 * (cut - whole).abs().max()


def test_an_overlap_of_more_than_half_a_tile_is_refused() -> None:
    with pytest.raises(UserError, match="tiles of 8 cells can't overlap by 5"):
        VideoVAE(tile=8, tile_overlap=5, **SMALL)


# ------------------------------------------------------------------ losses, by hand


def test_losses_by_hand() -> None:
    video, target = torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)
    video[0, 0, 1, 0, 0] = 0.5
    # |d| = 0.5 ≥ ε: 0.5 - 0.05 = 0.45 on one of 8 pixels.
    assert losses.pixel(video, target, 0.1).item() == pytest.approx(0.45 / 8)
    # |d| = 0.5 < ε: 0.25 / (2·1).
    assert losses.pixel(video, target, 1.0).item() == pytest.approx(0.125 / 8)
    # The difference of the two frames has 4 pixels, one of them 0.5.
    assert losses.temporal_difference(video, target, 0.1).item() == pytest.approx(0.45 / 4)
    assert losses.temporal_difference(video[:, :, :1], target[:, :, :1], 0.1).item() == 0.0
    # One pixel of 0.5 gives ±0.25 in each of three bands, of 2 frames of 1 value.
    assert losses.haar(video, target, 0.1).item() == pytest.approx(0.2 / 2)


def test_haar_and_multiscale_levels_by_hand() -> None:
    video, target = torch.zeros(1, 1, 1, 4, 4), torch.zeros(1, 1, 1, 4, 4)
    video[..., 0, 0] = 1.0
    # epsilon 0 is L1. Level 1: one of 4 places, ±0.5 in each band → 1/8. The low band there is 0.5,
    # so level 2, of one place, has ±0.25 → 1/4.
    assert losses.haar(video, target, 0.0).item() == pytest.approx(1 / 8)
    assert losses.haar(video, target, 0.0, levels=2).item() == pytest.approx((1 / 8 + 1 / 4) / 2)
    # Averages: 1/4 in one of 4 places, then 1/16 in the only one.
    assert losses.multiscale(video, target, 0.0).item() == pytest.approx(1 / 16)
    assert losses.multiscale(video, target, 0.0, levels=2).item() == pytest.approx(1 / 16)
    # Unlike L1, an error that averages out is none.
    video[..., 0, 1] = -1.0
    assert losses.multiscale(video, target, 0.0).item() == 0.0
    assert losses.pixel(video, target, 0.0).item() == pytest.approx(2 / 16)


def test_kl_and_psnr_by_hand() -> None:
    assert losses.kl(torch.zeros(3), 1.0).item() == 0.0
    assert losses.kl(torch.full((3,), 2.0), 0.1).item() == pytest.approx(0.5 * (4 + 0.01 - 1 - 2 * math.log(0.1)))
    assert losses.psnr(torch.full((1, 3, 1, 2, 2), 0.2), torch.zeros(1, 3, 1, 2, 2)).item() == pytest.approx(20.0)


# ------------------------------------------------------------------ the step's pieces


def test_training_improves_on_pca_and_starts_there() -> None:
    given: dict[str, Any] = {"channels": 4, "widths": (32, 32, 32), "blocks": 1, "ratio": "4x16x16", "bf16": False}
    step, videos = VideoVAEStep(VideoVAEOptions(**given, weight_decay=0.1)), clips(4, 9, 32)
    vae = step.create(seed=3)
    step.initialise(vae, [videos])
    objective = step.objective(vae)
    assert objective.roles["vae"].weight_decay == 0.1
    for name, value in {"muon_lr": 0.02, "checkpoint_activations": True}.items():
        with pytest.raises(ValueError, match=f"trains no denoiser, whose blocks '{name}' is about: take it out"):
            VideoVAEOptions(**given, **{name: value})
    plain = options_as_data(VideoVAEOptions(), contents=True)
    assert "decay_norms" not in plain, "keys of recipes that do not decay stay"
    decayed = options_as_data(VideoVAEOptions(weight_decay=0.1), contents=True)
    assert decayed == {**plain, "weight_decay": 0.1, "decay_norms": False}, "by more than when it did nothing"
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    curve = []
    for index in range(40):
        terms = objective.loss(objective.phases[0], Batch(index, range(4), videos, Streams(0, index, range(4))))
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(terms["loss"].item())
    assert curve[-1] < 0.9 * curve[0]
    assert {"loss", "pixel", "temporal", "kl", "psnr"} <= set(terms)


def terms_of(**weights: float) -> dict[str, Tensor]:
    """The loss of a small VAE on a batch, with some weights."""
    options = VideoVAEOptions(channels=4, widths=(8, 8, 8), blocks=1, ratio="4x16x16", bf16=False, losses=weights)
    step, videos = VideoVAEStep(options), clips(2, 9, 32)
    vae = shaken(step.create(seed=3))
    objective = step.objective(vae)
    return objective.loss(objective.phases[0], Batch(0, range(2), videos, Streams(0, 0, range(2))))


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    weights = {"pixel": 0.5, "temporal": 0.25, "haar": 2.0, "multiscale": 3.0, "kl": 0.125}
    terms = terms_of(**weights, epsilon=0.0, levels=2)
    assert terms["loss"].item() == pytest.approx(sum(weights[name] * terms[name].item() for name in weights), rel=1e-5)
    assert "multiscale" not in terms_of()


# ------------------------------------------------------------------ a larger VAE's decoder as teacher


def pair(teacher_ratio: tuple[int, int, int] = (4, 16, 16)) -> tuple[VideoVAEStep, VideoVAE, Likeness]:
    options = VideoVAEOptions(
        channels=4, widths=(8, 8, 8), blocks=1, ratio="4x16x16", bf16=False, losses={"features": 1.0, "pixel": 0.0}
    )
    step = VideoVAEStep(options)
    student = shaken(step.create(0))
    teacher = shaken(VideoVAE(ratio=teacher_ratio, channels=6, widths=(12, 16, 16, 16), num_blocks=2))
    return step, student, Likeness(student, teacher, seed=0)


@pytest.mark.parametrize("ratio", [(4, 16, 16), (8, 32, 32)])
def test_streams_are_paired_by_resolution(ratio: tuple[int, int, int]) -> None:
    """The student's are at cells of 16, 8 and 2 pixels; the teacher's likewise, or at 32, 16, 8 and 2."""
    _, _, likeness = pair(ratio)
    first = {(4, 16, 16): 0, (8, 32, 32): 1}[ratio]
    assert likeness.pairs == [(0, first), (1, first + 1), (2, first + 2)]
    assert [tuple(layer.weight.shape) for layer in likeness.aligner] == [(16, 8), (16, 8), (12, 8)]


def test_a_student_equal_to_its_teacher_is_at_distance_zero() -> None:
    _, student, _ = pair()
    likeness, video = Likeness(student, copy.deepcopy(student), 0), clips(2, 9, 32)
    with torch.no_grad():
        for layer in likeness.aligner:
            layer.weight.copy_(torch.eye(8))
            layer.bias.zero_()
        features = student.features(student.encode(video))
        assert likeness(features, video).item() == pytest.approx(0.0, abs=1e-6)
        likeness.aligner[1].weight.neg_()  # the cosine of one pair of three is -1: a distance of 2
        assert likeness(features, video).item() == pytest.approx(2 / 3, abs=1e-5)


def test_features_train_the_decoder_and_the_maps_and_leave_the_teacher() -> None:
    step, student, likeness = pair((8, 32, 32))
    objective, video = step.objective(student, likeness), clips(2, 9, 32)
    assert set(objective.roles) == {"vae", "teacher", "aligner"}
    assert objective.phases[0].updates == ("vae", "aligner")
    terms = objective.loss(objective.phases[0], Batch(0, range(2), video, Streams(0, 0, range(2))))
    terms["loss"].backward()
    assert all(parameter.grad is None for parameter in likeness.teacher.parameters())
    assert all(parameter.grad.any() for parameter in likeness.aligner.parameters())
    assert student.decoder.stages[0].blocks[0].out.weight.grad.any()
    assert student.decoder.frames.blocks[0].out.weight.grad.any()


def test_features_without_a_teacher_are_refused(tmp_path: Path) -> None:
    step, student, _ = pair()
    with pytest.raises(UserError, match="there is no teacher to take them from"):
        step.likeness(student, context_in(tmp_path))


def test_the_step_trains_on_streamed_clips_with_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for index, video in enumerate(clips(6, 9, 64)):
        write_video(tmp_path / "clips" / f"{index}.mp4", to_pixels(video[None])[0], 8)
    write_captions(tmp_path / "clips", [{"file": f"{index}.mp4", "caption": f"clip {index}"} for index in range(6)])
    settings = {"channels": 4, "widths": (8, 8, 8), "blocks": 1, "ratio": "4x16x16", "bf16": False, "pca_clips": 4}
    data = {"use": "videos", "path": str(tmp_path / "clips"), "frames": 9, "size": [64, 64], "test_fraction": 0.4}

    def run(name: str, **options: Any) -> Result:
        context = context_in(tmp_path / name, **({"teacher": large.bundle} if name == "small" else {}))
        context.parts["data"] = make_part("data", data, installed())
        context.trackers = (make_part("tracker", "jsonl", installed()),)
        return VideoVAEStep(VideoVAEOptions(**settings, **options)).run(context)

    large = run("large", steps=1, batch=2)
    small = run("small", steps=2, batch=2, losses={"features": 0.5})
    assert small.bundle is not None
    assert small.bundle.codec().ratio == (4, 16, 16)
    assert small.metrics["psnr_db"] > 10
    logged = [json.loads(line) for line in (tmp_path / "small" / "curves.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [0, 1]
    assert all(0 < line["features"] < 2 and line["grad_vae"] > 0 and line["grad_aligner"] > 0 for line in logged)


def test_creating_is_deterministic_and_leaves_the_global_generator() -> None:
    step = VideoVAEStep(VideoVAEOptions(channels=4, widths=(8,), blocks=1))
    before = torch.get_rng_state()
    one, two = step.create(5), step.create(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_statistics_normalise_and_survive_saving(tmp_path: Path) -> None:
    videos, vae = clips(6), shaken(VideoVAE(**SMALL))
    initialise(vae, [videos], whitening=0.5)
    measure_statistics(vae, [videos[:3], videos[3:]])
    encoded = vae.encode(videos)
    torch.testing.assert_close(encoded.mean((0, 2, 3, 4)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded.std((0, 2, 3, 4)), torch.ones(6), atol=1e-2, rtol=0)
    vae.save_pretrained(tmp_path)
    loaded = VideoVAE.from_pretrained(tmp_path)
    assert loaded.ratio == (8, 32, 32)
    assert torch.equal(loaded.encode(videos), encoded)
    assert torch.equal(loaded.decode(encoded), vae.decode(encoded))


def test_from_config_works_on_the_meta_device() -> None:
    vae = VideoVAE(**SMALL)
    vae.set_statistics([1.0] * 6, [2.0] * 6)
    with torch.device("meta"):
        empty = VideoVAEStep.from_config(vae.config)
    assert next(empty.parameters()).is_meta
    assert empty.config.latent_std == [2.0] * 6
    empty.to_empty(device="cpu").load_state_dict(vae.state_dict())
    video = clips(1, 9)
    assert torch.equal(empty.encode(video), vae.encode(video))


def test_the_hook_describes_the_plugin() -> None:
    plugin = latent()
    assert (plugin.name, plugin.data, plugin.options) == ("video_vae", True, VideoVAEOptions)
    assert VideoVAEOptions(ratio="4x16x16").ratio_numbers() == (4, 16, 16)


# ------------------------------------------------------------------ what exporters need


@pytest.mark.parametrize("num_frames", [1, 3])
def test_the_decoder_exports_with_ranks_up_to_five_and_no_conv3d(num_frames: int) -> None:
    vae = shaken(VideoVAE(**SMALL)).eval()
    latent_BCTHW = torch.randn(1, 6, num_frames, 2, 2)
    program = torch.export.export(vae, (latent_BCTHW,)).run_decompositions({})
    values = [node.meta["val"] for node in program.graph.nodes if "val" in node.meta]
    assert max(value.ndim for value in values if hasattr(value, "ndim")) <= 5
    torch.testing.assert_close(program.module()(latent_BCTHW), vae.decode(latent_BCTHW), atol=1e-5, rtol=1e-5)


def test_the_decoder_is_finite_on_zero_and_huge_input_in_half_precision() -> None:
    vae = shaken(VideoVAE(**SMALL)).eval().half()
    for scale in (0.0, 300.0):
        with torch.no_grad():
            assert torch.isfinite(vae.decode(torch.full((1, 6, 3, 2, 2), scale, dtype=torch.half))).all()
