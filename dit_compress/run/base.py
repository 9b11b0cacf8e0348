"""The first step of a recipe that names a model: its bundle has what the recipe says, with random or given weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.model.bundle import COMPONENTS
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.pruned import log_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dit_compress.model.flow import Flow
    from dit_compress.plugin.options import Part
    from dit_compress.step.context import Context, Result


class BaseStep:
    """Denoiser and text encoder. ``parts``: the recipe's, by kind."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.makers = {kind: (part.name, part.build()) for kind, part in parts.items()}

    def plan(self, spec: Spec) -> Spec:
        """Describe the components; no weights are made."""
        with empty_weights():
            return replace(spec, flow=self.flow(), **self._create()[1])

    def run(self, context: Context) -> Result:
        """Make the components and give them. The licence is the recipe's, else the model's own."""
        modules, specs = self._create()
        _, model = self.makers["model"]
        return context.give(modules, spec=Spec(video=context.video, flow=self.flow(), **specs), licence=model.licence())

    def flow(self) -> Flow:
        """Return how the model is sampled before it is trained here."""
        return self.makers["model"][1].flow()

    def _create(self) -> tuple[dict[str, nn.Module], dict[str, Any]]:
        """Return modules by component, and what a bundle says of each."""
        modules: dict[str, nn.Module] = {}
        specs: dict[str, Any] = {}
        for component, kind in COMPONENTS.items():
            if kind in self.makers:
                name, maker = self.makers[kind]
                modules[component] = module = maker.create()
                specs[component] = ComponentSpec(kind, name, maker.config_of(module), log_of(module))
        return modules, specs
