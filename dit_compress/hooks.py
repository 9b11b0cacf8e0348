"""The whole plugin contract, on one page.

A plugin is a module found through the entry-point group ``dit_compress.plugin.registry``. It implements one
hook, named after its kind, that returns a :class:`Plugin`: a name for recipes, an options class, and
where the code is. The module imports no torch; the code at ``Plugin.load`` is imported when it is used.

    from dit_compress.hooks import Options, Plugin, hookimpl

    class RandomOptions(Options):
        seed: int = 0

    @hookimpl
    def search() -> Plugin:
        return Plugin(name="random", options=RandomOptions, load="my_package.search:RandomSearch")

What stands at ``load`` is a class; the engine calls it with the validated options. Which methods it
needs is stated by the protocol of its kind below.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens, D width, L text length.
Video is ``[B,3,F,Y,X]`` in [-1, 1] with F = 1 + ratio[0]·(T-1) frames (see :class:`Codec`) of Y × X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import pluggy
from pydantic import BaseModel, ConfigDict, InstanceOf

from dit_compress.core.files import sha256_content

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from dit_compress.data.clips import Clip
    from dit_compress.data.encode import Captions, Rows
    from dit_compress.export import Artifact, Component, Diagnostic, Profile, Runner
    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.search.problem import SearchProblem, Selection
    from dit_compress.step.context import Context, Result
    from dit_compress.structure.facts import Axis, Structure
    from dit_compress.train.objective import Objective

PROJECT = "dit_compress"
GROUP = "dit_compress.plugin.registry"
NOTED = "__dit_compress_hooks__"
"""Where a module notes its hooks."""
hookspec = pluggy.HookspecMarker(PROJECT)
_mark = pluggy.HookimplMarker(PROJECT)


def hookimpl(function: Callable[[], Any]) -> Callable[[], Any]:
    """Mark a function that implements the hook of its name.

    It is noted in its module too: importing ``search.py`` beside the hook ``search`` puts that module in
    the function's place, and a later discovery in the same process must still find the hook.
    """
    function.__globals__.setdefault(NOTED, {})[function.__name__] = function
    return _mark(function)


# ------------------------------------------------------------------ what a hook returns


class Options(BaseModel):
    """Base of every options class: unknown keys, infinities and NaN are errors, values can't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Plugin:
    """One plugin, described without importing its code.

    name: the word a recipe says after ``use:``.
    options: what a recipe may say beside it.
    load: ``package.module:Class``, imported when the plugin is used.
    revision: raised when equal options and inputs give other results.
    requires: import names it needs beyond the core, checked before a run.
    extra: the extra of dit-compress that brings them (``pip install dit-compress[extra]``).
    slots: bundles a step reads besides ``input`` (each an earlier step's name or a path). An attribute ``needs`` of
        the step names those that its options can't do without.
    world: ``all`` for a step that trains on every process, or a part that makes its step one; ``one`` for any other.
    data: whether a step reads the recipe's data.
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
    summary: str = ""


@dataclass(frozen=True)
class Slot:
    """Marks an option that holds a part of another kind: ``search: {use: magnitude}``.

    With ``many`` the option is a mapping from plugin name to its options:
    ``levels: {block: {remove: 8}, head: {remove: 12}}``.
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
        """The sha256 of what a value names; the value where it names nothing."""
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
        """The plugin's name, as recipes say it."""
        return self.plugin.name

    @property
    def together(self) -> list[Part]:
        """What of a step trains on every process: the part itself, parts in its options."""
        held = [getattr(self.options, name) for name in slots_of(type(self.options))]
        parts = [self, *(part for part in held if isinstance(part, Part))]
        return [part for part in parts if part.plugin.world == "all"]

    def build(self) -> Any:
        """Import the plugin's code and construct it with the options."""
        return load_object(self.plugin.load)(self.options)

    def as_data(self, *, contents: bool = False) -> dict[str, Any]:
        """The part as a recipe would say it, with every default; ``contents`` as for :func:`options_as_data`."""
        return {"use": self.name, **options_as_data(self.options, contents=contents)}


