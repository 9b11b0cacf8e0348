"""The mixture: its modes and draws against their definition, what it says of itself, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError
from toy import context_in, part, tiny_bundle

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import write_bundle
from dit_compress.model.spec import ComponentSpec
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress_plugins.data_mixture import MixtureOptions
from dit_compress_plugins.data_mixture.world import captions, choices, latents, means
from dit_compress_plugins.latent_given.codec import GivenCodec
from dit_compress_plugins.text_words import WordsOptions

if TYPE_CHECKING:
    from pathlib import Path


def test_the_default_is_that_of_the_issue() -> None:
    """216 captions of four modes, latents of four tokens of sixteen channels."""
    options = MixtureOptions()
    assert options.shape == (16, 1, 2, 2)
    assert len(set(captions(options))) == 216
    assert means(options).shape == (216, 4, 64)
    assert captions(options)[0] == "a tiny red circle"
    assert captions(options)[-1] == "a large purple cross"


def test_captions_are_words_that_the_encoder_knows() -> None:
    every = captions(MixtureOptions(values=(6, 12, 9, 8, 4), modes=1, channels=1))
    assert len(set(every)) == 6 * 12 * 9 * 8 * 4
    assert every[-1] == "a large grey box shrinking down"
    known = set(WordsOptions().vocabulary)
    assert {word for caption in every for word in caption.split()} <= known


@pytest.mark.parametrize("composed", [0.0, 0.3, 1.0])
def test_means_are_centred_and_leave_room_for_the_spread(composed: float) -> None:
    found = means(MixtureOptions(composed=composed, spread=0.6))
    np.testing.assert_allclose(found.mean((0, 1)), 0, atol=1e-12)
    assert np.mean(found**2) == pytest.approx(1 - 0.36)


def test_composed_means_are_sums_over_words() -> None:
    """Without a part of their own: one word changed moves the mean by the same whatever the others are."""
    composed = means(MixtureOptions(values=(2, 3), modes=2, composed=1)).reshape(2, 3, 2, 64)
    np.testing.assert_allclose(
        composed[1] - composed[0], np.broadcast_to((composed[1] - composed[0])[:1, :1], (3, 2, 64))
    )
    own = means(MixtureOptions(values=(2, 3), modes=2, composed=0)).reshape(2, 3, 2, 64)
    assert np.abs((own[1, 0] - own[0, 0]) - (own[1, 1] - own[0, 1])).mean() > 0.1


def test_one_mode_is_a_plain_gaussian() -> None:
    assert not means(MixtureOptions(values=(1,), modes=1)).any()


def test_draws_are_around_their_modes() -> None:
    options = MixtureOptions(values=(2, 2), modes=2, channels=4, spread=0.3, num_clips=4000)
    x0, (caption, mode) = latents(options, "train").reshape(4000, -1), choices(options, "train")
    assert x0.dtype == np.float32
    assert np.bincount(caption * 2 + mode) / 4000 == pytest.approx([1 / 8] * 8, abs=0.03)
    away = x0 - means(options)[caption, mode]
    assert away.std() == pytest.approx(0.3, rel=0.01)
    assert x0.std() == pytest.approx(1, rel=0.02)
    again = MixtureOptions(values=(2, 2), modes=2, channels=4, spread=0.3, num_clips=4000)
    assert (latents(again, "train").reshape(4000, -1) == x0).all()
    more = options.model_copy(update={"num_clips": 5000})
    assert (latents(more, "train")[:4000].reshape(4000, -1) == x0).all(), "more draws begin with the same"
    other = options.model_copy(update={"seed": 1})
    assert not np.allclose(means(other), means(options))


def test_test_draws_are_others(tmp_path: Path) -> None:
    data = part("data", "mixture", num_clips=50, num_test=50)
    train, test = (data.encoded(tmp_path, split, "") for split in ("train", "test"))
    assert train.shape == test.shape == (50, 16, 1, 2, 2)
    assert not (train == test).any()


def test_a_clip_says_the_whole_truth(tmp_path: Path) -> None:
    options = {"values": [2, 3], "modes": 2, "channels": 4, "num_clips": 5, "num_test": 3}
    data = part("data", "mixture", **options)
    clips = data.clips(tmp_path, "test")
    assert [clip.place for clip in clips] == [0, 1, 2]
    for clip in clips:
        truth = clip.truth
        assert captions(data.options)[truth["caption"]] == clip.caption
        assert np.shape(truth["mixture"]["means"]) == (6, 2, 4, 1, 2, 2)
        assert truth["mixture"] is clips[0].truth["mixture"], "one object for all"
    assert clips[0].truth["mixture"]["spread"] == 0.5
    with pytest.raises(UserError, match="this data holds latents, and the step looks at pixels"):
        clips[0].pixels()


def test_the_manifest_changes_with_the_world(tmp_path: Path) -> None:
    one, other = (part("data", "mixture", seed=seed).manifest(tmp_path) for seed in (0, 1))
    assert one == part("data", "mixture").manifest(tmp_path) != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": [7, 6, 6]}, "7 words of attribute 1, which has 6: give 1 to 6"),
        ({"values": [6, 0]}, "0 words of attribute 2, which has 12: give 1 to 12"),
        ({"modes": 400}, "the means of 86400 modes are 5529600 numbers, more than 4000000"),
        (
            {"num_clips": 1_000_000, "frames": 4, "modes": 1},
            r"1000000 latents of \[16, 4, 2, 2\] are 256000000 numbers, more than 200000000, .* 'num_clips' to 781250",
        ),
        (
            {"num_test": 1_000_000, "frames": 4, "modes": 1},
            r"1000000 latents of \[16, 4, 2, 2\] are 256000000 numbers, .* set 'num_test' to 781250 at most",
        ),
        ({"spread": 1}, "less than 1"),
        ({"size": [0, 2]}, "greater than or equal to 1"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixtureOptions(**options)


def in_given(folder: Path, channels: int) -> Any:
    """A step's context over the mixture and a bundle of ``latent: given``."""
    base = tiny_bundle(folder / "base")
    spec = replace(base.spec, latent=ComponentSpec("latent", "given", {"channels": channels}), video=(1, 2, 2))
    bundle = write_bundle(folder / "bundle", spec, {"latent": GivenCodec(channels)}, base=base, lineage=())
    data = make_part("data", {"use": "mixture", "num_clips": 20, "num_test": 10, "channels": 4}, installed())
    return replace(context_in(folder, input=bundle), parts={"data": data}, video=(1, 2, 2))


def test_a_step_reads_the_latents(tmp_path: Path) -> None:
    context = in_given(tmp_path, 4)
    samples = context.latents("train", context.text())
    assert len(samples) == 20
    assert samples.x0([3, 1]).shape == (2, 4, 1, 2, 2)
    assert samples.tokens([0])["embedding"].shape[0] == 1


def test_other_channels_are_refused(tmp_path: Path) -> None:
    context = in_given(tmp_path, 8)
    with pytest.raises(UserError, match=r"the latents are \[4, 1, 2, 2\], the recipe's video makes \[8, 1, 2, 2\]"):
        context.latents("train", context.text())
