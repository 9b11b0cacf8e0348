"""Text encoders from local folders: tiny random ones, saved by transformers and diffusers themselves."""

from __future__ import annotations

import inspect
import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from toy import context_in, part
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dit_compress.core.errors import UserError
from dit_compress.data.cache import ClipCache
from dit_compress.data.encode import encode_captions
from dit_compress.data.shard_writer import write_shards
from dit_compress.export.player import tokenize
from dit_compress.model.bundle import write_bundle
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.model.text import Captions
from dit_compress.model.twins import write_twin
from dit_compress.model.twins.text import qwen
from dit_compress.structure.empty import empty_weights
from dit_compress.train.distill import need_same_captions, other_encoders
from dit_compress_plugins.text_transformers import TransformersOptions
from dit_compress_plugins.text_transformers.encoder import Transformers

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


def encoded(folder: Path) -> dict[str, torch.Tensor]:
    encoder = Transformers(TransformersOptions(path=str(folder), width=16)).create()
    return encoder(encoder.tokenize(["a"]))


def test_embeddings_are_those_of_transformers(folder: Path) -> None:
    encoder = Transformers(TransformersOptions(path=str(folder), width=16, length=6)).create()
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
    encoder = Transformers(TransformersOptions(path=str(folder), width=16)).create()
    encoder(encoder.tokenize(["a"]))
    assert encoder.state_dict() == {}
    assert Transformers.config_of(Transformers.from_config(Transformers.config_of(encoder))) == {"path": str(folder), "width": 16}


def test_missing_folder_and_wrong_width_are_said(folder: Path, tmp_path: Path) -> None:
    """When the base step makes it, before a VAE is trained; a plan does without the folder."""
    with pytest.raises(UserError, match="no text encoder here"):
        Transformers(TransformersOptions(path=str(tmp_path / "none"))).create()
    with pytest.raises(UserError, match="16 wide, the recipe says 32"):
        Transformers(TransformersOptions(path=str(folder), width=32)).create()
    with empty_weights():
        encoder = Transformers(TransformersOptions(path=str(tmp_path / "none"), width=16)).create()
    with pytest.raises(UserError, match="no tokenizer here"):
        encoder.tokenize(["a"])


