"""The contents of ``manifest.json`` as models that its writer and its readers check it by. Imports no torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.json_schema import GenerateJsonSchema

from dit_compress.core import schema
from dit_compress.core.schema import ABSENT, Closed, Natural, Open, Positive, Sha256
from dit_compress.core.version import SCHEMA
from dit_compress.export.types import Fidelity, Precision  # noqa: TC001 - pydantic reads them

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OUTSIDE = r"^/|\.\."


def _inside(path: str) -> str:
    if re.search(_OUTSIDE, path):
        raise ValueError("a path out of the folder")
    return path


Path = Annotated[str, AfterValidator(_inside), WithJsonSchema({"type": "string", "not": {"pattern": _OUTSIDE}})]
Latent = Annotated[list[Positive], Field(min_length=5, max_length=5)]
Unverified = Literal["UNVERIFIED"]


class Exporter(Closed):
    """The plugin that wrote the files, and its options."""

    plugin: str
    options: dict[str, Any]


class Measured(Open):
    """One measured latency and its source."""

    what: Any
    source: Any


class Profile(Open):
    """The device, with its limits and their sources."""

    name: Any
    precision: Any
    max_rank: Any
    measured: list[Measured]
    sources: Any


class FrameRule(Closed):
    """A video has ``lead + step·k`` frames."""

    lead: Positive
    step: Positive


class Video(Closed):
    """The output of the decoder at its own size."""

    frames: Positive
    height: Positive
    width: Positive
    fps: Annotated[float, Field(gt=0)]
    range: Annotated[list[float], Field(min_length=2, max_length=2)]
    layout: str


class Size(Closed):
    """One size of video, and the shape of its latent."""

    name: Annotated[str, Field(pattern="^(main|video_[0-9]+x[0-9]+x[0-9]+)$")]
    frames: Positive
    height: Positive
    width: Positive
    latent: Latent


class LatentStatistics(Open):
    """Mean and standard deviation of the raw latent per channel."""

    mean: list[float] | None
    std: list[float] | None
    decoder_takes: Literal["normalised"]


class Noise(Open):
    """The first latent."""

    distribution: Any
    shape: Latent


class Tensor(Closed):
    """Name, shape and dtype."""

    name: str
    shape: list[Natural]
    dtype: Literal["float32", "float16", "int32", "int64"]


class Rope(Closed):
    """The tables by which the DiT rotates queries and keys."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {"file": ["sha256", "tensors"]}})

    where: Literal["constants of dit_step", "constants of dit_walk"]
    inputs: Annotated[list[Any], Field(max_length=0)]
    file: Literal["rope.safetensors"] = ABSENT
    sha256: Sha256 = ABSENT
    tensors: Annotated[list[Tensor], Field(min_length=1)] = ABSENT

    @model_validator(mode="after")
    def _whole(self) -> Rope:
        return _need(self, ("sha256", "tensors") if self.file else ())


class Tokenizer(Open):
    """The way from captions to numbers."""

    kind: str
    folder: str
    file: str
    length: Positive
    padding: str


class Text(Open):
    """The place that encodes captions, and the tensors that come of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"where": {"const": "device"}}},
            "then": {"required": ["tokenizer"]},
            "else": {"required": ["padding", "encoder"]},
        }
    )

    where: Literal["device", "host"]
    tensors: dict[str, list[int]]
    encoder: str = ABSENT
    padding: str = ABSENT
    tokenizer: Tokenizer = ABSENT

    @model_validator(mode="after")
    def _whole(self) -> Text:
        return _need(self, ("tokenizer",) if self.where == "device" else ("padding", "encoder"))


class Sample(Open):
    """The golden sample, and the dB that a player must reach."""

    file: str
    caption: str
    seed: Natural
    stream: str
    gate_db: float


class File(Closed):
    """One file of the package."""

    path: Path
    bytes: Natural
    sha256: Sha256


class Row(Open):
    """One execution of one file in its proof."""

    component: Any
    kind: Any
    arithmetic: Precision
    input_set: Any
    gate_db: float
    verdict: Literal["passed", "below"]
    psnr_db: float | None
    relative_l2: Any
    max_abs: Any
    peak: Any
    nonfinite: Natural


class Headroom(Open):
    """One operator's distance from the end of half precision."""

    operator: Any
    path: Any
    input_set: Any
    max_abs: float
    headroom: Annotated[float, Field(ge=0)]


class Artifact(Closed):
    """The files of one component."""

    component: str
    kind: str
    precision: Precision
    weight_bits: Annotated[int, Field(ge=1, le=32)]
    path: str
    bytes: Positive
    sha256: Sha256
    files: Annotated[list[File], Field(min_length=1)]
    inputs: Annotated[list[Tensor], Field(min_length=1)]
    outputs: Annotated[list[Tensor], Field(min_length=1)]
    fidelity: Fidelity
    stamp: Unverified = ABSENT
    proof: list[Row]
    golden: str
    details: dict[str, Any]
    headroom: list[Headroom]


class Manifest(Closed):
    """The whole of ``manifest.json``; ``sha256`` is of all the rest of it."""

    model_config = ConfigDict(title=f"manifest.json of an exported package, schema {SCHEMA}")

    schema_: Literal[1] = Field(alias="schema")
    written_by: str
    passed: bool
    fidelity: Fidelity
    stamp: Unverified = ABSENT
    exporter: Exporter
    profile: Profile
    load_order: Annotated[list[str], Field(min_length=1)]
    artifacts: Annotated[list[Artifact], Field(min_length=1)]
    prediction: str
    sigmas: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2)]
    guidance: Annotated[float, Field(ge=1)]
    ratio: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    frame_rule: FrameRule
    video: Video
    sizes: Annotated[list[Size], Field(min_length=1)]
    latent: LatentStatistics
    noise: Noise
    rope: Rope
    text: Text
    sample: Sample
    licence: str | None
    files: list[File]
    sha256: Sha256 = ABSENT


def _need(model: Any, names: tuple[str, ...]) -> Any:
    """Return the model; raise a ValueError where it lacks fields that others of its fields call for."""
    if missing := [name for name in names if name not in model.model_fields_set]:
        raise ValueError(f"{missing[0]!r} is a required property")
    return model


class _Generate(GenerateJsonSchema):
    """``licence: ["string", "null"]``, and no titles but the whole's."""

    def nullable_schema(self, schema: Any) -> Any:
        inner = self.generate_inner(schema["schema"])
        return {**inner, "type": [inner["type"], "null"]}

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the contract
        return False


def manifest_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``manifest.json``."""
    found = Manifest.model_json_schema(schema_generator=_Generate)
    for described in (found, *found["$defs"].values()):
        for field in described["properties"].values():
            field.pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def required() -> list[str]:
    """Return the keys of a whole manifest."""
    return [info.alias or name for name, info in Manifest.model_fields.items() if info.is_required()]


def faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a manifest departs from its model, and in what; missing keys at its top are not counted."""
    return schema.faults(Manifest, manifest, partial=True)
