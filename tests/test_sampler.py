"""A sampler that a bundle names, with state of its own; a first frame for decoders that take one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from toy import batch, part, words

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.data.samples import Samples, to_pixels
from dit_compress.export.base import ExportOptions, ExportStep
from dit_compress.export.step import export
from dit_compress.model.bundle import Bundle
from dit_compress.model.flow import Flow, euler
from dit_compress.model.protocols import Codec, FirstFrameCodec, decoded
from dit_compress.model.spec import Spec
from dit_compress.plugin.registry import installed, use
from dit_compress.recipe import make_part
from dit_compress.step.sampling import Generator
from dit_compress.step.world import World
from dit_compress.testing.models import SIZE, tiny_denoiser
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress.train.options import Watch
from dit_compress.train.validation import Watcher
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.distiller import AdversarialDistiller
from dit_compress_plugins.distill_flow import FlowOptions
from dit_compress_plugins.distill_flow.distiller import FlowDistiller

if TYPE_CHECKING:
    from collections.abc import Iterator

LAZY = """
from dit_compress.model.flow import guided
from dit_compress.model.protocols import Sampler
from dit_compress.plugin.kinds import hookimpl
from dit_compress.plugin.options import Options, Plugin


class LazyOptions(Options):
    every: int = 2


@hookimpl
def sampler() -> Plugin:
    return Plugin(name="sparing", options=LazyOptions, load="lazy_sampler:Lazy", summary="computes each second velocity")


class Lazy(Sampler):
    def __init__(self, options):
        self.options = options

    def sample(self, denoiser, noise_BCTHW, cond, sigmas, guidance=1.0):
        x, kept = noise_BCTHW, None
        for step, (now, then) in enumerate(zip(sigmas, sigmas[1:])):
            if step % self.options.every == 0:
                kept = guided(denoiser, x, x.new_full((len(x),), now), cond, guidance)
            x = x + (then - now) * kept
        return x
"""
NAMED = {"use": "sparing", "every": 3}


@pytest.fixture(scope="module", autouse=True)
def lazy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A plugin that computes each ``every``-th velocity."""
    path = tmp_path_factory.mktemp("lazy") / "lazy_sampler.py"
    path.write_text(LAZY)
    use([path])
    yield
    use()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("plain") / "bundle")


@pytest.fixture
def named(plain: Bundle, tmp_path: Path) -> Bundle:
    """The same weights, sampled by the plugin."""
    context = tiny_context(tmp_path / "named", input=plain)
    made = context.give({}, flow=Flow(5.0, 4, 1.0, NAMED)).bundle
    assert made is not None
    return Bundle.open(made.path)


def field(x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
    return x


# ------------------------------------------------------------------ settings


def test_settings_without_a_sampler_are_written_as_before() -> None:
    assert list(Flow(5.0, 1, 2.0).as_data().items()) == [
        ("shift", 5.0),
        ("num_steps", 1),
        ("guidance", 2.0),
        ("sigmas", [1.0, 0.0]),
    ]
    assert Flow.from_data({"shift": 5.0, "num_steps": 1, "guidance": 2.0, "sigmas": [1.0, 0.0]}) == Flow(5.0, 1, 2.0)
    assert Flow().sample() is euler


def test_a_bundle_says_its_sampler_and_reads_it_back(plain: Bundle, named: Bundle) -> None:
    assert "sampler" not in json.loads((plain.path / "bundle.json").read_text())["flow"]
    assert json.loads((named.path / "bundle.json").read_text())["flow"]["sampler"] == NAMED
    assert named.flow == named.spec.flow == Flow(5.0, 4, 1.0, NAMED)
    assert named.digest() == plain.digest()
    assert hash(named.flow) == hash(replace(named.flow, sampler=None))


def test_state_within_a_call_by_hand() -> None:
    """dx/dsigma = x, from 1 to 0 in four steps, velocity at the first and the fourth: x·(1 - 3/4), then ·(1 - 1/4)."""
    sample, noise = Flow(1.0, 4, 1.0, NAMED).sample(), torch.ones(2, 1, 1, 1, 1)
    for _ in range(2):  # nothing is left of the call before
        assert sample(field, noise, None, Flow(1.0).sigmas(4)).flatten().tolist() == [0.25 * 0.75] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"use": "gone"}, "the bundle's sampler: unknown sampler plugin 'gone'. "),
        ({"use": "sparing", "each": 3}, "the bundle's sampler: unknown key 'each' in sampler 'sparing'. Known keys: every"),
    ],
)
def test_a_sampler_that_is_not_there_is_one_message(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        Flow(sampler=given).sample()
    assert said in str(caught.value)


# ------------------------------------------------------------------ who uses it


def test_videos_are_made_by_the_bundles_sampler(plain: Bundle, named: Bundle) -> None:
    shape = (plain.codec().channels, *SIZE)
    noise = Streams(3, 0, [0]).normal("sample", shape)
    for bundle, sampler in ((plain, "euler"), (named, "sparing")):
        generator = Generator(bundle, shape)
        flow, cond = bundle.flow, generator.text.cond(["a red circle"])
        options = {name: value for name, value in (flow.sampler or {}).items() if name != "use"}
        with torch.no_grad():
            latent = part("sampler", sampler, **options).sample(
                generator.denoiser, noise, cond, flow.sigmas(4), flow.guidance
            )
        expected = to_pixels(generator.codec.decode(latent))
        assert (generator(["a red circle"], seed=3, index=[0], num_steps=4) == expected).all()


def test_the_recipes_sampler_goes_before_the_bundles(plain: Bundle, named: Bundle, tmp_path: Path) -> None:
    context = tiny_context(tmp_path, input=named, teacher=plain)
    assert type(context.sampler().__self__).__name__ == "Lazy"
    assert context.sampler(plain.flow) is euler
    context.parts["sampler"] = make_part("sampler", "euler", installed())
    assert type(context.sampler().__self__).__name__ == "EulerSampler"


def test_a_model_in_training_is_watched_by_its_own_sampler() -> None:
    text = words()
    given = batch(text)
    held_out = Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False)
    watch = {"seed": 0, "world": World(), "trained": True}
    denoiser, flow = tiny_denoiser("video_dit"), Flow(3.0, 4, 1.0, NAMED)
    calls: list[float] = []
    denoiser.register_forward_pre_hook(lambda _module, args: calls.append(float(args[1][0])))
    Watcher(denoiser, text, flow, held_out, Watch(captions=1), lambda latent: latent[:, :3], **watch).measure()
    assert calls == [pytest.approx(sigma) for sigma in flow.sigmas()[0:4:3]]


