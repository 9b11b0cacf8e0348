"""Nested widths: the units of a model in order of importance, so that smaller models lie inside larger ones."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from dit_compress.hooks import Options, PartField, Plugin, Slot, hookimpl

Width = Annotated[float, Field(gt=0, le=1)]


class NestedOptions(Options):
    """Either the widths that the model shall have, or the one of them that is cut out."""

    widths: list[Width] = Field([0.375, 0.5, 1], min_length=2, description="Shares of units that stay; the last is 1.")
    levels: list[str] = Field(["head", "ffn"], min_length=1, description="What a width cuts, each by its share.")
    search: Annotated[
        PartField | None, Slot("search"), Field(description="What ranks the units; 'magnitude' if absent.")
    ] = None
    take: Width | None = Field(
        None, description="Of a model that has widths: cut this one out. It is then a model like any other."
    )

    @property
    def knows_widths(self) -> bool:
        """True where one is cut out."""
        return self.take is not None

    @property
    def idle(self) -> dict[str, str]:
        """What makes widths, where one is taken."""
        made = "making widths, and 'take' cuts one out"
        return {} if self.take is None else dict.fromkeys(("widths", "levels", "search"), made)

    @field_validator("widths")
    @classmethod
    def _rise_to_one(cls, widths: list[float]) -> list[float]:
        if widths != sorted(set(widths)) or widths[-1] != 1:
            meant = ", ".join(f"{width:g}" for width in sorted({*widths, 1.0}))
            raise ValueError(f"widths rise, and the last is 1, the whole model: [{meant}]")
        return widths

    @model_validator(mode="after")
    def _levels_once(self) -> Self:
        if len(set(self.levels)) < len(self.levels):
            raise ValueError("'levels' names one of them twice")
        return self


@hookimpl
def prune() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="nested",
        options=NestedOptions,
        load="dit_compress_plugins.prune_nested.step:NestedPruning",
        summary="nested widths in one bundle, or one of them cut out (SnapGen++)",
    )
