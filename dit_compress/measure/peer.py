"""Torch-Pruning's dependency graph beside our structure: whether what it prunes with a unit is what we state.

It needs no weights: the graph is of autograd's, traced on the meta device.
"""

from __future__ import annotations

import signal
import time
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.plugin import defaults
from dit_compress.structure.copies import meta_copy
from dit_compress.structure.files.whole import said
from dit_compress.structure.record import tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis

Verdict = Literal["agrees", "differs", "can't trace"]
Slice = tuple[str, int, frozenset[int]]
"""Entries of one matrix: its name, a dimension, the indices along it."""
PATIENCE_S = 60
"""Processor time that its graph is given, and all groups together: on some models it takes for ever."""


def compare(denoiser: Denoiser, axes: Sequence[Axis]) -> tuple[Mapping[str, Verdict], str]:
    """Return, per axis, whether the library's group of its first unit is ours; and why it built no graph, if so.

    The library is given the unit's rows of the projections; what it prunes besides must be what ours states: the same
    entries of the same matrices. Blocks it can't trace: a list of modules is no layer.
    """
    if find_spec(defaults.PEER) is None:
        raise UserError(f"the peer needs the package {defaults.PEER!r}", mend='Run pip install "dit-compress[pruning]"')
    try:
        graph = _Graph(denoiser)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
        return dict.fromkeys((axis.name for axis in axes), "can't trace"), said(error)
    return {axis.name: graph.verdict(axis) for axis in axes}, ""


class _Graph:
    """The library's graph of one call."""

    def __init__(self, denoiser: Denoiser) -> None:
        import torch_pruning

        self.library = torch_pruning
        empty = meta_copy(denoiser).requires_grad_()
        self.module = empty.module
        args, kwargs = empty.call(*empty.example(1, empty.example_size))
        self.left = float(PATIENCE_S)
        with _patience(self.left), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.graph = torch_pruning.DependencyGraph().build_dependency(
                self.module,
                example_inputs=kwargs,
                forward_fn=lambda module, _: module(*args, **kwargs),
                output_transform=tensors_in,
                verbose=False,
            )
        self.weights = {id(value): name for name, value in self.module.named_parameters()}

    def verdict(self, axis: Axis) -> Verdict:
        """Compare the first unit of an axis."""
        tensors = dict(self.module.named_parameters(remove_duplicate=False))
        ours, began = _ours(axis, tensors), time.process_time()
        try:
            with _patience(self.left):
                theirs = self.slices(axis, tensors)
        except Exception:  # noqa: BLE001 - whatever a peer raises is its answer
            return "can't trace"
        finally:
            self.left -= time.process_time() - began
        return "can't trace" if not theirs else "agrees" if theirs == ours else "differs"

    def slices(self, axis: Axis, tensors: Mapping[str, Tensor]) -> set[Slice]:
        """Return what goes with the unit's rows of every linear and convolution that the groups before don't hold."""
        found: dict[tuple[str, int], set[int]] = {}
        for member in axis.members:
            path, _, leaf = member.tensor.rpartition(".")
            rows = self.pruner(self.module.get_submodule(path))
            if leaf != "weight" or member.dim or (member.tensor, 0) in found or rows is None:
                continue
            layer = self.module.get_submodule(path)
            for dependency, places in self.graph.get_pruning_group(layer, rows, _places(member.indices[0])):
                if (place := self._place(dependency)) is not None and tensors[place[0]].ndim > 1:
                    found.setdefault(place, set()).update(places)
        return {(name, dim, frozenset(places)) for (name, dim), places in found.items()}

    def pruner(self, layer: nn.Module) -> Any:
        """Return the library's function that prunes a layer's rows; None where we ask about none of its kind."""
        if isinstance(layer, nn.Linear):
            return self.library.prune_linear_out_channels
        return self.library.prune_conv_out_channels if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else None

    def _place(self, dependency: Any) -> tuple[str, int] | None:
        """Return the tensor and dimension that a dependency prunes; None of operations without one."""
        target = dependency.target
        if isinstance(target.module, nn.Parameter):
            return self.weights[id(target.module)], target.pruning_dim % target.module.ndim
        weight = dict(target.module.named_parameters(recurse=False)).get("weight")
        if weight is None:
            return None
        return self.weights[id(weight)], 0 if self.graph.is_out_channel_pruning_fn(dependency.handler) else 1


def _ours(axis: Axis, tensors: Mapping[str, Tensor]) -> set[Slice]:
    """Return what the first unit of an axis owns of matrices."""
    held: dict[tuple[str, int], set[int]] = {}
    for member in axis.members:
        if member.tensor in tensors and tensors[member.tensor].ndim > 1:
            held.setdefault((member.tensor, member.dim), set()).update(_places(member.indices[0]))
    return {(name, dim, frozenset(places)) for (name, dim), places in held.items()}


def _places(indices: np.ndarray) -> list[int]:
    return sorted(int(index) for index in indices)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so much computing, at once where nothing is left."""

    def impatient(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"no answer in {PATIENCE_S} s")

    if seconds <= 0:
        impatient(0, None)
    before = signal.signal(signal.SIGVTALRM, impatient)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
