"""Torch-Pruning on the same classes: one head and one channel per block of the first stack, and what comes of it.

It is given what the toolkit found (the projections, which rows are the unit, which integer attributes follow),
because it finds none of these: the question is whether its graph finds everything else that must go.
"""

from __future__ import annotations

import copy
import signal
from typing import TYPE_CHECKING, Any

import judge
import torch

from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import disagreement
from dit_compress.structure.edits import SetAttribute, compile_edits

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.structure.facts import Axis, Structure
    from dit_compress.structure.record import Call


PATIENCE_S = 30
"""Processor time after which its graph counts as not built."""


def _impatient(_signal: int, _frame: object) -> None:
    raise TimeoutError


signal.signal(signal.SIGVTALRM, _impatient)


def peer(name: str, structure: Structure) -> str:
    """Return ``exact``, or why not, for a head and a channel of the first block of every stack."""
    import torch_pruning as tp

    heads = [axis for axis in judge.axes_of(structure, "head") if axis.block == 0]
    channels = [axis for axis in judge.axes_of(structure, "ffn") if axis.block == 0]
    if not heads or not channels:
        return "nothing to remove"
    for axis in (*heads, *channels):
        module, call = judge.call_of(name, torch.float32)
        kept = tuple(range(1, axis.units))
        reference = judge.reference_of(module, call, axis.level, [axis], {axis.name: kept})
        pruned = copy.deepcopy(module)
        signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE_S)
        try:
            follow = [e for e in compile_edits(pruned, [axis], {axis.name: kept}) if isinstance(e, SetAttribute)]
            if not _prune(tp, pruned, call, axis):
                return f"{axis.name}: its graph refuses"
            apply_edits(pruned, follow)
            error = disagreement(call.replay(pruned), reference)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
            return f"{axis.name}: {type(error).__name__}"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if not error <= judge.EXACT[torch.float32]:
            return f"{axis.name}: error {error:.0e}"
    return "exact"


def _prune(tp: Any, module: nn.Module, call: Call, axis: Axis) -> bool:
    """Remove the first unit's rows of every projection that still has them; the graph must find the rest."""
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    rows = [m for m in axis.members if m.dim == 0 and m.tensor.endswith("weight")]
    layers = [(module.get_submodule(m.tensor.rpartition(".")[0]), m) for m in rows]
    whole = {m.tensor: layer.weight.shape[0] for layer, m in layers}
    pruned = False
    for layer, member in layers:
        if layer.weight.shape[0] != whole[member.tensor]:
            continue
        chosen = tp.prune_linear_out_channels if isinstance(layer, torch.nn.Linear) else tp.prune_conv_out_channels
        graph = tp.DependencyGraph().build_dependency(module, example_inputs=dict(call.kwargs))
        group = graph.get_pruning_group(layer, chosen, idxs=member.indices[0].tolist())
        if graph.check_pruning_group(group):
            group.prune()
            pruned = True
    return pruned