PartField = InstanceOf[Part]
"""Type of an option with a slot: ``search: Annotated[PartField, Slot("search")]``."""


def slots_of(options: type[Options]) -> dict[str, Slot]:
    """The options that hold parts, by field name."""
    found = {}
    for name, info in options.model_fields.items():
        for mark in info.metadata:
            if isinstance(mark, Slot):
                found[name] = mark
    return found


def options_as_data(options: Options, *, contents: bool = False) -> dict[str, Any]:
    """Options as JSON data, parts included; with ``contents`` the sha256 of what :class:`File` options name."""
    slots = slots_of(type(options))
    data = options.model_dump(mode="json", exclude=set(slots), by_alias=True)
    for names, (mark, value) in files_of(options).items() if contents else ():
        *outer, leaf = names.split(".")
        reduce(getitem, outer, data)[leaf] = mark.content(value)
    for name, slot in slots.items():
        value = getattr(options, name)
        if value is None:
            data[name] = None
        elif slot.many:
            data[name] = {key: options_as_data(part.options, contents=contents) for key, part in value.items()}
        else:
            data[name] = value.as_data(contents=contents)
    return data


def marked(options: type[Options]) -> dict[str, File]:
    """The options that may name a file or folder, by field name."""
    marks = ((name, mark) for name, info in options.model_fields.items() for mark in info.metadata)
    return {name: mark for name, mark in marks if isinstance(mark, File)}


def files_of(options: Options) -> dict[str, tuple[File, str]]:
    """What the options marked with :class:`File` name, those of options inside included: dotted name → mark, value."""
    marks, found = marked(type(options)), dict[str, tuple[File, str]]()
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, Options):
            found |= {f"{name}.{inner}": named for inner, named in files_of(value).items()}
        elif name in marks and value is not None:
            found[name] = (marks[name], str(value))
    return found


def load_object(path: str) -> Any:
    """Import ``package.module:Name``."""
    from importlib import import_module

    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


# ------------------------------------------------------------------ the hooks, one per kind


RESERVED = {"transform": ("prune",)}
"""Names that no plugin of a kind may have. The transform log keeps the engine's own edit tables under ``prune``."""


class StepHooks:
    """Steps of a recipe. The class at ``load`` follows :class:`Step` (and the kind's own protocol)."""

    @hookspec
    def latent(self) -> Plugin:
        """Train or wrap a VAE; see :class:`Latent`."""

    @hookspec
    def prune(self) -> Plugin:
        """Remove units of the denoiser."""

    @hookspec
    def distill(self) -> Plugin:
        """Train with roles, phases and losses; see :class:`Distiller`."""

    @hookspec
    def transform(self) -> Plugin:
        """Change the structure in any other way; see :class:`Transform`."""

    @hookspec
    def evaluate(self) -> Plugin:
        """Measure a bundle."""

    @hookspec
    def export(self) -> Plugin:
        """Write files for a device, and prove them; see :class:`Exporter`."""


class PartHooks:
    """Parts that steps are composed of."""

    @hookspec
    def model(self) -> Plugin:
        """Make and load a denoiser; see :class:`Model`."""

    @hookspec
    def text(self) -> Plugin:
        """Encode captions; see :class:`Text`."""

    @hookspec
    def data(self) -> Plugin:
        """Captioned clips; see :class:`Data`."""

    @hookspec
    def granularity(self) -> Plugin:
        """Name what can be removed; see :class:`Granularity`."""

    @hookspec
    def search(self) -> Plugin:
        """Choose which units stay; see :class:`Search`."""

    @hookspec
    def discriminator(self) -> Plugin:
        """Judge latents in adversarial distillation; see :class:`DiscriminatorPart`."""

    @hookspec
    def sampler(self) -> Plugin:
        """Turn noise into a latent; see :class:`Sampler`."""

    @hookspec
    def tracker(self) -> Plugin:
        """Record training curves; see :class:`Tracker`."""


