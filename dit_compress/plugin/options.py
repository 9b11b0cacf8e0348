"""A plugin's description of itself: name, options, where its code is; and the options' marks for parts and files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    PositiveInt,
    WrapValidator,
    model_validator,
)

from dit_compress.core.files import sha256_content

if TYPE_CHECKING:
    from collections.abc import Callable


class Options(BaseModel):
    """Base of every options class: unknown keys, infinities and NaN are errors, values can't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    for_slots: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Slots of the step that options belong to: without its bundle they do nothing, and ``check`` refuses them."""

    @property
    def idle(self) -> dict[str, str]:
        """Options that do nothing beside the others' values, and what each belongs to: ``{"bins": "'weight: null'"}``.

        One that differs from its default is refused.
        """
        return {}

    @property
    def idle_slots(self) -> dict[str, str]:
        """Slots of the step whose bundles do nothing beside the options' values, and what each belongs to."""
        return {}

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        asked: dict[str, list[str]] = {}
        for name, to in self.idle.items():
            if self.differs(name):
                asked.setdefault(to, []).append(repr(name))
        if asked:
            belong = (f"{' and '.join(names)} belong{'' if names[1:] else 's'} to {to}" for to, names in asked.items())
            raise ValueError(f"{'; '.join(belong)}: leave out what does nothing, or give that")
        return self

    def differs(self, name: str) -> bool:
        """Tell whether an option has another value than its default."""
        value: Any = dict(self)[name]
        return bool(value != type(self).model_fields[name].get_default(call_default_factory=True))

    @property
    def needs(self) -> tuple[str, ...]:
        """Slots of the step (``teacher``) that these options can't do without."""
        return ()

    @property
    def reads_data(self) -> Literal["no", "if any", "yes"]:
        """Whether these options make a step read the recipe's data, where the plugin does not (``Plugin.data``)."""
        return "no"

    @property
    def held_out(self) -> bool:
        """True where the step can't do without held-out data."""
        return False

    @property
    def one_schedule(self) -> bool:
        """True where the model that a step gives can be called at the noise levels of one schedule alone."""
        return False

    @property
    def knows_widths(self) -> bool:
        """True of a step that changes a denoiser of nested widths (``prune: nested``) as one; others are refused it."""
        return False

    @property
    def any_size(self) -> bool:
        """True where a step that reads data takes clips of several sizes (:class:`BucketOptions`)."""
        return False

    @property
    def keeps_latents(self) -> bool:
        """True of a latent step whose VAE makes the latents of its input's: another decoder to them."""
        return False

    @property
    def of_latents(self) -> Self:
        """Of a latent step, the options without what latents do not follow from: a fine-tune of the decoder alone."""
        return self

    @property
    def caption_width(self) -> int | None:
        """Width of the embeddings that a text encoder gives or a model takes, where these options alone say it."""
        return None


def _or_percent(value: Any, number: Callable[[Any], Any]) -> Any:
    """Take ``50%`` as it is, anything else as a number."""
    if not isinstance(value, str) or not re.fullmatch(r"\d+(\.\d+)?%", value):
        return number(value)
    if not 0 < float(value[:-1]) <= 100:
        raise ValueError(f"{value} is no share of the model: write more than 0% and at most 100%")
    return value


PERCENT = (WrapValidator(_or_percent), PlainSerializer(lambda value: value))
"""Marks a number that may also be a share of the whole model's figure: ``50%``."""


Side = Annotated[PositiveInt, Field(le=65536)]
Frames = Annotated[PositiveInt, Field(le=1_000_000)]


MAX_PIXELS = 2**32
"""Of one clip: 12 GiB as bytes, four times that as numbers."""


class Keyed:
    """Marks an option that counts in a step's key only where one of some options differs from its default.

    ``clip: Annotated[float, Keyed("clip")] = 1.0`` came after there were keys, which stay as they were. ``Keyed()``
    never counts: it says how a step is computed, which changes results by rounding, as the number of processes does.
    """

    def __init__(self, *by: str) -> None:
        self.by = by

    def counts(self, options: Options) -> bool:
        """Tell whether the option counts among these."""
        return any(options.differs(name) for name in self.by)


