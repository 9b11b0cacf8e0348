"""The inputs a file is proven on: each a variation of the component's typical ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

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
