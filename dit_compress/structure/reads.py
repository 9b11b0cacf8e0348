"""The tensors of a module that a call reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class _Reading(TorchFunctionMode):
    """Note which of some tensors are given to any function of torch."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.found = names, set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function as it is."""
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and id(leaf) in self.names:
                self.found.add(self.names[id(leaf)])
        return func(*args, **(kwargs or {}))


def tensors_read(module: nn.Module, run: Callable[[], Any]) -> set[str]:
    """Return the names of the parameters and buffers of ``module`` that are read while ``run`` runs."""
    names = {id(value): name for name, value in (*module.named_parameters(), *module.named_buffers())}
    with _Reading(names) as reading:
        run()
    return reading.found
