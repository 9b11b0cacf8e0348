"""The contract of latent steps and their codecs, as a class of tests: subclass it, name yours, run pytest.

    from dit_compress.testing.latents import LatentContract

    class TestMine(LatentContract):
        def step(self):
            return MyStep(MyOptions(channels=8))

The step runs once, on clips of :meth:`LatentContract.data`; choose a size there that fits your ratio. Its plugin must
be installed: the bundle names it, and loads the codec through it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from einops import rearrange

from dit_compress.core.errors import UserError
from dit_compress.data.samples import to_video
from dit_compress.export.components import vae_decoder
from dit_compress.export.inspection import inspected
from dit_compress.export.profiles import profile_named
from dit_compress.model.bundle import Bundle
from dit_compress.model.protocols import decoded
from dit_compress.model.spec import Spec, latent_size
from dit_compress.testing.steps import DrawnOptions, drawn, tiny_context

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.plugin.options import Part

SAME = 1e-4
"""Largest difference of equal computations in another order, for values of size 1."""
CENTRED, SPREAD = 0.1, 0.2
"""Largest distance of a channel's mean from 0, and of its standard deviation from 1, over the training clips."""


class LatentContract:
    """Geometry without weights, normalised latents, a bundle that gives the codec back, a decoder for exporters."""

    def step(self) -> Any:
        """Return the step under test, with options that take seconds."""
        raise NotImplementedError("Return your step: def step(self): return MyStep(MyOptions())")

    def data(self) -> Part:
        """Return clips whose frames and size fit the ratio."""
        return drawn()

    @pytest.fixture(scope="class")
    def made(self, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        """Return the bundle of one run, opened from disk."""
        result = self.step().run(tiny_context(tmp_path_factory.mktemp("latent"), data=self.data()))
        assert result.bundle is not None, "run gives no bundle: return context.give({'latent': codec}, spec=…)"
        return Bundle.open(result.bundle.path)

    @pytest.fixture(scope="class")
    def video_BCFYX(self) -> Tensor:
        """Return the training clips, in [-1, 1]."""
        clips = self.data().build().clips(Path(), "train")
        return to_video(torch.stack([torch.from_numpy(clip.pixels()) for clip in clips]))

    def planned(self) -> Spec:
        """Plan a bundle that has nothing but a video."""
        options = self.data().options
        assert isinstance(options, DrawnOptions)
        return self.step().plan(Spec(video=(options.frames, *options.size)))

    def test_the_plan_says_the_geometry_without_weights(self, made: Bundle) -> None:
        """Ratio, channels and frame rule of the plan are those of the trained codec."""
        planned, codec = self.planned().codec(), made.codec()
        weights: Any = planned
        assert all(value.is_meta for value in weights.parameters()), "from_config makes weights of its own: leave it"
        assert planned.ratio == codec.ratio, "plan and run differ in 'ratio'"
        assert planned.channels == codec.channels, "plan and run differ in 'channels'"
        assert planned.frame_rule == codec.frame_rule, "plan and run differ in 'frame_rule'"

    def test_a_video_that_does_not_fit_is_refused_by_the_plan(self) -> None:
        """One pixel too high: a message with a mend, before anything is trained."""
        spec = self.planned()
        assert spec.video is not None
        frames, height, width = spec.video
        with pytest.raises(UserError) as raised:
            self.step().plan(Spec(video=(frames, height + 1, width)))
        assert raised.value.problems[0][2], "the message has no mend"

    def test_shapes_follow_the_geometry(self, made: Bundle, video_BCFYX: Tensor) -> None:
        """``[B,3,F,Y,X]`` → ``[B,C,T,H,W]`` → ``[B,3,F,Y,X]``."""
        codec, shape = made.codec().eval(), tuple(video_BCFYX.shape)
        with torch.no_grad():
            latent = codec.encode(video_BCFYX[:2])
            video = codec.decode(latent)
        size = latent_size((shape[2], shape[3], shape[4]), codec.ratio, codec.frame_rule)
        assert tuple(latent.shape) == (2, codec.channels, *size)
        assert tuple(video.shape) == (2, *shape[1:])

    def test_latents_are_normalised(self, made: Bundle, video_BCFYX: Tensor) -> None:
        """Mean 0, standard deviation 1 of every channel over the training clips: noise levels rest on it."""
        with torch.no_grad():
            latent = made.codec().eval().encode(video_BCFYX)
        channels = rearrange(latent, "B C T H W -> C (B T H W)")
        mean, std = channels.mean(1), channels.std(1)
        assert mean.abs().max() < CENTRED, f"channel {int(mean.abs().argmax())} has mean {float(mean.abs().max()):.2f}"
        worst = (std - 1).abs()
        assert worst.max() < SPREAD, f"channel {int(worst.argmax())} has deviation {float(std[worst.argmax()]):.2f}"

    def test_the_round_trip_knows_the_video(self, made: Bundle, video_BCFYX: Tensor) -> None:
        """Less than half the squared error of each clip's mean colour."""
        codec = made.codec().eval()
        with torch.no_grad():
            back = codec.decode(codec.encode(video_BCFYX))
        flat = video_BCFYX.mean((2, 3, 4), keepdim=True)
        error, baseline = ((other - video_BCFYX).square().mean() for other in (back, flat))
        assert error < baseline / 2, f"squared error {error:.4f}; a plain colour has {baseline:.4f}"

    def test_samples_do_not_mix(self, made: Bundle, video_BCFYX: Tensor) -> None:
        """A batch is its samples one by one."""
        codec = made.codec().eval()
        with torch.no_grad():
            both = codec.encode(video_BCFYX[:2])
            alone = torch.cat([codec.encode(video_BCFYX[index : index + 1]) for index in range(2)])
            assert (both - alone).abs().max() < SAME, "encode gives a sample another latent in a batch"
            assert (codec.decode(both) - torch.cat([codec.decode(each[None]) for each in both])).abs().max() < SAME

    def test_forward_decodes_in_one_piece(self, made: Bundle, video_BCFYX: Tensor) -> None:
        """Exporters trace ``forward``: it gives the same as ``decode``."""
        codec: Any = made.codec().eval()
        with torch.no_grad():
            latent = codec.encode(video_BCFYX[:1])
            assert (codec(latent) - codec.decode(latent)).abs().max() < SAME, "forward and decode differ"

    def test_a_first_frame_is_taken_by_a_codec_that_says_so(self, made: Bundle, video_BCFYX: Tensor) -> None:
        """``[B,3,Y,X]`` beside the latent, where ``takes_first``; any other codec decodes without."""
        codec = made.codec().eval()
        first = video_BCFYX[:2, :, 0] if codec.takes_first else None
        with torch.no_grad():
            found = decoded(codec, codec.encode(video_BCFYX[:2]), first)
        assert found.shape == video_BCFYX[:2].shape
        assert torch.isfinite(found).all()

    def test_the_decoder_can_be_exported(self, made: Bundle, video_BCFYX: Tensor) -> None:
        """No objection of a CPU target: it can be traced, at fixed shapes, without random numbers."""
        codec: Any = made.codec().eval()
        with torch.no_grad():
            component = vae_decoder(codec, codec.encode(video_BCFYX[:1]))
        errors = [found for found in inspected(component, profile_named("cpu"))[0] if found.severity == "error"]
        assert errors == []

    def test_later_steps_keep_it(self, made: Bundle, tmp_path: Path) -> None:
        """A step that changes nothing hands the same codec on."""
        context = replace(tiny_context(tmp_path / "next", input=made), record={"kind": "distill"})
        again = context.give({}).bundle
        assert again is not None
        assert Bundle.open(again.path).digest("latent") == made.digest("latent")
