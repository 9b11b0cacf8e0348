"""A registry of small real plugins, one or two of every kind that recipes are tested with."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator

from dit_compress.plugin.kinds import hookimpl
from dit_compress.plugin.options import Options, PartField, Plugin, Slot, VideoOptions
from dit_compress.plugin.registry import Registry
from dit_compress.plugin.sources import Source
from dit_compress.recipe import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from dit_compress.recipe.model import Recipe


class Empty(Options):
    """No options."""


class DitOptions(Options):
    """A model."""

    preset: Literal["tiny", "2b"] = "tiny"
    heads: int | list[int] | None = None


class ClipsOptions(VideoOptions):
    """Data."""

    path: Path


class Weights(Options):
    """Nested options."""

    pixel: float = 1.0
    kl: float = 1e-4


class VaeOptions(Options):
    """A VAE."""

    ratio: str = Field("8x32x32", pattern=r"^\d+x\d+x\d+$")
    losses: Weights = Weights()


class TrainOptions(Options):
    """A training step."""

    steps: int = Field(1000, ge=1)
    lr: float = Field(1e-4, gt=0)
    bf16: bool = False


class AffineOptions(TrainOptions):
    """A step with a teacher."""

    alpha: float = 0.01
    sampling_steps: int = 4

    @property
    def idle_slots(self) -> dict[str, str]:
        """The teacher, where its features weigh nothing."""
        return {} if self.alpha else {"teacher": "'alpha' above 0"}


class CountOptions(Options):
    """A granularity."""

    remove: int | None = Field(None, ge=0)


class LearnedOptions(Options):
    """A search with a part of its own."""

    groups: int = 4
    objective: Annotated[PartField, Slot("distill")]


class Budget(Options):
    """A size."""

    params: int = Field(gt=0)


class PruneOptions(Options):
    """Steps with parts, one of them with a default."""

    levels: Annotated[dict[str, PartField] | None, Slot("granularity", many=True)] = None
    budget: Budget | None = None
    search: Annotated[PartField, Slot("search")] = Field(default="magnitude")

    @model_validator(mode="after")
    def _levels_or_budget(self) -> Self:
        if (self.levels is None) == (self.budget is None):
            raise ValueError("give either 'levels' or 'budget'")
        return self


PLUGINS: list[tuple[str, str, type[Options], dict[str, Any]]] = [
    ("model", "dit", DitOptions, {}),
    ("model", "diffusers", type("PathOptions", (Options,), {"__annotations__": {"path": str}}), {}),
    ("data", "clips", ClipsOptions, {}),
    ("text", "words", Empty, {}),
    ("sampler", "euler", Empty, {}),
    ("tracker", "jsonl", Empty, {}),
    ("latent", "vae", VaeOptions, {}),
    ("distill", "flow", TrainOptions, {"data": True}),
    ("distill", "affine", AffineOptions, {"slots": ("teacher",)}),
    ("prune", "trilevel", PruneOptions, {}),
    ("granularity", "block", CountOptions, {}),
    ("granularity", "head", CountOptions, {}),
    ("search", "magnitude", Empty, {}),
    ("search", "learned", LearnedOptions, {}),
    ("evaluate", "psnr", Empty, {}),
    ("export", "phone", Empty, {"requires": ("no_such_module",), "extra": "coreml"}),
    ("export", "files", Empty, {}),
]


def source(name: str, hooks: dict[str, Callable[[], Any]], distribution: str = "fake") -> Source:
    """A source whose module has the given hooks."""
    module = ModuleType(name)
    for kind, function in hooks.items():
        setattr(module, kind, hookimpl(function))
    return Source(name, distribution, "1.0", lambda: module)


def plugin_source(kind: str, name: str, options: type[Options], more: dict[str, Any]) -> Source:
    """A source with one plugin."""
    plugin = Plugin(name=name, options=options, load=f"fake.{kind}:{name.title()}", **more)
    return source(f"{kind}_{name}", {kind: lambda: plugin})


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The plugins above, and one that is broken."""
    made = Registry()
    made.add(plugin_source(*entry) for entry in PLUGINS)

    def fail() -> ModuleType:
        raise RuntimeError("needs a newer\n  libfoo")

    made.add([Source("search_broken", "stranger", "0.1", fail)])
    return made


@pytest.fixture
def load_text(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """Load a recipe from its text, as ``r.yaml`` in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def load_it(text: str) -> Recipe:
        path = tmp_path / "r.yaml"
        path.write_text(text, "utf-8")
        return load("r.yaml", registry)

    return load_it
