"""T5 from a local folder: a tiny random one, saved by transformers itself."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from toy import context_in
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dit_compress.core.errors import UserError
from dit_compress.data.cache import ClipCache
from dit_compress.data.encode import encode_captions
from dit_compress.data.shard_writer import write_shards
from dit_compress.model.bundle import write_bundle
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.model.text import Captions
from dit_compress.structure.empty import empty_weights
from dit_compress.train.distill import need_same_captions, other_encoders
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
    """When the base step makes it, before a VAE is trained; a plan does without the folder."""
    with pytest.raises(UserError, match="no T5 encoder here"):
        T5(T5Options(path=str(tmp_path / "none"))).create()
    with pytest.raises(UserError, match="16 wide, the recipe says 32"):
        T5(T5Options(path=str(folder), width=32)).create()
    with empty_weights():
        encoder = T5(T5Options(path=str(tmp_path / "none"))).create()
    with pytest.raises(UserError, match="no T5 encoder here"):
        encoder.tokenize(["a"])


def test_the_digest_is_that_of_the_weights_and_the_tokenizer(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digest = T5(T5Options(path=str(folder), width=16)).create().digest()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in folder.iterdir():
        shutil.copy(file, elsewhere)
    assert T5(T5Options(path=str(elsewhere), width=16, length=9)).create().digest() == digest
    torch.manual_seed(1)
    T5EncoderModel(T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(
        elsewhere
    )
    assert T5(T5Options(path=str(elsewhere), width=16)).create().digest() != digest


def test_embeddings_are_cached_by_content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoded once; encoded again for other weights in the same folder; right by index and by shard."""
    context = context_in(tmp_path_factory.mktemp("run"))
    encoder = T5(T5Options(path=str(folder), width=16, length=6)).create()
    maker = T5EncoderModel(T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    spec = Spec(text=ComponentSpec("text", "t5", T5.config_of(encoder)))
    context.bundles["input"] = write_bundle(context.folder / "bundle", spec, {"text": encoder}, base=None, lineage=())
    captions = ["a red circle", "red", "circle a"] * 4
    text = context.text()
    assert text.frozen
    clips: Any = [SimpleNamespace(caption=caption, shape=(9, 32, 32)) for caption in captions]

    def embedded(text: Captions, index: list[int]) -> dict[str, torch.Tensor]:
        samples = ClipCache(context.cache, "train", clips, "").samples(torch.zeros(12, 1), context.input, text)
        return samples.tokens(index)

    rows, first = embedded(text, [11, 1]), embedded(text, [0])
    expected = encoder(encoder.tokenize(["circle a", "red"]))
    torch.testing.assert_close(rows["embedding"], expected["embedding"], rtol=1e-5, atol=1e-5)
    assert torch.equal(rows["mask"], expected["mask"])
    assert len(list(context.cache.glob("captions-train-*"))) == 1
    again = Captions(encoder)
    encoder.forward = None  # not called any more
    assert torch.equal(embedded(again, [0])["embedding"], first["embedding"])
    maker.save_pretrained(folder)
    other = embedded(context.text(), [0])
    assert len(list(context.cache.glob("captions-train-*"))) == 2
    assert not torch.allclose(other["embedding"], first["embedding"])


def test_embeddings_are_kept_in_half_the_place_and_read_as_float32(folder: Path, tmp_path_factory: Any) -> None:
    found, bundles = {}, []
    for kept in ("float32", "bfloat16"):
        encoder = T5(T5Options(path=str(folder), width=16, length=6, embeddings=kept)).create()
        place = tmp_path_factory.mktemp(kept)
        spec = Spec(text=ComponentSpec("text", "t5", T5.config_of(encoder)))
        bundle = write_bundle(place / "bundle", spec, {"text": encoder}, base=None, lineage=[])
        assert T5.from_config(spec.text.config).embeddings == kept  # type: ignore[union-attr]
        bundles.append(bundle)
        clips: Any = [SimpleNamespace(caption=caption, shape=(9, 32, 32)) for caption in ("a red circle", "red")]
        cached = ClipCache(place, "train", clips, "manifest").samples(torch.zeros(2, 1), bundle, Captions(encoder))
        (shard,) = place.glob("captions-*/*.safetensors")
        found[kept] = load_file(shard), cached.tokens([1, 0])
    need_same_captions("guide", *bundles)  # nothing is said: how they are kept makes no other encoder
    assert bundles[0].digest("text") != bundles[1].digest("text")
    longer = ComponentSpec("text", "t5", {**bundles[0].spec.text.config, "length": 7})
    assert other_encoders(bundles[0].spec, {"guide": bundles[1].spec}) == []
    assert len(other_encoders(bundles[0].spec, {"guide": Spec(text=longer)})) == 1
    (whole, read), (half, read_half) = found["float32"], found["bfloat16"]
    assert (half["embedding"].dtype, half["mask"].dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(half["embedding"], whole["embedding"].bfloat16())
    assert torch.equal(read["embedding"], whole["embedding"][[1, 0]])
    assert read_half["embedding"].dtype == torch.float32
    assert torch.equal(read_half["embedding"], whole["embedding"][[1, 0]].bfloat16().float())


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no weights here in safetensors; a pickle is not read"):
        T5(T5Options(path=str(folder), width=16)).create().tokenize(["a"])


def test_without_a_tokenizer_no_caption_is_encoded(folder: Path) -> None:
    """transformers would make up a tokenizer to which every word is unknown."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer here \(tokenizer.json or spiece.model\)"):
        T5(T5Options(path=str(folder), width=16)).create().tokenize(["a"])


def test_weights_saved_in_half_precision_compute_in_float32(folder: Path) -> None:
    """In bfloat16 an embedding is off by a percent; in float16 T5 overflows."""
    half = T5EncoderModel.from_pretrained(folder).to(torch.bfloat16)
    half.save_pretrained(folder)
    encoder = T5(T5Options(path=str(folder), width=16, length=6)).create()
    embedding = encoder(encoder.tokenize(["a red circle"]))["embedding"][:1, :3]
    with torch.no_grad():
        expected = half.float()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state
    torch.testing.assert_close(embedding, expected, rtol=1e-5, atol=1e-5)


def test_weights_that_are_not_all_there_are_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("encoder.block.0.layer.1.DenseReluDense.wi.weight", "encoder.final_layer_norm.weight"):
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"the weights lack encoder.block.0.layer.1.DenseReluDense.wi.weight and 1 more"
    ):
        T5(T5Options(path=str(folder), width=16)).create().tokenize(["a"])


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_that_breaks_off_is_a_message(folder: Path, file: str) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(
        UserError, match="the T5 encoder can't be read: .*Save it once more|config.json: not valid JSON"
    ):
        T5(T5Options(path=str(folder), width=16)).create().tokenize(["a"])


def test_weights_that_give_nan_are_found_when_captions_are_encoded(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = T5EncoderModel.from_pretrained(folder)
    with torch.no_grad():
        broken.encoder.final_layer_norm.weight.fill_(float("nan"))
    broken.save_pretrained(folder)
    encoder = Captions(T5(T5Options(path=str(folder), width=16, length=6)).create())
    writing = encode_captions(tmp_path_factory.mktemp("shards") / "a", ["red", "a circle"], encoder, {"text": "x"})
    with pytest.raises(UserError, match="red: the embedding is not finite"):
        write_shards(writing, lambda: None)
