"""Tokens of another encoder → a small T5 → a projector to that encoder's width.

Shapes: B batch, L text length, D the T5's width, E the embeddings'.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.model.protocols import Text, TextEncoder
from dit_compress.model.spec import ComponentSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress_plugins.text_small import SmallOptions


HIDDEN = -1e4
"""Added to the logits of what is not seen; float16 holds it."""


class SmallEncoder(nn.Module, TextEncoder):
    """A T5 encoder of transformers and a linear projector.

    tokens: plugin and config of the encoder whose tokens it reads; that one's weights are never loaded.
    sees_padding: padding is encoded like words, as CogVideoX has it.
    """

    def __init__(
        self,
        tokens: Mapping[str, Any],
        num_tokens: int,
        layers: int,
        width: int,
        heads: int,
        ffn: int,
        gives: int,
        *,
        sees_padding: bool = False,
    ) -> None:
        super().__init__()
        from transformers import T5Config, T5EncoderModel

        self.tokens, self.num_tokens, self.width, self.sees_padding = dict(tokens), num_tokens, gives, sees_padding
        self.sizes = {"layers": layers, "width": width, "heads": heads, "ffn": ffn}
        config = T5Config(
            vocab_size=num_tokens, d_model=width, d_kv=width // heads, d_ff=ffn, num_layers=layers, num_heads=heads,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, attn_implementation="eager", use_cache=False,
        )  # fmt: skip
        self.encoder = T5EncoderModel(config).encoder
        self.encoder.block[0].layer[0].SelfAttention._relative_position_bucket = position_bucket  # noqa: SLF001
        self.project = nn.Linear(width, gives)

    @cached_property
    def reader(self) -> Any:
        """The encoder whose tokens it reads, without weights."""
        return ComponentSpec("text", self.tokens["plugin"], self.tokens["config"]).build()

    @property
    def tokenizer_kind(self) -> str | None:  # type: ignore[override]
        """The kind of the reader's tokenizer."""
        return self.reader.tokenizer_kind

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Turn captions into the reader's tokens ``[B,L]``, its mask if there is one, and nothing else."""
        found = self.reader.tokenize(captions)
        first = next(name for name in found if name != "mask")
        return {name: found[name] for name in (first, "mask") if name in found}

    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode tokens to ``embedding [B,L,E]`` (zero where ``mask`` is) and ``mask [B,L]``."""
        ids_BL = next(value for name, value in tokens.items() if name != "mask")
        seen_BL = torch.ones_like(ids_BL) if self.sees_padding else tokens.get("mask", ids_BL != 0)
        mask_BL = seen_BL.to(self.project.weight.dtype)
        # Added to the logits as it is: what transformers makes of a mask [B,L] looks at values, which no trace can.
        hidden_BLD = self.encoder(
            input_ids=ids_BL, attention_mask=HIDDEN * (1 - mask_BL)[:, None, None]
        ).last_hidden_state
        return {"embedding": self.project(hidden_BLD) * mask_BL[..., None], "mask": mask_BL}

    def save_tokenizer(self, folder: Path) -> dict[str, Any]:
        """Write the reader's tokenizer."""
        return self.reader.save_tokenizer(folder)

    def keep_tokens(self, folder: Path) -> bool:
        """Write what the reader tokenizes by: its folder may go."""
        return self.reader.keep_tokens(folder)

    def take_tokens(self, folder: Path) -> None:
        """Let the reader tokenize by what was kept."""
        self.reader.take_tokens(folder)


def position_bucket(away: Tensor, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:  # noqa: FBT001, ARG001 - T5's signature
    """Return the bucket of each distance between two tokens, as T5's encoder has it, without its logarithm of 0.

    That is chosen away there, and yet stands in an exported file as an infinity.
    """
    half = num_buckets // 2
    exact, far = half // 2, away.abs()
    coarse = torch.log(far.clamp_min(exact).float() / exact) / math.log(max_distance / exact) * (half - exact)
    return (away > 0).long() * half + torch.where(far < exact, far, (exact + coarse.long()).clamp_max(half - 1))


class Small(Text):
    """The part ``text: {use: small}``."""

    trainable = True

    def __init__(self, options: SmallOptions) -> None:
        self.options = options

    def create(self) -> nn.Module:
        """Make an encoder of random weights; UserError where nobody says whose tokens it reads."""
        part = self.options.tokens
        if part is None:
            raise UserError(
                "'small' reads the tokens of another text encoder, and none is named",
                mend="Add tokens: {use: transformers, path: …}, or make it the student of a 'distill: text' step",
            )
        maker = part.build()
        component = ComponentSpec("text", part.name, maker.config_of(maker.create()))
        return self._over(component, self.options.caption_width, sees_padding=False)

    def follow(self, plugin: str, config: Mapping[str, Any], *, sees_padding: bool = False) -> nn.Module:
        """Make an encoder of random weights for the tokens and the width of another."""
        if self.options.tokens is not None or self.options.gives is not None:
            raise UserError(
                "a student reads its teacher's tokens, and is as wide", mend="Leave out 'tokens' and 'gives'"
            )
        return self._over(ComponentSpec("text", plugin, dict(config)), None, sees_padding=sees_padding)

    def _over(self, component: ComponentSpec, gives: int | None, *, sees_padding: bool) -> nn.Module:
        """Make an encoder over the tokens of a component; as wide as that where ``gives`` is None."""
        reader: Any = component.outline
        if not reader.num_tokens:
            raise UserError(
                f"the tokens of {component.plugin!r} can't be read by another encoder",
                mend="Name a text encoder that says how many tokens there are ('num_tokens')",
            )
        options, tokens = self.options, {"plugin": component.plugin, "config": component.config}
        sizes = {name: getattr(options, name) for name in ("layers", "width", "heads", "ffn")}
        return SmallEncoder(tokens, reader.num_tokens, **sizes, gives=gives or reader.width, sees_padding=sees_padding)

    @staticmethod
    def config_of(module: Any) -> dict[str, Any]:
        """Return the reader, the sizes and the width given."""
        return {
            "tokens": module.tokens,
            "num_tokens": module.num_tokens,
            **module.sizes,
            "gives": module.width,
            "sees_padding": module.sees_padding,
        }

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make the same encoder without its weights; call it on the meta device."""
        return SmallEncoder(**config)
