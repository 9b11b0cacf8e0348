"""A T5 stays on its host: what the package says of it is enough to encode captions without this toolkit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from fresh import run_fresh
from safetensors.numpy import load_file
from test_phone import SCHEMA, bundle_in, exported, manifest_of
from test_verify import command
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy import part
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dit_compress.core.errors import UserError
from dit_compress.export.player import Player
from dit_compress.plugin.registry import use
from dit_compress.step.sampling import Generator
from dit_compress_plugins.export_onnx import ONNXOptions
from dit_compress_plugins.export_onnx.exporter import ONNXExport

pytestmark = pytest.mark.slow(15)

pytest.importorskip("onnxruntime")
torch.set_num_threads(1)

PAGE = (Path(__file__).parents[2] / "docs" / "phone-package.md").read_text("utf-8")
HOST = next(code for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "host.py" in code)
CAPTION = "a red circle a red circle a red circle"
"""Longer than the length: it is cut."""


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of random weights, as ``save_pretrained`` writes it, whose tokenizer adds an end."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("t5")
    config = T5Config(vocab_size=10, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(path)
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "circle": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def package(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    use()
    folder = tmp_path_factory.mktemp("host")
    text = part("text", "transformers", path=str(t5), width=32, length=6)
    bundle = bundle_in(folder / "bundle", 3.0, text=text)
    return exported(folder, ONNXExport(ONNXOptions()), "onnx", bundle=bundle)


def test_the_package_says_what_the_host_must_know(package: tuple[Any, Path]) -> None:
    bundle, folder = package
    data = manifest_of(folder)
    jsonschema.validate(data, SCHEMA)
    assert data["load_order"] == ["dit_step", "vae_decoder"]
    assert data["text"] == {
        "where": "host",
        "encoder": "TransformersEncoder",
        "tensors": {"text": [1, 6, 32], "text_mask": [1, 6]},
        "padding": "the embedding is 0 and the mask 0 at padding; the mask is 1 at real text",
        "tokenizer": {
            "kind": "tokenizers", "file": "tokenizer.json", "folder": "tokenizer", "length": 6,
            "padding": "0 up to the length; longer captions are cut",
        },
    }  # fmt: skip
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    for caption in ("", "red", "a red square", CAPTION):
        wanted, found = bundle.text().tokenize([caption]), tokenizer.encode(caption)
        assert (found.ids, found.attention_mask) == (wanted["ids"][0].tolist(), wanted["mask"][0].tolist())


def test_without_embeddings_it_says_what_is_missing(package: tuple[Any, Path], capsys: Any, monkeypatch: Any) -> None:
    status, printed = command(capsys, monkeypatch, "play", package[1], "a red circle")
    assert status == 2
    assert (
        "the text encoder is not part of this package (text.where is host). Give the embeddings with --text" in printed
    )


def test_the_host_of_the_page_encodes_and_numpy_plays(package: tuple[Any, Path], t5: Path, tmp_path: Path) -> None:
    """The listing as it stands, in a process that has no dit_compress; then what the toolkit samples."""
    bundle, folder = package
    out = tmp_path / "text.safetensors"
    script = f"import sys\nsys.modules['dit_compress'] = None\n{HOST}"
    ran = run_fresh(script, folder, t5, CAPTION, out, folder=tmp_path)
    assert ran.status == 0, ran.printed
    found = Player(folder, use()).video("", 7, out)
    wanted = Generator(bundle, (16, 2, 2, 2))([CAPTION], seed=7, index=[0])[0]
    error = np.square(found.astype(float) - wanted.astype(float)).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 60
    assert min(Player(folder, use()).golden().values()) > 60
    null = load_file(folder / "golden" / "sample.safetensors")["null/text"]
    np.testing.assert_allclose(load_file(out)["null/text"], null, atol=1e-5)


def test_a_small_encoder_of_its_tokens_is_proven_and_played_on_the_device(t5: Path, tmp_path: Path) -> None:
    """What ``distill: text`` leaves in a bundle: weights of its own, the large one's tokenizer, none of its weights."""
    alone = tmp_path / "tokenizer-alone"
    alone.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (alone / name).write_bytes((t5 / name).read_bytes())
    tokens = {"use": "transformers", "path": str(t5), "width": 32, "length": 6, "negative": "circle"}
    text = part("text", "small", layers=1, width=16, heads=2, ffn=32, gives=32, tokens=tokens)
    made = text.create()
    made.tokens["config"]["path"] = str(alone)
    text.create = lambda: made
    bundle = bundle_in(tmp_path / "bundle", 3.0, text=text)
    _, folder = exported(tmp_path, ONNXExport(ONNXOptions()), "onnx", bundle=bundle)
    data = manifest_of(folder)
    jsonschema.validate(data, SCHEMA)
    assert data["load_order"] == ["text_encoder", "dit_step", "vae_decoder"]
    assert (data["text"]["where"], data["text"]["tokenizer"]["empty"]) == ("device", "circle")
    (encoder,) = (each for each in data["artifacts"] if each["component"] == "text_encoder")
    assert [each["name"] for each in encoder["inputs"]] == ["ids", "mask"]
    assert min(each["psnr_db"] for each in encoder["proof"]) > 60
    player = Player(folder, use())
    with torch.no_grad():
        for caption in (CAPTION, "red", ""):
            wanted, found = bundle.text()(bundle.text().tokenize([caption])), player.encode(caption)
            np.testing.assert_allclose(found["text"], wanted["embedding"], atol=1e-4)
            assert found["text_mask"].tolist() == wanted["mask"].tolist()
    assert min(player.golden().values()) > 60
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer of tokenizers. Copy the package again"):
        player.encode("red")
