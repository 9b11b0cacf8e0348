"""The input's bundle with another denoiser."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.model.spec import ComponentSpec
from dit_compress.step.protocols import Transform
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.pruned import log_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress_plugins.transform_swap import SwapTransformOptions


class SwapTransform(Transform):
    """Step ``transform: {use: swap, model: …}``."""

    def __init__(self, options: SwapTransformOptions) -> None:
        self.part = options.model
        self.maker: Any = self.part.build()

    def plan(self, spec: Spec) -> Spec:
        """Describe the bundle with the other model, whose log begins anew; no weights are made."""
        with empty_weights():
            return self._with(spec, self.maker.create())

    def run(self, context: Context) -> Result:
        """Make the model and give it; the licence is the recipe's, else the model's own, else the input's."""
        module = self.maker.create()
        spec = self._with(context.spec(), module)
        return context.give({"denoiser": module}, spec=spec, licence=self.maker.licence())

    def _with(self, spec: Spec, module: nn.Module) -> Spec:
        denoiser = ComponentSpec("model", self.part.name, self.maker.config_of(module), log_of(module))
        return replace(spec, denoiser=denoiser, flow=self.maker.flow())

    @staticmethod
    def replay(module: nn.Module, data: Mapping[str, Any]) -> None:
        """Change nothing: no log names this step, since what it gives is a component of its own."""
