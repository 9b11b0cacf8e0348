"""The caption encoder: what it knows, what it ignores, and that nothing is ever fully masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from dit_compress.plugin.options import load_object
from dit_compress_plugins.text_words import WordsOptions, text
from dit_compress_plugins.text_words.encoder import NULL, NUM_SPECIAL, PAD, UNKNOWN, Words, WordsEncoder

if TYPE_CHECKING:
    from pathlib import Path

CAPTION = "a large red circle moving left fast and a small blue square moving up slowly on a grey background"


def make(**options: Any) -> WordsEncoder:
    torch.manual_seed(0)
    return Words(WordsOptions(**{"width": 16, "length": 24, **options})).create().eval()


def test_the_plugin_loads_what_it_names() -> None:
    assert load_object(text().load) is Words
    assert Words.trainable


def test_default_vocabulary_covers_a_caption_of_the_shapes_world() -> None:
    words = make().tokenize([CAPTION])["words"]
    assert words.shape == (1, 24)
    assert UNKNOWN not in words
    assert (words != PAD).sum() == len(CAPTION.split())


def test_tokens_by_hand() -> None:
    encoder = make(vocabulary=["red", "circle"], length=3)
    given = ["Red, circle!", "a red", "", "red red red red"]
    assert encoder.tokenize(given)["words"].tolist() == [
        [NUM_SPECIAL, NUM_SPECIAL + 1, PAD],
        [UNKNOWN, NUM_SPECIAL, PAD],
        [NULL, PAD, PAD],
        [NUM_SPECIAL] * 3,
    ]


def test_an_empty_caption_leaves_one_word_to_attend_to() -> None:
    encoder = make()
    encoded = encoder(encoder.tokenize(["", CAPTION]))
    assert encoded["mask"].sum(1).tolist() == [1, len(CAPTION.split())]
    assert torch.isfinite(encoded["embedding"]).all()


@pytest.mark.parametrize("layers", [0, 2])
def test_padding_is_zero_and_not_seen(layers: int) -> None:
    encoder, longer = make(layers=layers, length=4), make(layers=layers, length=4)
    encoded = encoder(encoder.tokenize(["red circle"]))
    assert encoded["embedding"][0, 2:].abs().max() == 0
    with torch.no_grad():
        longer.words.weight[PAD] += 5
    again = longer(longer.tokenize(["red circle"]))
    torch.testing.assert_close(again["embedding"], encoded["embedding"])


def test_word_order_matters() -> None:
    encoder = make()
    one, other = encoder(encoder.tokenize(["red circle blue square", "blue circle red square"]))["embedding"]
    assert not torch.allclose(one[1], other[1])


def test_saved_and_loaded(tmp_path: Path) -> None:
    encoder = make()
    encoder.save_pretrained(tmp_path)
    loaded = WordsEncoder.from_pretrained(tmp_path).eval()
    tokens = encoder.tokenize([CAPTION])
    assert torch.equal(loaded.tokenize([CAPTION])["words"], tokens["words"])
    assert torch.equal(loaded(tokens)["embedding"], encoder(tokens)["embedding"])


def test_config_makes_the_same_encoder_on_meta() -> None:
    encoder = make()
    with torch.device("meta"):
        again = Words.from_config(Words.config_of(encoder))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}


ODD = [{"vocabulary": ["red", "red"]}, {"vocabulary": ["Red"]}, {"width": 6}, {"depth": 1}]


@pytest.mark.parametrize("options", ODD)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WordsOptions(**options)
