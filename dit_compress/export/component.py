"""One network of a package, and what is made of it: its program, its halves, its sizes. Imports no torch.

Shapes: whatever the example inputs have (and those of the further sizes); they are fixed in the exported files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.export.types import Rewrites

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from dit_compress.export.types import Precision, Profile

OWN = ""
"""Name of the size that a component's ``inputs`` have."""


@dataclass(frozen=True, eq=False)
class Component:
    """One network of the package, with typical inputs; it makes each of its derived forms once.

    name: ``text_encoder``, ``dit_step`` or ``dit_walk``, ``vae_decoder``; the stem of its files.
    module: takes the inputs in their order, returns a tensor (or a tuple of them).
    inputs: typical example inputs by name; their shapes are the shapes of the file.
    outputs: names of what the module returns.
    varied: inputs that the proof sets to zero or scales; the others (sigma, masks) keep typical values.
    precise: inputs whose path up to the first matrix product stays in float32. The sinusoids of
        ``1000·sigma`` need it: half precision moves the angle by up to a quarter of a radian.
    mask: the input that is 1 at real text and 0 at padding, for the padded input set.
    more: further input sets by name, each complete: other captions, say, where nothing can be scaled.
    sizes: typical inputs of other shapes that the file takes too, by name (``video_9x64x96``), each complete.
    num_weights: values of its parameters and buffers, where the module is a stand-in with fewer.
    rewrites: what its trace gets beyond what all get; the engine sets it from the profile.
    left_out: inputs that the module was found not to use (``without_unused``); they are constants of the file.
    steps: how often one call uses the weights. A file of several can't be cut into parts with fewer weights each.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    varied: tuple[str, ...]
    precise: tuple[str, ...] = ()
    mask: str | None = None
    more: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    num_weights: int | None = None
    sizes: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    rewrites: Rewrites = field(default_factory=Rewrites)
    left_out: tuple[str, ...] = ()
    steps: int = 1

    @cached_property
    def program(self) -> ExportedProgram:
        """Modules rewritten, traced with fixed shapes, decomposed, graph rewritten: what ``check`` saw, ``lower`` gets.

        Works on the meta device.

        Raises:
            UserError: ``torch.export`` can't follow the module, for instance where control flow depends on values.
        """
        from dit_compress.export.tracing import trace

        return trace(self.name, self.module, self.inputs, self.rewrites)

    def in_precision(self, precision: Precision) -> Component:
        """Return the component itself for float32, one with a half-precision copy of its module for float16."""
        return self._halved if precision == "float16" else self

    @cached_property
    def _halved(self) -> Component:
        from dit_compress.export.half import halved

        return replace(self, module=halved(self.module, tuple(name in self.precise for name in self.inputs)))

    @property
    def by_size(self) -> dict[str, Component]:
        """A component of one size for each; its own, named ``""``, comes first."""
        return {OWN: self, **self._further}

    @cached_property
    def _further(self) -> dict[str, Component]:
        return {name: replace(self, inputs=inputs, more={}, sizes={}) for name, inputs in self.sizes.items()}

    def with_sizes(self, latents: Mapping[str, Tensor]) -> Component:
        """Return the component with further latents ``[1,C,T,H,W]``, its first input; all others as they are."""
        first = next(iter(self.inputs))
        return replace(self, sizes={name: {**self.inputs, first: latent} for name, latent in latents.items()})

    def fitted(self, profile: Profile) -> Component:
        """Return the component with the rewrites that the profile asks for; itself where nothing would change.

        An untraceable component is given back: ``check`` says what is wrong with it.
        """
        from dit_compress.export.rewrite import would_change

        asked = profile.rewrites
        if self.rewrites == asked:
            return self
        if asked not in self._fitted:
            try:
                if not would_change(self.program, asked):
                    return self
            except UserError:
                return self
            self._fitted[asked] = self._asking(asked)
        return self._fitted[asked]

    @cached_property
    def _fitted(self) -> dict[Rewrites, Component]:
        return {}

    def _asking(self, rewrites: Rewrites) -> Component:
        """Return the component with these rewrites: its traced program is copied and rewritten, never traced again."""
        from dit_compress.export.rewrite import rewrite_for
        from dit_compress.export.tracing import copied

        asked = replace(self, rewrites=rewrites)
        vars(asked)["program"] = program = copied(self.program)
        rewrite_for(program, rewrites)
        return asked