@pytest.mark.parametrize(
    "step", [FlowDistiller(FlowOptions(sampling_steps=7)), AdversarialDistiller(AdversarialOptions(sampling_steps=7))]
)
def test_training_keeps_the_sampler(step: Any) -> None:
    assert step.flow(Flow(sampler=NAMED)) == replace(step.flow(Flow()), sampler=NAMED)


def test_an_export_of_a_bundle_with_a_sampler_is_refused(named: Bundle, tmp_path: Path) -> None:
    said = (
        "^the bundle is sampled by 'sparing', and an exported package by Euler steps, or by a sampler whose calls no "
        "value decides. Name another under 'export': 'sampler: euler' computes all of each step$"
    )
    with pytest.raises(UserError, match=said):
        ExportStep(ExportOptions()).plan(named.spec)
    with pytest.raises(UserError, match=said):
        export(ExportStep(ExportOptions()), tiny_context(tmp_path, input=named))
    spec = Spec(flow=Flow(sampler={"use": "euler"}))
    assert ExportStep(ExportOptions()).plan(spec) is spec
    euler_instead = ExportStep(ExportOptions(sampler=make_part("sampler", "euler", installed())))
    assert euler_instead.plan(named.spec).flow == replace(named.flow, sampler={"use": "euler"})


# ------------------------------------------------------------------ first frames


class Still(nn.Module, Codec):
    """Repeats the latent's first three channels."""

    ratio, channels = (1, 1, 1), 8

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        return latent_BCTHW[:, :3]


class Omni(nn.Module, FirstFrameCodec):
    """The same, with the first frame where it is given."""

    ratio, channels = (1, 1, 1), 8

    def decode(self, latent_BCTHW: Tensor, first_BCYX: Tensor | None = None) -> Tensor:
        video = latent_BCTHW[:, :3]
        return video if first_BCYX is None else torch.cat([first_BCYX[:, :, None], video[:, :, 1:]], 2)


def test_a_codec_says_whether_it_takes_a_first_frame(plain: Bundle) -> None:
    latent, first = torch.randn(2, 8, *SIZE), torch.ones(2, 3, *SIZE[1:])
    assert torch.equal(decoded(Still(), latent), decoded(Omni(), latent))
    assert torch.equal(decoded(Omni(), latent, first)[:, :, 0], first)
    assert not plain.codec().takes_first
    said = (
        "^the decoder of Still takes no first frame. "
        "Leave the first frame out, or use a VAE that is trained to take one$"
    )
    with pytest.raises(UserError, match=said):
        decoded(Still(), latent, first)


def test_a_first_frame_goes_through_to_the_decoder(plain: Bundle) -> None:
    generator = Generator(plain, (8, *SIZE))
    first = torch.full((1, 3, *SIZE[1:]), 1.0)
    with pytest.raises(UserError, match="takes no first frame"):
        generator(["a star"], seed=0, index=[0], num_steps=1, first_BCYX=first)
    generator.codec = Omni()
    assert (generator(["a star"], seed=0, index=[0], num_steps=1, first_BCYX=first)[:, 0] == 255).all()
