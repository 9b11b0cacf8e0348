"""The page for plugin authors: every kind of plugin, what it is for, and what its class must have.

A plugin is a module found through the entry-point group ``dit_compress.plugins``. It implements one hook, named
after its kind, that returns a :class:`Plugin`: a name for recipes, an options class, and where the code is. The
module imports no torch; the code at ``Plugin.load`` is imported when it is used.

    from dit_compress.hooks import Options, Plugin, hookimpl

    class RandomOptions(Options):
        seed: int = 0

    @hookimpl
    def search() -> Plugin:
        return Plugin(name="random", options=RandomOptions, load="my_package.search:RandomSearch")

What stands at ``load`` is a class; the engine calls it with the validated options. It follows the protocol of its
kind. Protocols are typed and documented where they stand, and can be imported from here.

Steps, the entries of a recipe. Each has ``plan(spec) -> Spec`` and ``run(context) -> Result`` (:class:`Step`):

    def latent() -> Plugin          Train or wrap a VAE                           Latent             step/protocols.py
    def prune() -> Plugin           Remove units of the denoiser                  Step               step/protocols.py
    def distill() -> Plugin         Train with roles, phases and losses           Distiller          train/objective.py
    def transform() -> Plugin       Change the structure in any other way         Transform          step/protocols.py
    def evaluate() -> Plugin        Measure a bundle                              Step               step/protocols.py
    def export() -> Plugin          Write files for a device, and prove them      Exporter           export/types.py

Parts, which steps are composed of:

    def model() -> Plugin           Make and load a denoiser                      Model              model/protocols.py
    def text() -> Plugin            Encode captions                               Text               model/protocols.py
    def data() -> Plugin            Give captioned clips                          Data               data/source.py
    def granularity() -> Plugin     Name what can be removed                      Granularity        structure/facts.py
    def search() -> Plugin          Choose which units stay                       Search             search/problem.py
    def discriminator() -> Plugin   Judge latents in adversarial distillation     DiscriminatorPart  train/objective.py
    def sampler() -> Plugin         Turn noise into a latent                      Sampler            model/protocols.py
    def tracker() -> Plugin         Record training curves                        Tracker            step/protocols.py

Kinds of one's own; any plugin may then implement them, and any option hold such a part, ``Slot("my_kind")``:

    def step_kinds() -> type        Add kinds of steps: a class of hookspecs      KindHooks          plugin/kinds.py
    def part_kinds() -> type        Add kinds of parts: a class of hookspecs      KindHooks          plugin/kinds.py

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens, D width, L text length.
Video is ``[B,3,F,Y,X]`` in [-1, 1] with F = 1 + ratio[0]·(T-1) frames (see :class:`Codec`) of Y × X pixels.
"""

from __future__ import annotations

from dit_compress.data.source import Data, EncodedData
from dit_compress.export.types import Exporter
from dit_compress.model.protocols import Codec, Model, Sampler, Text, TextEncoder
from dit_compress.plugin.kinds import KindHooks, hookimpl, hookspec
from dit_compress.plugin.options import File, Options, Part, PartField, Plugin, Slot
from dit_compress.search.problem import Search
from dit_compress.step.protocols import Latent, Step, Tracker, Transform
from dit_compress.structure.facts import Granularity
from dit_compress.train.objective import DiscriminatorPart, Distiller, Objective

__all__ = [
    "Codec",
    "Data",
    "DiscriminatorPart",
    "Distiller",
    "EncodedData",
    "Exporter",
    "File",
    "Granularity",
    "KindHooks",
    "Latent",
    "Model",
    "Objective",
    "Options",
    "Part",
    "PartField",
    "Plugin",
    "Sampler",
    "Search",
    "Slot",
    "Step",
    "Text",
    "TextEncoder",
    "Tracker",
    "Transform",
    "hookimpl",
    "hookspec",
]
