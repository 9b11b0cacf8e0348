"""The inputs that a file takes, and those it is proven on: each a variation of the component's typical ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.export import ExportedProgram

    from dit_compress.export.component import Component

TINY, HUGE = 1e-3, 300.0


def scaled(component: Component, factor: float) -> dict[str, Tensor]:
    """Return the varied inputs times a factor, the others as they are."""
    return {name: value * factor if name in component.varied else value for name, value in component.inputs.items()}


def padded(component: Component) -> dict[str, Tensor]:
    """Mask the second half of the text; return the typical inputs where there is no mask."""
    if component.mask is None:
        return dict(component.inputs)
    mask_BL = component.inputs[component.mask].clone()
    mask_BL[:, (mask_BL.shape[1] + 1) // 2 :] = 0
    return {**component.inputs, component.mask: mask_BL}


INPUT_SETS: dict[str, Callable[[Component], dict[str, Tensor]]] = {
    "typical": lambda component: dict(component.inputs),
    "zero": lambda component: scaled(component, 0.0),
    "tiny": lambda component: scaled(component, TINY),
    "huge": lambda component: scaled(component, HUGE),
    "padded": padded,
}


def input_sets(component: Component, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Return the named sets and the component's own, at each of its sizes; one that equals an earlier one is left out.

    Those of a further size are named ``<size>-<set>``.
    """
    chosen: dict[str, dict[str, Tensor]] = {}
    for size, part in component.by_size.items():
        before = f"{size}-" if size else ""
        for name, inputs in [*((name, INPUT_SETS[name](part)) for name in names), *part.more.items()]:
            if not any(_equal(inputs, earlier) for earlier in chosen.values()):
                chosen[before + name] = inputs
    return chosen


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@torch.no_grad()
def reference_outputs(component: Component, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run the source module itself, in float32. The inputs are copies: a module may write into them."""
    given = component.module(*(value.clone() for value in inputs.values()))
    several = given if isinstance(given, (tuple, list)) else (given,)
    return {name: value.detach().float() for name, value in zip(component.outputs, several, strict=True)}


# ------------------------------------------------------------------ what it does not use


class Bound(nn.Module):
    """A module with some of its inputs fixed. fixed: by name. names: all inputs, in the module's order."""

    def __init__(self, module: nn.Module, names: Sequence[str], fixed: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.names, self.fixed = module, tuple(names), dict(fixed)

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Take the others, in their order."""
        left = iter(given)
        found: Tensor | tuple[Tensor, ...] = self.module(
            *(self.fixed[name] if name in self.fixed else next(left) for name in self.names)
        )
        return found


def without_unused(component: Component) -> Component:
    """Return the component without the inputs on which its outputs don't depend; itself where it uses all, or none.

    What can't be traced is given back: ``check`` says what is wrong with it.
    """
    try:
        used = dict(zip(component.inputs, _reaching(component.program), strict=True))
    except UserError:
        return component
    left_out = tuple(name for name, own in used.items() if not own)
    if not left_out or len(left_out) == len(used):
        return component

    def taken(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in inputs.items() if used[name]}

    def named(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if used[name])

    fixed = {name: component.inputs[name] for name in left_out}
    return replace(
        component,
        module=Bound(component.module, list(component.inputs), fixed).eval(),
        inputs=taken(component.inputs),
        varied=named(component.varied),
        precise=named(component.precise),
        mask=component.mask if component.mask is not None and used[component.mask] else None,
        more={name: taken(inputs) for name, inputs in component.more.items()},
        sizes={name: taken(inputs) for name, inputs in component.sizes.items()},
        left_out=left_out,
    )


def _reaching(program: ExportedProgram) -> list[bool]:
    """Whether the result depends on each input; a check of its dtype alone is no use of it."""
    nodes = list(program.graph_module.graph.nodes)
    reached, open_ends = set(), [node for node in nodes if node.op == "output"]
    while open_ends:
        node = open_ends.pop()
        if node not in reached:
            reached.add(node)
            open_ends += node.all_input_nodes
    names = {node.name for node in reached}
    return [traced in names for traced in program.graph_signature.user_inputs]
