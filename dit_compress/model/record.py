"""What ``bundle.json`` says: models that its reader checks it by. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dit_compress.core.schema import ABSENT, Closed, Natural, Open, Positive, Sha256


class File(Closed):
    """One file of a component."""

    bytes: Natural
    sha256: Sha256


class Transform(Open):
    """One entry of a transform log."""

    name: str
    data: dict[str, Any]


class Component(Open):
    """The plugin that loads a component, its base config, its transform log, its files.

    latents: of a VAE whose decoder was changed, the digest of the VAE whose latents it still makes.
    """

    plugin: str
    config: dict[str, Any]
    log: list[Transform]
    files: dict[str, File]
    latents: Sha256 = ABSENT


Sigma = Annotated[float, Field(ge=0, le=1)]


class FlowSettings(Open):
    """How the bundle is meant to be sampled; ``sigmas`` for whoever has no toolkit, ``between`` of an expert."""

    shift: Annotated[float, Field(gt=0)]
    num_steps: Positive
    guidance: float
    sampler: dict[str, Any] = ABSENT
    between: Annotated[list[Sigma], Field(min_length=2, max_length=2)] = ABSENT
    sigmas: Annotated[list[float], Field(min_length=2)] = ABSENT


class Used(Open):
    """A plugin that a step used, with its options and revisions."""

    plugin: str
    options: dict[str, Any]


class Step(Open):
    """A step that the bundle came through."""

    kind: str
    step: str = ABSENT
    key: str = ABSENT
    seed: Natural = ABSENT
    parts: dict[str, Used] = ABSENT
    inputs: dict[str, str] = ABSENT
    sources: dict[str, str] = ABSENT


class BundleRecord(Closed):
    """The whole of ``bundle.json``. Its own ``sha256`` may be missing: the first version wrote none."""

    schema_: Literal[1] = Field(alias="schema")
    components: dict[str, Component]
    flow: FlowSettings
    video: Annotated[list[Positive], Field(min_length=3, max_length=3)] | None = None
    lineage: list[Step]
    licence: str | None = None
    sha256: Sha256 = ABSENT
