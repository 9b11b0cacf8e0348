"""The kinds of plugin, one hook each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable

    from dit_compress.plugin.options import Plugin


PROJECT = "dit_compress"

GROUP = "dit_compress.plugins"

NOTED = "__dit_compress_hooks__"
"""The attribute in which a module notes its hooks."""

hookspec = pluggy.HookspecMarker(PROJECT)

_mark = pluggy.HookimplMarker(PROJECT)


def hookimpl(function: Callable[[], Any]) -> Callable[[], Any]:
    """Mark a function that implements the hook of its name.

    It is noted in its module too: importing ``search.py`` beside the hook ``search`` puts that module in
    the function's place, and a later discovery in the same process must still find the hook.
    """
    function.__globals__.setdefault(NOTED, {})[function.__name__] = function
    return _mark(function)


RESERVED = {"transform": ("prune",)}
"""Names that no plugin of a kind may have. The transform log keeps the engine's own edit tables under ``prune``."""


class StepHooks:
    """Steps of a recipe. The class at ``load`` follows :class:`Step`, and the kind's own protocol."""

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
        """Give captioned clips; see :class:`Data`."""

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
    """Hooks by which a plugin adds kinds: a class like the two above, each method marked with ``hookspec``.

    Any plugin may then implement them, and any option hold such a part: ``Slot("my_kind")``.
    """

    @hookspec
    def step_kinds(self) -> type:
        """Add kinds of step: a class of hookspecs."""

    @hookspec
    def part_kinds(self) -> type:
        """Add kinds of part: a class of hookspecs."""


STEP_KINDS = tuple(name for name in vars(StepHooks) if not name.startswith("_"))

PART_KINDS = tuple(name for name in vars(PartHooks) if not name.startswith("_"))
