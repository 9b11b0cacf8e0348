"""``y = block(x) + gate·(block(x) - x)``: with a gate of zero the block is what it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_stranger.transform_gate import GateOptions

NAME, REVISION = "gate", 1


class GateTransform:
    """Step ``transform: {use: gate}``."""

    def __init__(self, options: GateOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """The same model with one more entry in its log."""
        entry = self.entry(spec.build_denoiser().to("meta"))
        return replace(spec, denoiser=spec.need_denoiser().appended(entry))

    def run(self, context: Context) -> Result:
        """Insert the gates and log it."""
        denoiser = context.input.denoiser()
        entry = self.entry(denoiser)
        self.replay(denoiser.module, entry["data"])
        return context.give({"denoiser": denoiser.module}, log=[entry])

    def entry(self, denoiser: Denoiser) -> dict[str, Any]:
        """What the transform log keeps."""
        stack = denoiser.structure().main
        data = {"stack": stack.path, "stream": stack.stream, "output": stack.output, "width": self.options.width}
        return {"name": NAME, "revision": REVISION, "data": data}

    @staticmethod
    def replay(module: nn.Module, data: Mapping[str, Any]) -> None:
        """Insert the gates; works on the meta device."""
        for block in module.get_submodule(data["stack"]):
            block.register_parameter("stranger_gate", nn.Parameter(torch.zeros(data["width"])))
            block.stranger_place = (data["stream"], data["output"])
            block.register_forward_hook(gated, with_kwargs=True)


def gated(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """The hook of every block."""
    stream, output = block.stranger_place
    before = args[stream] if isinstance(stream, int) else kwargs[stream]
    after = result if output is None else result[output]
    mixed = after + block.stranger_gate.mean() * (after - before)
    return mixed if output is None else (*result[:output], mixed, *result[output + 1 :])
