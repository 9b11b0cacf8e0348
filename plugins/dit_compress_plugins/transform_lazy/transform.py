"""Gates on the modules of a denoiser: logged, replayed, and without effect until a lazy sampler asks them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.progress import say
from dit_compress.model.skipping import Gating, add_gate, gated_modules
from dit_compress_plugins.transform_lazy.places import Places, places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress_plugins.transform_lazy import LazyTransformOptions

NAME, REVISION = "lazy", 1
MOST_NAMED = 3


class LazyTransform:
    """Step ``transform: {use: lazy}``."""

    def __init__(self, options: LazyTransformOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the same model with gates, and the schedule that they are for."""
        flow = self.flow(spec.flow)
        entry, left = self.entry(spec.build_denoiser().to("meta"), flow)
        note = f"{len(entry['data']['gates'])} modules get gates for {flow.num_steps} steps{_named(left)}"
        denoiser = spec.need_denoiser().appended(entry)
        return replace(spec, denoiser=denoiser, flow=flow, notes=(*spec.notes, note))

    def run(self, context: Context) -> Result:
        """Insert gates of zero weights and log them."""
        denoiser, flow = context.input.denoiser(), self.flow(context.input.flow)
        entry, left = self.entry(denoiser, flow)
        self.replay(denoiser.module, entry["data"])
        gates = entry["data"]["gates"]
        say(f"{len(gates)} modules have gates now{_named(left)}")
        metrics: dict[str, Any] = {"gates": len(gates), "gated_calls": len(gates) * flow.num_steps}
        metrics |= {"left_alone": [f"{path}: {why}" for path, why in left.items()]} if left else {}
        return context.give({"denoiser": denoiser.module}, log=[entry], flow=flow, metrics=metrics)

    def flow(self, before: Flow) -> Flow:
        """Return the schedule of the gates."""
        options = self.options
        return replace(
            before,
            num_steps=options.num_steps or before.num_steps,
            guidance=before.guidance if options.guidance is None else options.guidance,
        )

    def entry(self, denoiser: Denoiser, flow: Flow) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what the transform log keeps, and by path why modules are left; UserError where none gets a gate."""
        if gated_modules(denoiser.module):
            raise UserError("the denoiser has gates already", mend="Take the second 'transform: lazy' out")
        found = self.places(denoiser)
        if not found.gates:
            raise UserError(
                f"no attention or FFN of {type(denoiser.module).__name__} can have a gate{_named(found.left)}",
                mend="Call each as a module inside its block, from tokens [B,S,D] to tokens",
            )
        gates = [{"module": path, "argument": key, "width": width} for path, (key, width) in found.gates.items()]
        data = {"sigmas": list(flow.sigmas()), "pool": self.options.pool, "gates": gates}
        return {"name": NAME, "revision": REVISION, "data": data}, found.left

    def places(self, denoiser: Denoiser) -> Places:
        """Return the modules of the kinds that are asked for."""
        structure = denoiser.structure()
        kinds = {"attention": structure.attentions, "ffn": structure.feed_forwards}
        return places(denoiser, [part for name in self.options.modules for part in kinds[name]])

    @staticmethod
    def replay(module: nn.Module, data: Mapping[str, Any]) -> None:
        """Insert the gates; works on the meta device."""
        for gate in data["gates"]:
            gating = Gating(tuple(data["sigmas"]), gate["argument"], data["pool"])
            add_gate(module.get_submodule(gate["module"]), gate["width"], gating)


def _named(left: Mapping[str, str]) -> str:
    """Show ``; left alone: blocks.0.attn (one call of the model calls it 2 times) and 3 more``."""
    if not left:
        return ""
    shown = ", ".join(f"{path} ({why})" for path, why in list(left.items())[:MOST_NAMED])
    return f"; left alone: {shown}" + (f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else "")
