"""Text encoders of a few thousand weights, with tokenizers of the real classes over a vocabulary of letters."""

from __future__ import annotations

import string
from typing import Any

import transformers

LETTERS = string.ascii_letters + string.digits + string.punctuation
WIDTH = 32


def umt5() -> tuple[Any, Any]:
    """Return an encoder of UMT5, as Wan has, and a tokenizer, whose class is T5's."""
    return t5(classes=(transformers.UMT5Config, transformers.UMT5EncoderModel))


def t5(width: int = WIDTH, classes: Any = (transformers.T5Config, transformers.T5EncoderModel)) -> tuple[Any, Any]:
    """Return an encoder and a tokenizer of T5."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{letter}" for letter in LETTERS), *LETTERS]
    tokenizer = transformers.T5TokenizerFast(
        vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)], extra_ids=0
    )
    config = classes[0](
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=40, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return classes[1](config), tokenizer


def byt5() -> tuple[Any, Any]:
    """Return an encoder over bytes, as HunyuanVideo 1.5 has for the text in a picture."""
    tokenizer = transformers.ByT5Tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=40, num_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return transformers.T5EncoderModel(config), tokenizer


def clip(*, projected: bool) -> tuple[Any, Any]:
    """Return a text encoder and a tokenizer of CLIP, with its projection or without."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={piece: place for place, piece in enumerate(pieces)}, merges=[], model_max_length=77
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=WIDTH, bos_token_id=len(pieces) - 2, eos_token_id=len(pieces) - 1, pad_token_id=len(pieces) - 1,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config), tokenizer


_GEMMA_PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "\n", *LETTERS]
_GEMMA = {
    "vocab_size": len(_GEMMA_PIECES), "hidden_size": WIDTH, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8,
    "max_position_embeddings": 1024,
}  # fmt: skip


def gemma2() -> tuple[Any, Any]:
    """Return a decoder and a tokenizer of Gemma 2, as Sana has."""
    return transformers.Gemma2Model(transformers.Gemma2Config(**_GEMMA)), _gemma_tokenizer("right")


def gemma3() -> tuple[Any, Any]:
    """Return a decoder of Gemma 3 that could also see, and a tokenizer, as LTX-2 has."""
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 32, "patch_size": 8}  # fmt: skip
    config = transformers.Gemma3Config(text_config=_GEMMA, vision_config=sight, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration(config), _gemma_tokenizer("left")


def _gemma_tokenizer(side: str) -> Any:
    vocabulary = {piece: place for place, piece in enumerate(_GEMMA_PIECES)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], padding_side=side, model_max_length=1024)


def qwen() -> tuple[Any, Any]:
    """Return the language half of Qwen2.5-VL, with its tokenizer, as HunyuanVideo 1.5 has."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    pieces = [*bytes_to_unicode().values(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={piece: place for place, piece in enumerate(pieces)}, merges=[],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = transformers.Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, rope_scaling={"rope_type": "default", "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    return transformers.Qwen2_5_VLTextModel(config), tokenizer
