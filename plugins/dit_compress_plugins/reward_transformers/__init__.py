"""Reward: the likeness of frames and caption by a local CLIP folder."""

from typing import Annotated

from pydantic import Field, field_validator

from dit_compress.hooks import File, Options, Plugin, hookimpl


class TransformersRewardOptions(Options):
    """The folder of the critic, and what is asked of it."""

    path: Annotated[str, File()] = Field(
        description="A local folder in transformers' layout of CLIP, SigLIP or another model of images and texts."
    )
    frames: int = Field(4, ge=1, description="Frames of each video that are looked at, evenly spaced.")
    aspects: dict[str, str] = Field(
        {"caption": "{caption}"}, min_length=1, description="Texts that frames are compared with, by aspect."
    )
    margin: float = Field(
        0.25, ge=-1, le=1, description="Cosine at which the answer is undecided; a model with a bias of its own has it."
    )

    @field_validator("aspects")
    @classmethod
    def _texts(cls, aspects: dict[str, str]) -> dict[str, str]:
        for name, text in aspects.items():
            if not name or not text.replace("{caption}", "").isprintable() or not text.strip():
                raise ValueError(f"the aspect {name!r} has no text: give one line, with '{{caption}}' for the caption")
        return aspects


@hookimpl
def reward() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="transformers",
        options=TransformersRewardOptions,
        load="dit_compress_plugins.reward_transformers.reward:TransformersReward",
        requires=("transformers",),
        extra="clip",
        summary="likeness of frames and caption by a local CLIP folder",
    )
