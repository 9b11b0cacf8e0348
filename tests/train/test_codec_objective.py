"""The losses that every codec may be trained with, on codecs of one number: values worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.train.codec.critics import FrameCritic, RandomFeatures
from dit_compress.train.codec.objective import CodecObjective
from dit_compress.train.codec.options import CodecTraining
from dit_compress.train.codec.step import beside, check_scales
from dit_compress.train.objective import Batch


class Gains(nn.Module):
    """E = a·x, D = b·z."""

    def __init__(self, encoder: float, decoder: float) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Parameter(torch.tensor(encoder)), nn.Parameter(torch.tensor(decoder))

    def encode_raw(self, video: Tensor) -> Tensor:
        return self.encoder * video

    def decode_raw(self, raw: Tensor) -> Tensor:
        return self.decoder * raw


class Pooled(Gains):
    """Means of 4 x 4 pixels, and their repetition, times the gains."""

    def encode_raw(self, video: Tensor) -> Tensor:
        return self.encoder * functional.avg_pool3d(video, (1, 4, 4))

    def decode_raw(self, raw: Tensor) -> Tensor:
        return self.decoder * functional.interpolate(raw, scale_factor=(1, 4, 4))


def objective(codec: nn.Module, **weights: Any) -> CodecObjective:
    plain = {"pixel": 0.0, "temporal": 0.0, "kl": 0.0, "epsilon": 0.0}
    return CodecObjective(codec, CodecTraining(noise=1e-9, losses={**plain, **weights}))


def loss(made: CodecObjective, video: Tensor, phase: int = -1) -> dict[str, Tensor]:
    index = range(len(video))
    return made.loss(made.phases[phase], Batch(0, index, video, Streams(0, 0, index)))


def checkerboard(cell: int, size: int = 16) -> Tensor:
    rows = torch.arange(size) // cell
    return (1.0 - 2.0 * ((rows[:, None] + rows) % 2)).expand(1, 3, 2, size, size).contiguous()


def test_latent_consistency_by_hand_and_whom_it_moves() -> None:
    one = torch.ones(1, 3, 1, 2, 2)
    assert loss(objective(Gains(2.0, 0.5), consistency=1.0), one)["loss"].item() == pytest.approx(0.0, abs=1e-10)
    codec = Gains(2.0, 0.4)  # z = 2, D(z) = 0.8, E(D(z)) = 1.6: (1.6 - 2)² = 0.16
    found = loss(objective(codec, consistency=1.0), one)["loss"]
    assert found.item() == pytest.approx(0.16)
    found.backward()
    # d/db (2·b·2x - 2x)² = 2·(-0.4)·4; the outer encoder and the target are held: d/da (2·0.4·a·x - 2)² = 2·(-0.4)·0.8.
    assert codec.decoder.grad.item() == pytest.approx(-3.2)
    assert codec.encoder.grad.item() == pytest.approx(-0.64)
    assert codec.encoder.requires_grad, "held only while it encodes anew"


@pytest.mark.parametrize("target", ["video", "decoded"])
def test_scale_equivariance_by_hand(target: str) -> None:
    """Average pooling forgets a checkerboard of its cells when the latent is halved, and keeps what is constant."""
    codec = Pooled(1.0, 1.0)
    made = objective(codec, scale=1.0, scale_target=target)
    assert loss(made, checkerboard(4))["scale"].item() == pytest.approx(1.0)
    assert loss(made, torch.full((1, 3, 2, 16, 16), 0.5))["scale"].item() == pytest.approx(0.0, abs=1e-7)
    # Cells of 8 survive halving once, not twice: (0 + 1) / 2.
    both = objective(codec, scale=1.0, scale_target=target, scales=[2, 4])
    assert loss(both, checkerboard(8))["scale"].item() == pytest.approx(0.5)


def test_the_target_decoded_trains_the_decoder_alone() -> None:
    grads = {}
    for target in ("video", "decoded"):
        codec = Pooled(1.0, 0.5)
        loss(objective(codec, scale=1.0, scale_target=target), torch.full((1, 3, 2, 16, 16), 0.5) + checkerboard(8))[
            "loss"
        ].backward()
        grads[target] = [0.0 if each.grad is None else each.grad.item() for each in (codec.encoder, codec.decoder)]
    assert grads["decoded"][0] == 0.0
    assert all(abs(value) > 0.1 for value in grads["video"])


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"critic_lr": 1e-4}, "'critic_lr' belongs to 'adversarial' above 0"),
        ({"scales": [4], "scale_target": "decoded"}, "'scales' and 'scale_target' belong to 'scale' above 0"),
        ({"levels": 2}, "'levels' belongs to 'haar' or 'multiscale' above 0"),
    ],
)
def test_options_of_a_term_without_weight_are_refused(losses: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CodecTraining(losses=losses)
    CodecTraining(losses={**losses, "adversarial": 0.1, "scale": 0.1, "multiscale": 0.1})


def test_latents_that_can_not_be_halved_are_refused() -> None:
    check_scales((2, 4, 8), (2, 4))
    check_scales((2, 3, 3), ())
    with pytest.raises(UserError, match="latents of 3x3 cells can't be made 2 times smaller"):
        check_scales((2, 3, 3), (2,))


def test_random_features_are_fixed_see_texture_and_pass_gradients() -> None:
    torch.manual_seed(0)
    distance, video = RandomFeatures(), torch.rand(1, 3, 2, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(distance.parameters(), RandomFeatures().parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    blurred = functional.interpolate(functional.avg_pool3d(video, (1, 4, 4)), scale_factor=(1, 4, 4))
    brighter = video + (blurred - video).square().mean().sqrt()
    assert distance(video, video).item() == 0.0
    assert distance(blurred, video) > 2 * distance(brighter, video), "of equal squared error, lost texture is worse"
    moved = blurred.clone().requires_grad_()
    distance(moved, video).backward()
    assert moved.grad.abs().sum() > 0


def test_a_critic_learns_in_a_phase_of_its_own_and_then_judges() -> None:
    torch.manual_seed(0)
    codec, video = Pooled(1.0, 1.0), torch.rand(2, 3, 3, 16, 16) * 2 - 1
    made = objective(codec, pixel=1.0, adversarial=0.5, perceptual=0.25)
    assert [(phase.name, phase.updates) for phase in made.phases] == [("judge", ("critic",)), ("reconstruct", ("vae",))]
    assert made.roles["distance"].lr is None
    optimizer = torch.optim.Adam(made.critic.parameters(), lr=1e-2)
    curve = []
    for _ in range(30):
        terms = loss(made, video, 0)
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(terms["loss"].item())
    assert curve[0] == pytest.approx(2.0, abs=0.2)
    assert curve[-1] < 1.0, "it tells blurred clips from sharp ones"
    assert terms["accuracy"] > 0.9
    assert codec.decoder.grad is None
    terms = loss(made, video)
    assert terms["loss"].item() == pytest.approx(
        (terms["pixel"] + 0.5 * terms["adversarial"] + 0.25 * terms["perceptual"]).item(), rel=1e-5
    )
    terms["loss"].backward()
    assert codec.decoder.grad.item() != 0.0


def test_the_critic_sees_motion() -> None:
    critic, video = FrameCritic(0), torch.rand(1, 3, 3, 8, 8)
    frozen = video[:, :, :1].expand_as(video)
    assert critic(video).shape == (1, 3 * 2 * 2)
    assert not torch.allclose(critic(video)[:, 4:8], critic(frozen)[:, 4:8])


def test_clips_go_to_where_the_codec_is_in_the_type_of_its_weights() -> None:
    video = torch.zeros(1, 3, 1, 2, 2)
    assert beside(nn.Linear(1, 1, dtype=torch.float64), video).dtype == torch.float64
    assert beside(nn.Linear(1, 1, device="meta"), video).device.type == "meta"
    assert beside(nn.Identity(), video) is video
