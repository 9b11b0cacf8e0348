"""T5 from a local folder: a tiny random one, saved by transformers itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dit_compress.errors import UserError
from dit_compress_plugins.text_t5 import T5Options
from dit_compress_plugins.text_t5.encoder import T5

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path
    )
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "circle": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    return tmp_path


def test_embeddings_are_those_of_transformers(folder: Path) -> None:
    encoder = T5(T5Options(path=str(folder), width=16, length=6)).create()
    tokens = encoder.tokenize(["a red circle", "red"])
    assert tokens["ids"].tolist() == [[3, 4, 5, 0, 0, 0], [4, 0, 0, 0, 0, 0]]
    encoded = encoder(tokens)
    model = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state
    torch.testing.assert_close(encoded["embedding"][:1, :3], alone, rtol=1e-5, atol=1e-5)
    assert encoded["mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert not encoded["embedding"][0, 3:].any()


def test_a_bundle_holds_no_weights(folder: Path) -> None:
    encoder = T5(T5Options(path=str(folder), width=16)).create()
    encoder(encoder.tokenize(["a"]))
    assert encoder.state_dict() == {}
    assert T5.config_of(T5.from_config(T5.config_of(encoder))) == {"path": str(folder), "width": 16, "length": 128}


def test_missing_folder_and_wrong_width_are_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no T5 encoder here"):
        T5(T5Options(path=str(tmp_path / "none"))).create().tokenize(["a"])
    with pytest.raises(UserError, match="16 wide, the recipe says 32"):
        T5(T5Options(path=str(folder), width=32)).create().tokenize(["a"])