class KindHooks:
    """How a plugin adds kinds of its own: a class like the two above, each method marked with ``hookspec``.

    Any plugin may then implement them, and any option hold such a part: ``Slot("my_kind")``.
    """

    @hookspec
    def step_kinds(self) -> type:
        """A class of hookspecs, one per new kind of step."""

    @hookspec
    def part_kinds(self) -> type:
        """A class of hookspecs, one per new kind of part."""


STEP_KINDS = tuple(name for name in vars(StepHooks) if not name.startswith("_"))
PART_KINDS = tuple(name for name in vars(PartHooks) if not name.startswith("_"))


# ------------------------------------------------------------------ protocols of steps


class Step(Protocol):
    """One entry of a recipe, constructed with its options."""

    def plan(self, spec: Spec) -> Spec:
        """What the step makes of the bundle described by ``spec``; reads no weights.

        Raises ``dit_compress.core.errors.UserError`` where the step can't work on such a bundle.
        """

    def run(self, context: Context) -> Result:
        """Do it: read ``context.input``, give a bundle, or metrics and files."""


class Latent(Step, Protocol):
    """A step that gives the bundle its codec, and loads it back from the bundle."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """An empty codec, called on the meta device. It follows :class:`Codec`."""


class Codec(Protocol):
    """What stands between pixels and latents; an ``nn.Module``.

    A codec whose videos are not of ``1 + ratio[0]·k`` frames also has ``frame_rule: (lead, step)``: they are of
    ``lead + step·k``, and ``1 + (F - lead)/ratio[0]`` latent frames. One that can teach another's decoder has
    ``features(latent) -> [stream, …]``.
    """

    ratio: tuple[int, int, int]
    channels: int

    def eval(self) -> Self:
        """``nn.Module.eval``."""

    def encode(self, video_BCFYX: Tensor) -> Tensor:
        """Video in [-1, 1] → normalised latent ``[B,C,T,H,W]`` (mean 0, std 1 over the training set)."""

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Normalised latent → video in [-1, 1], clipped by the caller; may work in tiles."""

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """The same in one piece: what exporters trace."""


class Distiller(Step, Protocol):
    """A training step. ``run`` is normally ``return dit_compress.train.distill.distill(self, context)``.

    options: of a subclass of ``dit_compress.train.options.TrainOptions``.
    """

    options: Any

    def objective(self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions) -> Objective:
        """Roles, phases and losses over the loaded models; a search calls it with a masked student."""

    def flow(self, before: Flow) -> Flow:
        """How the result is meant to be sampled."""


class Transform(Step, Protocol):
    """A change of structure, logged by name and replayed on the meta device when the bundle loads."""

    @staticmethod
    def replay(module: nn.Module, data: Mapping[str, Any]) -> None:
        """Repeat the logged change on a module without weights."""


class Exporter(Step, Protocol):
    """Files for a device. A subclass of ``dit_compress.export.ExportStep`` adds three methods to the engine's own work.

    profile: the device, as the options describe it.
    """

    profile: Profile

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        """What would break on the target, each with operator, module path, severity and mend.

        ``plan``, ``check --deep`` and ``run`` ask before any training is paid for: the component then lies on
        the meta device, without weights. They ask again before ``lower``.
        """

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        """Write the component's files into the folder. UserError where that fails."""

    def runner(self, artifact: Artifact) -> Runner:
        """Something that executes the file just as it is on disk, with its fidelity.

        ``verify`` and ``play`` ask on other machines: the module at ``load`` imports torch only where it needs it.
        """


# ------------------------------------------------------------------ protocols of parts


class Model(Protocol):
    """Makes a denoiser: the module, its config, and the adapter around it."""

    def create(self) -> nn.Module:
        """The module the options ask for: random weights, or those of the folder they name."""

    def licence(self) -> str | None:
        """Of the weights that the options name, as their folder states it; None where there are none, or nothing does.

        Optional: a recipe's own ``licence`` goes before it.
        """

    @staticmethod
    def config_of(module: nn.Module) -> dict[str, Any]:
        """JSON config from which :meth:`from_config` makes the same *unpruned* module."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """An empty module of the base class, called on the meta device."""

    @staticmethod
    def denoiser(module: nn.Module) -> Denoiser:
        """The module behind the engine's one convention."""


