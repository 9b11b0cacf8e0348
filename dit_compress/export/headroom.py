"""The distance of every operator of a component from the end of half precision.

Half precision ends at 65504. Headroom is 65504 / max|value|: under 1 an operator overflows. The figures
are those of the traced program in float32 on the proof's own inputs; sums inside an operator are not seen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_compress.export.inspection import module_path, operator_name
from dit_compress.export.sizes import input_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.fx import Node

    from dit_compress.export.component import Component

HALF_MAX = 65504.0
NUM_SHOWN = 10


@dataclass(frozen=True)
class Headroom:
    """The largest value of one operator. headroom: 65504 / max_abs."""

    operator: str
    path: str
    input_set: str
    max_abs: float
    headroom: float

    def as_data(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


class _Watcher(torch.fx.Interpreter):
    """Runs the graph and keeps the largest |value| of every node."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.largest: dict[Node, float] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            self.largest[n] = float(result.detach().abs().amax())
        return result


def headroom(component: Component, input_sets: Mapping[str, Mapping[str, Tensor]]) -> list[Headroom]:
    """Return one entry per operator and module, the worst input set of each, the least headroom first."""
    traced = [(input_shapes(part.inputs), part.program.module()) for part in component.by_size.values()]
    worst: dict[tuple[str, str], Headroom] = {}
    for name, inputs in input_sets.items():
        watcher = _Watcher(next(module for shapes, module in traced if shapes == input_shapes(inputs)))
        with torch.no_grad():
            watcher.run(*inputs.values())
        for node, largest in watcher.largest.items():
            found = Headroom(
                operator_name(node), module_path(node), name, largest, HALF_MAX / largest if largest else HALF_MAX
            )
            key = (found.operator, found.path)
            if key not in worst or found.headroom < worst[key].headroom:
                worst[key] = found
    return sorted(worst.values(), key=lambda each: each.headroom)


def shown(found: Sequence[Headroom]) -> list[dict[str, Any]]:
    """Return the operators nearest to the end, as the manifest holds them."""
    return [each.as_data() for each in found[:NUM_SHOWN]]