class VideoOptions(Options):
    """Base of a data plugin's options, where they state the video: frames, size (Y, X) and rate of every clip.

    first_frame: the model is given the latents of each clip's first frame.
    """

    frames: int = Field(ge=1, le=1_000_000)
    size: tuple[Side, Side]
    fps: float | None = Field(default=None, gt=0)
    first_frame: Annotated[bool, Keyed("first_frame")] = False

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        for frames, height, width in self.videos:
            if frames * height * width > MAX_PIXELS:
                raise ValueError(
                    f"{frames} frames of {height}x{width} pixels are more than {MAX_PIXELS}, and a clip is held in "
                    "memory whole: give fewer 'frames' or a smaller 'size'"
                )
        return self

    @property
    def videos(self) -> tuple[tuple[int, int, int], ...]:
        """Frames, height and width of every size that clips have; the first is that of ``frames`` and ``size``."""
        return ((self.frames, *self.size),)

    @property
    def expected_clips(self) -> int | None:
        """How many clips there will be in all, where the options say it."""
        return None

    @property
    def encoded(self) -> bool:
        """True where the data gives what was encoded elsewhere: what no caption of the recipe's own text gives, too."""
        return False

    @property
    def longest(self) -> int | None:
        """Frames of the longest clip, where the options alone say it: no step can take more of one."""
        return None


class BucketOptions(VideoOptions):
    """Base of a data plugin's options whose clips may be of several sizes, each batch of a training of one.

    sizes: frames, height and width of each, ``[[17, 256, 448], [33, 256, 256]]``. 'frames' and 'size' then may be
        missing: they are those of the first, for which plans and exports are made.
    """

    sizes: tuple[tuple[Frames, Side, Side], ...] | None = Field(default=None, min_length=1)

    model_config = ConfigDict(json_schema_extra=lambda schema: _leave_out_required(schema, "frames", "size"))

    @model_validator(mode="before")
    @classmethod
    def _stated_by_sizes(cls, data: Any) -> Any:
        """Take 'frames' and 'size' of the first of the sizes; any, where those are not understood and refused."""
        if not isinstance(data, dict) or data.get("sizes") is None:
            return data
        first = next(iter(data["sizes"]), None) if isinstance(data["sizes"], list | tuple) else None
        frames, *size = first if isinstance(first, list | tuple) and len(first) == 3 else (1, 1, 1)
        return {"frames": frames, "size": size, **data}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.sizes and self.sizes[0] != (self.frames, *self.size):
            raise ValueError(f"'frames' and 'size' are not those of the first of 'sizes', {list(self.sizes[0])}")
        if self.sizes and len(set(self.sizes)) < len(self.sizes):
            raise ValueError("'sizes' has one of its sizes twice")
        return self

    @property
    def videos(self) -> tuple[tuple[int, int, int], ...]:
        """Frames, height and width of every size."""
        return self.sizes or super().videos


def _leave_out_required(schema: dict[str, Any], *names: str) -> None:
    """Let options be missing that others state."""
    schema["required"] = [name for name in schema.get("required", []) if name not in names]


@dataclass(frozen=True)
class Plugin:
    """One plugin, described without importing its code.

    name: the word that a recipe has after ``use:``.
    options: what a recipe may set beside it.
    load: ``package.module:Class``, imported when the plugin is used.
    revision: raised when equal options and inputs give other results.
    requires: import names it needs beyond the core, checked before a run.
    extra: the extra of dit-compress that brings them (``pip install dit-compress[extra]``).
    slots: bundles a step reads besides ``input`` (each an earlier step's name or a path); ``needs`` of the
        options names those that they can't do without.
    world: ``all`` for a step that trains on every process, or a part that makes its step one; ``one`` for any other.
    data: whether a step reads the recipe's data, whatever its options say (``Options.reads_data``).
    quality: an evaluation's metric by which the report compares models; more is better.
    headline: the metric that it shows first; ``quality`` if absent.
    curves: the file of JSON lines that a tracker writes into the step's folder, for the report.
    units: of a granularity, as a title says them: ``Heads``.
    """

    name: str
    options: type[Options]
    load: str
    revision: int = 1
    requires: tuple[str, ...] = ()
    extra: str | None = None
    slots: tuple[str, ...] = ()
    world: Literal["one", "all"] = "one"
    data: bool = False
    quality: str | None = None
    headline: str | None = None
    curves: str | None = None
    units: str | None = None
    summary: str = ""


@dataclass(frozen=True)
class Slot:
    """Marks an option that holds a part of another kind: ``search: {use: magnitude}``.

    With ``many`` the option is a mapping from plugin name to its options:
    ``levels: {block: {remove: 8}, head: {remove: 12}}``; behind a dot stands what the part is for, where it is not
    for all (``block.double_blocks``).
    """

    kind: str
    many: bool = False