class Text(Protocol):
    """Makes a caption encoder."""

    trainable: bool
    """True if the encoder is trained together with the denoiser in the first ``distill`` step."""

    def create(self) -> nn.Module:
        """The encoder; it follows :class:`TextEncoder`."""

    @staticmethod
    def config_of(module: nn.Module) -> dict[str, Any]:
        """JSON config from which :meth:`from_config` makes the same encoder."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """An empty encoder, called on the meta device."""


class TextEncoder(Protocol):
    """An ``nn.Module``: captions to the tensors a denoiser takes."""

    width: int

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions → integer tensors with leading B, padded to one fixed length."""

    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens → ``embedding [B,L,D]`` and ``mask [B,L]`` (1 real, 0 padding)."""

    def save_tokenizer(self, folder: Path) -> dict[str, Any]:
        """Write what an app needs to tokenize; say its ``kind``, ``file``, ``length`` and ``padding``.

        Optional: an encoder without it, or without parameters of its own, stays on the host, and an exported package
        takes embeddings.
        """


class Data(Protocol):
    """A source of captioned clips; one of latents is an :class:`EncodedData`.

    A source with an attribute ``workers`` above 0 is streamed where a step trains on pixels: so many threads decode
    its clips as they are needed. Without it, clips are decoded once and kept.
    """

    def prepare(self, cache: Path) -> None:
        """Write what must be written once (``cache`` is content-addressed by the options)."""

    def manifest(self, cache: Path) -> Sequence[Mapping[str, Any]]:
        """One JSON record per sample: path, size, caption. Part of every step key that reads data."""

    def clips(self, cache: Path, split: Literal["train", "test"]) -> Sequence[Clip]:
        """The samples; a clip's pixels are decoded when asked for."""


class EncodedData(Data, Protocol):
    """Clips of which only the latents are there: ``pixels()`` of its clips raises."""

    def encoded(self, cache: Path, split: Literal["train", "test"], vae: str) -> Rows:
        """Latents ``[C,T,H,W]`` by index, in the order of ``clips``; UserError unless ``vae`` encoded them.

        ``vae`` is the digest of the bundle's VAE, as ``Bundle.digest("latent")`` gives it.
        """


class Granularity(Protocol):
    """Names axes of removable units out of the facts that discovery states."""

    multiple_of: int
    units: int | None
    """Into how many equal parts a learned search may cut an axis; None for its single units."""

    def axes(self, structure: Structure) -> list[Axis]:
        """Every axis of this level, as data."""

    def keep(self, axis: Axis) -> int | None:
        """How many of the axis' units the options keep; None where the options leave it to a budget."""


class Search(Protocol):
    """Chooses which units stay."""

    def search(self, problem: SearchProblem, context: Context) -> Selection:
        """Kept units for every axis of the problem, exactly ``problem.keep[axis]`` of each."""


class DiscriminatorPart(Protocol):
    """Makes a discriminator out of a frozen copy of the generator."""

    def create(self, generator: Denoiser) -> nn.Module:
        """Module ``(latent_BCTHW, sigma_B, cond) -> logits [B,S]``; its trainable parameters require grad."""


class Sampler(Protocol):
    """Turns noise into a latent."""

    def sample(
        self, denoiser: Denoiser, noise_BCTHW: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float = 1.0
    ) -> Tensor:
        """Differentiable; guidance as one doubled batch, none at 1.0."""


class Tracker(Protocol):
    """Records scalars of a training step."""

    def open(self, folder: Path, *, resume_step: int) -> None:
        """Start in the step's folder; drop what was written after ``resume_step``."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""

    def close(self) -> None:
        """Flush."""
