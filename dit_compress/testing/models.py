"""Tiny configurations of real DiTs, three in shape: the reference, LTX (norm and RoPE across heads), Wan.

With them a caption encoder of the same width, and a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.plugin import defaults
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.text import Captions
    from dit_compress.train.objective import Batch

CHANNELS = 8
"""Latent channels of every tiny denoiser."""
SIZE = (2, 2, 2)
"""Latent cells of a tiny video."""
CAPTIONS = ("a red circle", "a blue square moving left", "a green triangle", "two circles")
MODELS = (defaults.TINY_MODEL, "ltx", "wan")

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    defaults.TINY_MODEL: (
        defaults.TINY_MODEL,
        {"preset": "tiny", "layers": 3, "heads": 4, "head_width": 12, "ffn": 64, "channels": 8, "text_width": 16},
    ),
    "ltx": (
        defaults.MODEL,
        {
            "class_name": "LTXVideoTransformer3DModel",
            "config": {
                "in_channels": 8,
                "out_channels": 8,
                "num_attention_heads": 4,
                "attention_head_dim": 12,
                "cross_attention_dim": 48,
                "num_layers": 3,
                "caption_channels": 16,
            },
        },
    ),
    "wan": (
        defaults.MODEL,
        {
            "class_name": "WanTransformer3DModel",
            "config": {
                "patch_size": [1, 2, 2],
                "num_attention_heads": 4,
                "attention_head_dim": 12,
                "in_channels": 8,
                "out_channels": 8,
                "text_dim": 16,
                "freq_dim": 32,
                "ffn_dim": 64,
                "num_layers": 3,
                "rope_max_seq_len": 32,
            },
        },
    ),
}


def tiny_denoiser(name: str, seed: int = 0, **options: Any) -> Denoiser:
    """Make a denoiser with random weights, none of them zero (a zero-initialised gate would hide every fault).

    options: of the plugin, instead of the tiny ones.
    """
    import torch

    plugin, own = _CONFIGS[name]
    torch.manual_seed(seed)
    maker = make_part("model", {"use": plugin, **own, **options}, installed()).build()
    module = maker.create().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    return maker.denoiser(module)


def tiny_text(width: int = 16) -> Captions:
    """Make a caption encoder of random weights, as wide as the tiny denoisers take."""
    import torch

    from dit_compress.model.text import Captions

    torch.manual_seed(1)
    options = {"width": width, "layers": 1, "heads": 2}
    return Captions(make_part("text", {"use": defaults.TINY_TEXT, **options}, installed()).build().create())


def tiny_batch(text: Captions, step: int = 0, size: int = 4, channels: int = CHANNELS) -> Batch:
    """Make a batch of random latents, the same for the same step."""
    from dit_compress.core.randomness import Streams
    from dit_compress.train.objective import Batch

    streams = Streams(0, step, range(size))
    captions = [CAPTIONS[index % len(CAPTIONS)] for index in range(size)]
    x0 = streams.normal("x0", (channels, *SIZE))
    return Batch(step, list(range(size)), x0, streams, captions, text.encoder.tokenize(captions))
