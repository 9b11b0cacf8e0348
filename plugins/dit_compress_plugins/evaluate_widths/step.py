"""Another evaluation, at each of a model's nested widths, beside what the width costs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.model.figures import describe
from dit_compress.step.context import Result
from dit_compress.step.protocols import Step
from dit_compress.structure.nesting import need_nesting

if TYPE_CHECKING:
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_widths import WidthsOptions

COSTS = ("params", "flops")


class WidthsEvaluation(Step):
    """Step ``evaluate: {use: widths, of: {use: …}}``."""

    def __init__(self, options: WidthsOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Check that the model has these widths, and that each can be evaluated."""
        if needs := self.options.of.options.needs:
            what = f"the evaluation {self.options.of.name!r} needs a bundle as its {needs[0]!r}, and has none here"
            raise UserError(what, mend="Cut one width out by 'prune: {use: nested, take: 0.5}' and evaluate that")
        step = self.options.of.build()
        for width in self.widths(spec):
            step.plan(spec.narrowed(width))
        return spec

    def run(self, context: Context) -> Result:
        """Evaluate the model at each width."""
        found: dict[str, dict[str, Any]] = {}
        files: dict[str, str] = {}
        for width in self.widths(context.spec()):
            name = f"{width:g}"
            folder, bundle = context.folder / f"width-{name}", context.input.narrowed(width)
            folder.mkdir(exist_ok=True)
            inside = replace(context, folder=folder, bundles={**context.bundles, "input": bundle})
            result = self.options.of.build().run(inside)
            costs = describe(replace(bundle.spec, video=context.video or bundle.spec.video))
            found[name] = {**{key: costs[key] for key in COSTS if key in costs}, **result.metrics}
            files |= {f"{key}-{name}": f"{folder.name}/{path}" for key, path in result.files.items()}
        plugin = self.options.of.plugin
        named = {"metric": plugin.headline or plugin.quality, "quality": plugin.quality}
        return Result(metrics={**named, "widths": found}, files=files)

    def widths(self, spec: Spec) -> tuple[float, ...]:
        """Return the widths to look at."""
        return tuple(self.options.widths or need_nesting(spec.need_denoiser().log).widths)
