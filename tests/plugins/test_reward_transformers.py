"""A local CLIP folder as a reward: tiny, of random weights, saved and read; images and logits by hand; refusals."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import part

from dit_compress.core.errors import UserError
from dit_compress_plugins.distill_reward.rewards import need_gradients

if TYPE_CHECKING:
    from pathlib import Path

transformers = pytest.importorskip("transformers")

WORDS = [
    "<|startoftext|>",
    "<|endoftext|>",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
]
CAPTIONS = ["a red ball", "two cats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with its tokenizer and image processor's settings, as save_pretrained leaves them."""
    path = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(path)
    (path / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(WORDS)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt")).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1]})
    )
    return path


def critic(folder: Path, **options: Any) -> Any:
    return part("reward", "transformers", path=str(folder), **options).create(None).eval()


def test_frames_are_scaled_cut_and_normalised_and_nothing_is_clipped(folder: Path) -> None:
    made = critic(folder, frames=2)
    video = torch.zeros(1, 3, 6, 8, 16)
    video[:, :, 1], video[:, :, 4] = 1.0, 3.0  # of six frames, the middles of both halves
    video[..., :4] = video[..., 12:] = -9.0  # cut off
    images = made.images(video)
    assert images.shape == (2, 3, 8, 8)
    assert images[0, :, 4, 4].tolist() == pytest.approx([2.0, 1.0, 0.5])  # (1 - 0.5) / std
    assert images[1, :, 4, 4].tolist() == pytest.approx([6.0, 3.0, 1.5])  # (2 - 0.5) / std
    assert images.min() > 0
    assert made.images(torch.zeros(1, 3, 1, 32, 20)).shape == (1, 3, 8, 8), "one frame is enough"


@torch.no_grad()
def test_the_logit_is_the_scaled_cosine_less_the_margin(folder: Path) -> None:
    made = critic(folder, frames=1, margin=0.1, aspects={"caption": "{caption}", "sharp": "a sharp {caption}"})
    torch.manual_seed(1)
    video = torch.randn(2, 3, 1, 8, 8)
    found = made(video, CAPTIONS)
    assert made.aspects == ("caption", "sharp")
    padded = {"padding": "max_length", "truncation": True, "max_length": 12, "return_tensors": "pt"}
    texts = made.tokenizer(["two cats", "a sharp two cats"], **padded)
    image = made.model.get_image_features(pixel_values=made.images(video[1:]))
    text = made.model.get_text_features(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
    image, text = (getattr(each, "pooler_output", each) for each in (image, text))
    cosine = torch.nn.functional.cosine_similarity(image, text)
    scale = math.exp(float(made.model.logit_scale))
    torch.testing.assert_close(found[1], scale * (cosine - 0.1), rtol=1e-4, atol=1e-4)
    made.model.logit_bias = torch.tensor(-3.0)
    torch.testing.assert_close(made(video, CAPTIONS)[1], scale * cosine - 3, rtol=1e-4, atol=1e-4)


def test_texts_differ_and_there_are_gradients_to_the_pixels(folder: Path) -> None:
    made = critic(folder)
    ids = made.tokenizer(CAPTIONS, padding="max_length", max_length=12)["input_ids"]
    assert ids[0] != ids[1]
    torch.manual_seed(2)
    need_gradients("transformers", made, torch.randn(2, 3, 5, 10, 8), CAPTIONS)


def test_each_row_is_of_its_own_video_and_caption(folder: Path) -> None:
    made = critic(folder, frames=2)
    torch.manual_seed(3)
    video = torch.randn(2, 3, 4, 8, 8)
    with torch.no_grad():
        together = made(video, CAPTIONS)
        torch.testing.assert_close(made(video[1:], CAPTIONS[1:]), together[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda path: (path / "config.json").unlink(),
            "no config.json there.* Export the whole model with save_pretrained",
        ),
        (lambda path: (path / "preprocessor_config.json").unlink(), "no preprocessor_config.json there"),
        (lambda path: (path / "model.safetensors").unlink(), "the critic can't be read"),
        (lambda path: (path / "model.safetensors").write_bytes(b"no weights"), "the critic can't be read"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(folder: Path, tmp_path: Path, harm: Any, said: str) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    harm(copy)
    with pytest.raises(UserError, match=said):
        critic(copy)


def test_a_model_without_images_is_refused(folder: Path, tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=8, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(
        UserError, match="T5Model compares no images with texts.* Name the folder of a model such as CLIP"
    ):
        critic(tmp_path)


def test_an_aspect_without_a_text_is_refused() -> None:
    with pytest.raises(UserError, match="the aspect 'empty' has no text: give one line"):
        part("reward", "transformers", path="there", aspects={"empty": " "})