def test_the_digest_is_that_of_the_weights_and_the_tokenizer(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digest = Transformers(TransformersOptions(path=str(folder), width=16)).create().digest()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in folder.iterdir():
        shutil.copy(file, elsewhere)
    assert Transformers(TransformersOptions(path=str(elsewhere), width=16, length=9)).create().digest() == digest
    torch.manual_seed(1)
    T5EncoderModel(T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(
        elsewhere
    )
    assert Transformers(TransformersOptions(path=str(elsewhere), width=16)).create().digest() != digest


def test_embeddings_are_cached_by_content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoded once; encoded again for other weights in the same folder; right by index and by shard."""
    context = context_in(tmp_path_factory.mktemp("run"))
    encoder = Transformers(TransformersOptions(path=str(folder), width=16, length=6)).create()
    maker = T5EncoderModel(T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    spec = Spec(text=ComponentSpec("text", "transformers", Transformers.config_of(encoder)))
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
        encoder = Transformers(TransformersOptions(path=str(folder), width=16, length=6, embeddings=kept)).create()
        place = tmp_path_factory.mktemp(kept)
        spec = Spec(text=ComponentSpec("text", "transformers", Transformers.config_of(encoder)))
        bundle = write_bundle(place / "bundle", spec, {"text": encoder}, base=None, lineage=[])
        assert Transformers.from_config(spec.text.config).embeddings == kept  # type: ignore[union-attr]
        bundles.append(bundle)
        clips: Any = [SimpleNamespace(caption=caption, shape=(9, 32, 32)) for caption in ("a red circle", "red")]
        cached = ClipCache(place, "train", clips, "manifest").samples(torch.zeros(2, 1), bundle, Captions(encoder))
        (shard,) = place.glob("captions-*/*.safetensors")
        found[kept] = load_file(shard), cached.tokens([1, 0])
    need_same_captions("guide", *bundles)  # nothing is said: how they are kept makes no other encoder
    assert bundles[0].digest("text") != bundles[1].digest("text")
    longer = ComponentSpec("text", "transformers", {**bundles[0].spec.text.config, "length": 7})
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
        Transformers(TransformersOptions(path=str(folder), width=16)).create().tokenize(["a"])


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny pipelines of every way to encode prompts."""
    place = tmp_path_factory.mktemp("twins")
    for model in PIPELINES:
        write_twin(model, place / model)
    return place


def stock(folder: Path) -> Any:
    """The pipeline as diffusers opens it, without what has no part in prompts."""
    index = json.loads((folder / "model_index.json").read_text())
    hunyuan = index["_class_name"] == "HunyuanVideo15Pipeline"  # asks its VAE for channels
    left_out = ("transformer", "transformer_2", "scheduler", "guider", *(() if hunyuan else ("vae",)))
    return DiffusionPipeline.from_pretrained(folder, **{name: None for name in left_out if name in index})


PIPELINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Wan2.1-T2V-1.3B": ({"max_sequence_length": 512}, {"embedding": (0, 1)}),
    "LTX-Video": ({"max_sequence_length": 128}, {"embedding": (0, 2), "mask": (1, 3)}),
    "CogVideoX-2b": ({"max_sequence_length": 226}, {"embedding": (0, 1)}),
    "FLUX.1-dev": ({"max_sequence_length": 512, "prompt_2": None}, {"embedding": (0, 0), "pooled": (1, 1)}),
    "stable-diffusion-3.5-medium": (
        {"max_sequence_length": 256, "prompt_2": None, "prompt_3": None},
        {"embedding": (0, 1), "pooled": (2, 3)},
    ),
    "HunyuanVideo-1.5": (
        {"batch_size": 2},
        {"embedding": (0, 0), "mask": (1, 1), "embedding_2": (2, 2), "mask_2": (3, 3)},
    ),
    "SANA-Video_2B": (
        {"max_sequence_length": 300, "complex_human_instruction": "the default of __call__"},
        {"embedding": (0, 2), "mask": (1, 3)},
    ),
}
"""What its ``__call__`` gives ``encode_prompt``; the place of each condition in its answer, and of its negative."""
WORDS = ['a red circle "hi"', "Two  &amp; a half"]


@pytest.mark.parametrize("model", PIPELINES)
def test_a_pipelines_embeddings_are_its_own_to_the_bit(model: str, twins: Path) -> None:
    """Of two prompts and the negative one; what the pipeline attends to is what the mask says."""
    pipeline, (given, places) = stock(twins / model), PIPELINES[model]
    asked = inspect.signature(pipeline.encode_prompt).parameters
    if "complex_human_instruction" in given:
        default = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        given = {**given, "complex_human_instruction": default}
    negative = "ugly"
    apart = {"negative_prompt": [negative] * 2, "do_classifier_free_guidance": True}
    with torch.no_grad():
        answer = pipeline.encode_prompt(WORDS, **given, **(apart if "negative_prompt" in asked else {}))
        size = {"batch_size": 1} if "batch_size" in given else {}
        null = answer if "negative_prompt" in asked else pipeline.encode_prompt([negative], **{**given, **size})
    encoder = Transformers(TransformersOptions(path=str(twins / model), negative=negative)).create()
    encoder.side.pipeline  # noqa: B018 - read first, so that what follows is encoding alone
    tokens = encoder.tokenize([WORDS[0], "", WORDS[1]])
    found = encoder(tokens)
    assert set(found) == {*places, "mask"}
    for name, (place, null_place) in places.items():
        assert torch.equal(found[name][[0, 2]], answer[place].float()), name
        torch.testing.assert_close(found[name][1], null[null_place][0].float(), rtol=1e-5, atol=1e-6)
    assert encoder.width == found["embedding"].shape[-1]
    assert torch.equal(found["mask"], found["mask"].bool().float())
    if model == "Wan2.1-T2V-1.3B":
        assert torch.equal(found["mask"], tokens["mask"].float())
        assert not found["embedding"][found["mask"] == 0].any()
    if model == "CogVideoX-2b":
        assert found["mask"].all(), "it attends to the padding, too"


def test_a_pipeline_is_refused_where_a_part_is_missing(twins: Path, tmp_path: Path) -> None:
    """A tokenizer, an encoder; a length where the pipeline has its own; memory is given back."""
    flux = shutil.copytree(twins / "FLUX.1-dev", tmp_path / "flux")
    shutil.rmtree(flux / "transformer")
    encoder = Transformers(TransformersOptions(path=str(flux), length=16)).create()
    assert encoder(encoder.tokenize(["a"]))["embedding"].shape == (1, 16, 32)
    encoder.release()
    assert "pipeline" not in vars(encoder.side)
    (flux / "tokenizer_2" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_2: no tokenizer here .*Put the tokenizer's files there"):
        Transformers(TransformersOptions(path=str(flux))).create()
    shutil.rmtree(flux / "text_encoder")
    with pytest.raises(UserError, match=r"text_encoder.*config.json"):
        Transformers(TransformersOptions(path=str(flux))).create()
    hunyuan = Transformers(TransformersOptions(path=str(twins / "HunyuanVideo-1.5"), length=16)).create()
    with pytest.raises(UserError, match=r"text.length: HunyuanVideo15Pipeline has a length of its own. Leave 'length'"):
        hunyuan.tokenize(["a"])
    wide = Transformers(TransformersOptions(path=str(twins / "LTX-Video"), width=64)).create()
    with pytest.raises(UserError, match="the encoder is 32 wide, the recipe says 64. Set text.width to 32"):
        wide(wide.tokenize(["a"]))


def test_pooled_vectors_and_the_negative_prompt_are_cached_and_the_encoder_is_freed(
    twins: Path, tmp_path: Path
) -> None:
    encoder = Transformers(
        TransformersOptions(path=str(twins / "FLUX.1-dev"), length=8, negative="ugly", embeddings="bfloat16")
    ).create()
    spec = Spec(text=ComponentSpec("text", "transformers", Transformers.config_of(encoder)))
    bundle = write_bundle(tmp_path / "bundle", spec, {"text": encoder}, base=None, lineage=())
    clips: Any = [SimpleNamespace(caption=caption, shape=(9, 32, 32)) for caption in WORDS]
    text = Captions(bundle.text())
    rows = ClipCache(tmp_path, "train", clips, "").samples(torch.zeros(2, 1), bundle, text).tokens([1, 0])
    assert "pipeline" not in vars(text.encoder.side)
    expected = encoder(encoder.tokenize([*WORDS, ""]))
    assert set(rows) == {"embedding", "mask", "pooled"}
    assert torch.equal(rows["pooled"], expected["pooled"][[1, 0]])
    assert torch.equal(rows["embedding"], expected["embedding"][[1, 0]].bfloat16().float())
    cond = text(rows)
    assert torch.equal(cond.null["pooled"], expected["pooled"][2:])
    dropped = cond.drop(torch.tensor([True, False]))
    assert torch.equal(dropped["pooled"], torch.stack([expected["pooled"][2], expected["pooled"][0]]))
    assert "pipeline" not in vars(text.encoder.side), "the negative prompt is in the shards"


def test_without_a_tokenizer_no_caption_is_encoded(folder: Path) -> None:
    """transformers would make up a tokenizer to which every word is unknown."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer here \(tokenizer.json or spiece.model"):
        Transformers(TransformersOptions(path=str(folder), width=16)).create().tokenize(["a"])


def test_weights_saved_in_half_precision_compute_in_float32(folder: Path) -> None:
    """In bfloat16 an embedding is off by a percent; in float16 T5 overflows."""
    half = T5EncoderModel.from_pretrained(folder).to(torch.bfloat16)
    half.save_pretrained(folder)
    encoder = Transformers(TransformersOptions(path=str(folder), width=16, length=6)).create()
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
        encoded(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_that_breaks_off_is_a_message(folder: Path, file: str) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(
        UserError, match="the text encoder can't be read: .*Save it once more|config.json: not valid JSON"
    ):
        encoded(folder)


def test_weights_that_give_nan_are_found_when_captions_are_encoded(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = T5EncoderModel.from_pretrained(folder)
    with torch.no_grad():
        broken.encoder.final_layer_norm.weight.fill_(float("nan"))
    broken.save_pretrained(folder)
    encoder = Captions(Transformers(TransformersOptions(path=str(folder), width=16, length=6)).create())
    writing = encode_captions(tmp_path_factory.mktemp("shards") / "a", ["red", "a circle"], encoder, {"text": "x"})
    with pytest.raises(UserError, match="red: the embedding is not finite"):
        write_shards(writing, lambda: None)


@pytest.mark.parametrize("whole", [True, False])
def test_a_student_holds_what_it_tokenizes_by(whole: bool, folder: Path, twins: Path, tmp_path: Path) -> None:
    """Its teacher's folder may go; bundles that are linked from its own, and plans, tokenize as before."""
    gone = shutil.copytree(twins / "Wan2.1-T2V-1.3B" if whole else folder, tmp_path / "teacher")
    tokens = {"use": "transformers", "path": str(gone), "negative": "ugly", **({} if whole else {"length": 6})}
    student = part("text", "small", layers=1, width=16, heads=2, ffn=32, gives=16, tokens=tokens)
    encoder = student.create()
    wanted = encoder.tokenize([*WORDS, ""])
    spec = Spec(text=ComponentSpec("text", "small", student.config_of(encoder)))
    first = write_bundle(tmp_path / "first", spec, {"text": encoder}, base=None, lineage=())
    assert not any("safetensors" in name for name in first.data["components"]["text"]["files"] if "/" in name)
    shutil.rmtree(gone)
    second = write_bundle(tmp_path / "second", first.spec, {}, base=first, lineage=())
    third = write_bundle(tmp_path / "third", second.spec, {"text": second.text()}, base=None, lineage=())
    assert third.digest("text") == first.digest("text")
    for found in (second.text(), third.text(), third.spec.text.build()):
        given = found.tokenize([*WORDS, ""])
        assert {name: value.tolist() for name, value in given.items()} == {
            name: value.tolist() for name, value in wanted.items()
        }
    with torch.no_grad():
        assert torch.equal(third.text()(wanted)["embedding"], encoder(wanted)["embedding"])
    third.text().save_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    odd = third.path / "text" / "tokens" / "other"
    odd.mkdir()
    with pytest.raises(UserError, match=r"tokens/other: the bundle's record does not name this folder"):
        third.text()
    with pytest.raises(UserError, match="no tokenizer here"):
        student.from_config(student.config_of(encoder)).tokenize(WORDS)


def test_siglips_embeddings_are_those_of_the_pipeline_to_the_bit(tmp_path: Path) -> None:
    """Of two images at once, as HunyuanVideo 1.5 asks for one; a folder without an image encoder sees nothing."""
    write_twin("HunyuanVideo-1.5-I2V", tmp_path / "twin")
    encoder = Transformers(TransformersOptions(path=str(tmp_path / "twin"))).create()
    pixels = torch.randint(256, (2, 40, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = encoder.encode_image(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "twin", transformer=None, text_encoder=None)
    with torch.no_grad():
        for row, each in zip(found, pixels, strict=True):
            wanted = pipeline.encode_image(Image.fromarray(each.numpy()), 1, torch.device("cpu"), torch.float32)
            assert torch.equal(row, wanted[0])
    assert encoder.sees == tuple(found.shape[1:])
    assert encoder.release()
    assert "pipeline" not in vars(encoder.sight)
    digest = encoder.digest()
    (tmp_path / "twin" / "image_encoder" / "model.safetensors").write_bytes(b"other")
    assert encoder.digest() != digest
    with pytest.raises(UserError, match=r"the image encoder can't be read"):
        encoder.encode_image(torch.zeros(1, 3, 8, 8))
    shutil.rmtree(tmp_path / "twin" / "image_encoder")
    assert Transformers.from_config({"path": str(tmp_path / "gone"), "width": 16}).sees is None


def test_a_decoder_by_itself_is_told_its_template(tmp_path: Path) -> None:
    """The tokenizer's own as transformers applies it; a text with a place for the caption; else nothing is guessed."""
    model, tokenizer = qwen()
    for part_of in (model, tokenizer):
        part_of.save_pretrained(tmp_path)

    def made(**options: Any) -> Any:
        return Transformers(TransformersOptions(path=str(tmp_path), length=48, **options)).create()

    with pytest.raises(UserError, match=r"the tokenizer has a chat template.*Give the pipeline's folder, or set text.template"):
        made()
    chat = made(template="chat", negative="ugly")
    found = chat.tokenize(["a red circle", ""])
    for row, caption in enumerate(("a red circle", "ugly")):
        asked = [{"role": "user", "content": caption}]
        wanted = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert found["ids"][row][found["mask"][row].bool()].tolist() == wanted
    written = made(template="Say: {}.")
    assert torch.equal(written.tokenize(["red"])["ids"], made(template="{}").tokenize(["Say: red."])["ids"])
    assert not torch.equal(chat(found)["embedding"][0], written(written.tokenize(["a red circle"]))["embedding"][0])
    again = Transformers.from_config(Transformers.config_of(chat))
    assert torch.equal(again.tokenize(["red"])["ids"], chat.tokenize(["red"])["ids"])
    for encoder in (chat, written):
        manifest = {"kind": "tokenizers", "folder": "", **encoder.save_tokenizer(tmp_path)}
        for caption in ("a red circle", ""):
            ids = encoder.tokenize([caption])["ids"].numpy()
            np.testing.assert_array_equal(tokenize(caption, tmp_path, manifest)["ids"], ids)
        tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it has 2 places for the caption: write {} once, or 'chat'"):
        TransformersOptions(path="x", template="{} {}")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match=r"text.template: a pipeline has a template of its own"):
        made(template="chat", width=32)


def test_a_tokenizer_without_a_chat_template_is_not_asked_for_one(folder: Path) -> None:
    chat = Transformers(TransformersOptions(path=str(folder), width=16, template="chat")).create()
    with pytest.raises(UserError, match=r"the tokenizer has no chat template. Write the template out"):
        chat.tokenize(["a"])