@dataclass(frozen=True)
class File:
    """Marks an option that may name a file or folder: in a step's key stands what is in it, not its path.

    ``table: Annotated[str | None, File()] = None``. A value that names neither counts as it is. ``within``: of a
    folder that has any of these below it, only they count: ``File(("vae",))`` of a pipeline's folder.
    """

    within: tuple[str, ...] = ()

    def content(self, value: str) -> str:
        """Return the sha256 of what a value names; the value itself where it names nothing."""
        path = Path(value)
        return sha256_content(path, self.within) if path.exists() else value


@dataclass(frozen=True)
class Part:
    """A validated part of a recipe: a plugin and its options. ``build`` imports and makes it."""

    kind: str
    plugin: Plugin
    options: Options
    where: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The plugin's name, as recipes have it."""
        return self.plugin.name

    @property
    def together(self) -> list[Part]:
        """Everything of a step that trains on every process: the part itself, parts in its options."""
        parts = [self, *(value for _, value in self.options if isinstance(value, Part))]
        return [part for part in parts if part.plugin.world == "all"]

    def build(self) -> Any:
        """Import the plugin's code and construct it with the options."""
        return load_object(self.plugin.load)(self.options)

    def as_data(self, *, contents: bool = False) -> dict[str, Any]:
        """Return the part as a recipe would write it, defaults included; ``contents`` as in :func:`options_as_data`."""
        return {"use": self.name, **options_as_data(self.options, contents=contents)}


PartField = InstanceOf[Part]
"""Type of an option with a slot: ``search: Annotated[PartField, Slot("search")]``."""


def slots_of(options: type[Options]) -> dict[str, Slot]:
    """Return the options that hold parts, by field name."""
    found = {}
    for name, info in options.model_fields.items():
        for mark in info.metadata:
            if isinstance(mark, Slot):
                found[name] = mark
    return found


def options_as_data(options: Options, *, contents: bool = False) -> dict[str, Any]:
    """Return options as JSON data, parts included; with ``contents`` as a step's key has them.

    Those are without what does not count (:class:`Keyed`), and with the sha256 of what :class:`File` options name.
    """
    slots = slots_of(type(options))
    data = options.model_dump(mode="json", exclude=set(slots), by_alias=True)
    fields = type(options).model_fields
    for names, (mark, value) in files_of(options).items() if contents else ():
        *outer, leaf = names.split(".")
        reduce(getitem, outer, data)[leaf] = mark.content(value)
    values = dict(options)
    for name, slot in slots.items():
        value, written = values[name], fields[name].alias or name
        if value is None:
            data[written] = None
        elif slot.many:
            data[written] = {key: options_as_data(part.options, contents=contents) for key, part in value.items()}
        else:
            data[written] = value.as_data(contents=contents)
    if contents:
        keep_counted(options, data)
    return data


def keep_counted(value: Any, data: Any) -> None:
    """Take out of the data what does not count in a key; in options inside options, lists and mappings, too."""
    if isinstance(value, Options):
        for name, inner in value:
            info = type(value).model_fields[name]
            written = info.alias or name
            if any(isinstance(mark, Keyed) and not mark.counts(value) for mark in info.metadata):
                data.pop(written, None)
            elif written in data:
                keep_counted(inner, data[written])
    elif isinstance(value, dict) and isinstance(data, dict):
        keep_counted(list(value.values()), list(data.values()))
    elif isinstance(value, list | tuple) and isinstance(data, list):
        for inner, own in zip(value, data, strict=True):
            keep_counted(inner, own)


def marked(options: type[Options]) -> dict[str, File]:
    """Return the options that may name a file or folder, by field name."""
    marks = ((name, mark) for name, info in options.model_fields.items() for mark in info.metadata)
    return {name: mark for name, mark in marks if isinstance(mark, File)}


def files_of(options: Options) -> dict[str, tuple[File, str]]:
    """Return what :class:`File` options name, those of inner options included: dotted name → mark, value."""
    marks, found = marked(type(options)), dict[str, tuple[File, str]]()
    for name, value in options:
        written = type(options).model_fields[name].alias or name
        if isinstance(value, Options):
            found |= {f"{written}.{inner}": named for inner, named in files_of(value).items()}
        elif name in marks and value is not None:
            found[written] = (marks[name], str(value))
    return found


def load_object(path: str) -> Any:
    """Import ``package.module:Name``."""
    from importlib import import_module

    module, _, name = path.partition(":")
    return vars(import_module(module))[name]
