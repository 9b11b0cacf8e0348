"""The reference DiT of the paper: 3D full self-attention, cross-attention to text, one shared AdaLN table."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from dit_compress.hooks import Options, Plugin, hookimpl

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 4, "heads": 4, "head_width": 32, "text_width": 128, "rope_theta": 10.0},
    "small": {"layers": 8, "heads": 8, "head_width": 32, "ffn": 768, "text_width": 128, "rope_theta": 10.0},
    "2b": {"layers": 28, "heads": 32},
    "shallow": {"layers": 14, "heads": 32},
    "narrow": {"layers": 28, "heads": 23},
}
"""``2b`` is the server model; ``shallow`` (2048×14) and ``narrow`` (1472×28) are the baselines of Table 4."""


MOST_PARAMETERS = 100_000_000_000
Layers = Annotated[int, Field(ge=1, le=1000)]
Width = Annotated[int, Field(ge=1, le=16384)]
Inner = Annotated[int, Field(ge=1, le=65536)]


class VideoDiTOptions(Options):
    """A preset, and what differs from it.

    ``heads`` (self-attention), ``cross_heads`` and ``ffn`` take one count for all blocks or one per block.
    Not given: ``hidden`` is heads × head_width, ``ffn`` four times that, ``cross_heads`` as ``heads``.
    """

    preset: Literal["tiny", "small", "2b", "shallow", "narrow"] = "tiny"
    layers: Layers | None = None
    hidden: Width | None = None
    heads: Width | list[Width] | None = None
    cross_heads: Width | list[Width] | None = None
    head_width: Width | None = Field(default=None, multiple_of=2)
    ffn: Inner | list[Inner] | None = None
    channels: Width = 128
    text_width: Width | None = None
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1)
    rope_theta: float | None = Field(
        default=None,
        gt=1,
        description="RoPE's slowest turn is about 1/theta radians per token: small for small videos.",
    )
    preconditioned: bool | None = Field(
        default=None, description="A linear guess of the velocity is added to the network's output: trains faster."
    )

    @model_validator(mode="after")
    def _fits(self) -> VideoDiTOptions:
        config = self.config()
        inner = [config[name] for name in ("heads", "cross_heads", "ffn")]
        heads, cross, ffn = (max(value) if isinstance(value, list) else value for value in inner)
        wide = 4 * (heads + cross) * config["head_width"] + 2 * ffn
        if (count := config["layers"] * config["hidden"] * wide) > MOST_PARAMETERS:
            raise ValueError(
                f"the model would have about {count / 1e9:,.0f} billion parameters: lower 'layers' or 'heads'"
            )
        return self

    @property
    def caption_width(self) -> int:
        """Return the width of the caption embeddings that the model takes."""
        return self.config()["text_width"]

    def config(self) -> dict[str, Any]:
        """Return the complete config of ``VideoDiT``, with one entry per block where counts differ."""
        given = self.model_dump(exclude={"preset"}, exclude_none=True)
        config = {"head_width": 64, "text_width": 4096, **PRESETS[self.preset], **given}
        if "hidden" not in config:
            if isinstance(config["heads"], list):
                raise ValueError("heads differ between blocks: give 'hidden', the width of the stream")
            config["hidden"] = config["heads"] * config["head_width"]
        config.setdefault("cross_heads", config["heads"])
        config.setdefault("ffn", 4 * config["hidden"])
        for name in ("heads", "cross_heads", "ffn"):
            if isinstance(config[name], list) and len(config[name]) != config["layers"]:
                found, wanted = len(config[name]), config["layers"]
                raise ValueError(f"'{name}' has {found} entries for {wanted} blocks: give one each")
        config["patch"] = list(config["patch"])
        return config


@hookimpl
def model() -> Plugin:
    """Describe ``model: {use: video_dit, preset: 2b}``."""
    return Plugin(
        name="video_dit",
        options=VideoDiTOptions,
        load="dit_compress_plugins.model_video_dit.adapter:VideoDiTModel",
        requires=("diffusers",),
        summary="reference video DiT of the paper, 1.3M to 1,923M parameters",
    )
