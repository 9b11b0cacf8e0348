"""The page for plugin authors: every kind of plugin, what it is for, and what its class must have.

A plugin is a module found through the entry-point group ``dit_compress.plugins``, or given by ``--plugin file.py``.
It implements one hook, named after its kind, that returns a :class:`Plugin`: a name for recipes, an options class,
and where the code is. The module imports no torch; the code at ``Plugin.load`` is imported when it is used.

    from dit_compress.hooks import Options, Plugin, hookimpl

    class LastOptions(Options):
        seed: int = 0

    @hookimpl
    def search() -> Plugin:
        return Plugin(name="last", options=LastOptions, load="my_package.last:LastSearch")

    class LastSearch(Search):  # in my_package/last.py
        def __init__(self, options: LastOptions) -> None: ...
        def search(self, problem: SearchProblem, context: Workplace) -> Selection: ...

What stands at ``load`` is a class; the engine calls it with the validated options. It follows the protocol of its
kind: below each hook stand the members it must have, and those that the protocol has a default for. Subclass the
protocol: what is left out is then the default. Everything named on this page can be imported from here; the files are
in ``dit_compress/``. ``docs/plugins/<kind>.md`` has every signature with a whole example, ``dit-compress new <kind>``
writes a package that works, and ``dit_compress.testing`` holds the tests that such a plugin must pass.

Steps, the entries of a recipe:

    def latent() -> Plugin          Train or wrap a VAE                           Latent             step/protocols.py
        plan, run, from_config
    def prune() -> Plugin           Remove units of the denoiser                  Step               step/protocols.py
        plan, run
    def distill() -> Plugin         Train with roles, phases and losses           Distiller          train/objective.py
        plan, run, options, objective, flow; by default: misfits, finish, num_parameters, calls
    def transform() -> Plugin       Change the structure in any other way         Transform          step/protocols.py
        plan, run, replay
    def evaluate() -> Plugin        Measure a bundle                              Step               step/protocols.py
        plan, run
    def export() -> Plugin          Write files for a device, and prove them      Exporter           export/contract.py
        plan, run, profile, sizes, check, lower, runner; by default: widths

Parts, which steps are composed of:

    def model() -> Plugin           Make and load a denoiser                      Model              model/protocols.py
        create, config_of, from_config, denoiser; by default: licence, flow
    def text() -> Plugin            Encode captions                               Text               model/protocols.py
        create, config_of, from_config; by default: trainable, follow
    def data() -> Plugin            Give captioned clips                          Data               data/source.py
        prepare, manifest, clips; by default: workers, place, encoded, firsts
    def granularity() -> Plugin     Name what can be removed                      Granularity        structure/facts.py
        multiple_of, num_parts, axes, keep; by default: width
    def search() -> Plugin          Choose which units stay                       Search             search/problem.py
        search; by default: check
    def discriminator() -> Plugin   Judge latents in adversarial distillation     DiscriminatorPart  train/objective.py
        create
    def sampler() -> Plugin         Turn noise into a latent                      Sampler            model/protocols.py
        sample; by default: fixed
    def tracker() -> Plugin         Record training curves                        Tracker            step/protocols.py
        open, log, close; by default: picture

What some of them make follows a protocol, too; codecs and text encoders are an ``nn.Module`` besides:

    Codec                           What stands between pixels and latents                           model/protocols.py
        ratio, channels, eval, encode, decode, forward; by default: decodes, frame_rule, takes_first, features
    FirstFrameCodec                 A codec whose decoder also takes the first frame, where known    model/protocols.py
        ratio, channels, eval, encode, decode, forward; by default: decodes, frame_rule, takes_first, features
    TextEncoder                     Turn captions into the tensors a denoiser takes                  model/protocols.py
        width, tokenize, forward; by default: tokenizer_kind, embeddings, sees, num_tokens, save_tokenizer, keep_tokens,
        take_tokens, encode_image, digest, release
    Objective                       Roles, phases, and one loss per phase                            train/objective.py
        roles, phases, loss
    Runner                          Executes one artifact just as it is on disk                      export/types.py
        fidelity, arithmetics, __call__

Kinds of one's own; any plugin may then implement them, and any option hold such a part, ``Slot("my_kind")``:

    def step_kinds() -> type        Add kinds of step: a class of hookspecs       KindHooks          plugin/kinds.py
    def part_kinds() -> type        Add kinds of part: a class of hookspecs       KindHooks          plugin/kinds.py

What a plugin meets:

    UserError       What went wrong, where, and the mend: for mistakes of users             core/errors.py
    Spec            A bundle before its weights exist: what ``plan`` takes and gives        model/spec.py
    ComponentSpec   One component of it: plugin, config, transform log                      model/spec.py
    Bundle          Denoiser, VAE, text encoder and flow, on disk                           model/bundle.py
    Context         What a step is given: bundles, clips, latents, folder, seed, world      step/context.py
    Workplace       The same of a call without a recipe: folder, seed, world                step/workplace.py
    Result          What it gives: a bundle, metrics, files                                 step/context.py
    World           The processes that train together                                       step/world.py
    Denoiser        Any DiT behind one convention: (latent, sigma, cond) -> velocity        model/denoiser.py
    Cond            What captions became, and its null for guidance                         model/denoiser.py
    Captions        The text encoder as training sees it                                    model/text.py
    Flow            How a bundle is sampled: shift, steps, guidance                         model/flow.py
    Fixed           What a sampler says that an export can trace whole                      model/flow.py
    Scene           What a sampler that asks for it knows of its videos                     model/scene.py
    Clip            A captioned clip whose pixels are decoded when asked for                data/clips.py
    Samples         Clips or latents by index, with captions or embeddings                  data/samples.py
    Rows            Tensors by index, which a data source may have stored                   data/buckets.py
    Streams         Random numbers by (seed, step, sample, stream)                          core/randomness.py
    Structure       What observation found: stacks, attentions, feed-forwards, refusals     structure/facts.py
    Axis            Units that can be removed, with every slice that goes with one          structure/facts.py
    SearchProblem   Denoiser, axes, and how many units of each stay                         search/problem.py
    Selection       The units that stay, and how they were found                            search/problem.py
    VideoOptions    Frames, size, fps, first frame: base of a data source's options         plugin/options.py
    BucketOptions   The same, for clips that can be of several sizes                        plugin/options.py
    TrainOptions    Steps, batch, rates: base of a training step's options                  train/options.py
    DistillOptions  The same, with validation and watch                                     train/options.py
    DistillStep     The engine's own work around a distiller's objective                   train/base.py
    Role            A module with a part in training, and its rate                          train/objective.py
    Phase           One update: which roles move, by which loss                             train/objective.py
    Weighing        Terms of a loss whose gradients are measured, to weigh them             train/objective.py
    Batch           Samples, captions, and their streams                                    train/objective.py
    ExportOptions   Precision, device, widths, sampler: base of an exporter's options       export/base.py
    ExportStep      The engine's own work around an exporter's three methods                export/base.py
    Component       One network of a package, with typical inputs                           export/component.py
    Profile         A device, as far as an exporter must know it                            export/types.py
    Diagnostic      What will break on the target, with the mend                            export/types.py
    Artifact        A written file, and its arithmetic                                      export/types.py

Options subclass :class:`Options`: the schema of the recipe's entry. :class:`Slot` marks an option that holds another
part, :class:`File` one that names a file, :class:`Keyed` one that does not always count in a step's key.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens, D width, L text length.
Video is ``[B,3,F,Y,X]`` in [-1, 1] with F = 1 + ratio[0]·(T-1) frames (see :class:`Codec`) of Y × X pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.data.source import Data
from dit_compress.export.contract import Exporter
from dit_compress.export.types import Runner
from dit_compress.model.protocols import Codec, FirstFrameCodec, Model, Sampler, Text, TextEncoder
from dit_compress.plugin.kinds import KindHooks, hookimpl, hookspec
from dit_compress.plugin.options import File, Keyed, Options, Part, PartField, Plugin, Slot, load_object
from dit_compress.search.problem import Search
from dit_compress.step.protocols import Latent, Step, Tracker, Transform
from dit_compress.structure.facts import Granularity
from dit_compress.train.objective import DiscriminatorPart, Distiller, Objective

if TYPE_CHECKING:
    from dit_compress.core.errors import UserError
    from dit_compress.core.randomness import Streams
    from dit_compress.data.buckets import Rows
    from dit_compress.data.clips import Clip
    from dit_compress.data.samples import Samples
    from dit_compress.export.base import ExportOptions, ExportStep
    from dit_compress.export.component import Component
    from dit_compress.export.types import Artifact, Diagnostic, Profile
    from dit_compress.model.bundle import Bundle
    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Fixed, Flow
    from dit_compress.model.scene import Scene
    from dit_compress.model.spec import ComponentSpec, Spec
    from dit_compress.model.text import Captions
    from dit_compress.plugin.options import BucketOptions, VideoOptions
    from dit_compress.search.problem import SearchProblem, Selection
    from dit_compress.step.context import Context, Result
    from dit_compress.step.workplace import Workplace
    from dit_compress.step.world import World
    from dit_compress.structure.facts import Axis, Structure
    from dit_compress.train.base import DistillStep
    from dit_compress.train.objective import Batch, Phase, Role, Weighing
    from dit_compress.train.options import DistillOptions, TrainOptions

_MODULES = {
    "core.errors": ("UserError",), "core.randomness": ("Streams",), "data.buckets": ("Rows",), "data.clips": ("Clip",),
    "data.samples": ("Samples",), "export.base": ("ExportOptions", "ExportStep"), "export.component": ("Component",),
    "export.types": ("Artifact", "Diagnostic", "Profile"), "model.bundle": ("Bundle",),
    "model.denoiser": ("Cond", "Denoiser"), "model.flow": ("Fixed", "Flow"), "model.scene": ("Scene",),
    "model.spec": ("ComponentSpec", "Spec"), "model.text": ("Captions",),
    "plugin.options": ("BucketOptions", "VideoOptions"),
    "search.problem": ("SearchProblem", "Selection"), "step.context": ("Context", "Result"),
    "step.workplace": ("Workplace",), "step.world": ("World",), "structure.facts": ("Axis", "Structure"),
    "train.base": ("DistillStep",), "train.objective": ("Batch", "Phase", "Role", "Weighing"),
    "train.options": ("DistillOptions", "TrainOptions"),
}  # fmt: skip
MET = {name: module for module, names in _MODULES.items() for name in names}
"""The module of each name that a plugin meets, imported when it is asked for: some need torch."""

__all__ = [
    "Artifact", "Axis", "Batch", "BucketOptions", "Bundle", "Captions", "Clip", "Codec", "Component", "ComponentSpec",
    "Cond", "Context", "Data", "Denoiser", "Diagnostic", "DiscriminatorPart", "DistillOptions", "DistillStep",
    "Distiller", "ExportOptions", "ExportStep", "Exporter", "File", "FirstFrameCodec", "Fixed", "Flow", "Granularity",
    "Keyed", "KindHooks", "Latent", "Model", "Objective", "Options", "Part", "PartField", "Phase", "Plugin", "Profile",
    "Result", "Role", "Rows", "Runner", "Sampler", "Samples", "Scene", "Search", "SearchProblem", "Selection", "Slot",
    "Spec", "Step", "Streams", "Structure", "Text", "TextEncoder", "Tracker", "TrainOptions", "Transform", "UserError",
    "VideoOptions", "Weighing", "Workplace", "World", "hookimpl", "hookspec",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in MET:
        raise AttributeError(f"module 'dit_compress.hooks' has no attribute {name!r}")
    return load_object(f"dit_compress.{MET[name]}:{name}")
