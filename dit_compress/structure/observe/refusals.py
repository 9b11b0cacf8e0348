"""Parts of one block that no list of units accounts for: reported, so that nothing is left out in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.structure.facts import Refusal
from dit_compress.structure.observe.assemble import common_path
from dit_compress.structure.observe.blocks import is_in
from dit_compress.structure.observe.others import UNUSED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from dit_compress.structure.observe.trace import Trace
    from dit_compress.structure.observe.weightless import Replica
    from dit_compress.structure.record import Call

HINTS = ("heads", "num_heads", "num_attention_heads", "n_heads", "nheads")


def promised(block: nn.Module, known: Sequence[str], calls: Mapping[str, Call]) -> list[Refusal]:
    """Refuse attentions that the block's attributes promise and the probe did not find: a hint, reported and not used.

    known: paths of the attentions that were found, and of what was refused.
    """
    missing = []
    for path, owner in block.named_modules():
        heads = next((getattr(owner, name) for name in HINTS if isinstance(getattr(owner, name, None), int)), 1)
        inside = any(is_in(path, item) or is_in(item, path) for item in known)
        weighs = next(owner.parameters(), None) is not None
        if heads > 1 and path in calls and weighs and not inside:
            missing.append(Refusal(path, f"says it has {heads} heads, and no units were found in it"))
    return missing


def unexplained(replica: Replica, weights: Sequence[str], refused: Sequence[str]) -> list[Refusal]:
    """Refuse matmuls that read what the streams' matmuls give, and that no list of units accounts for."""
    paths = list(dict.fromkeys(common_path(replica.module, [name], ()) for name in weights))
    named = [path for path in refused if path]
    reason = "reads something that falls into no units: all of it hangs together, or it does not vanish when masked"
    return [Refusal(path, reason) for path in paths if not any(is_in(outer, path) for outer in named)]


def unused(replica: Replica, base: Trace) -> list[Refusal]:
    """Refuse matrices that the recorded call does not read: what they would do with fewer units is not known."""
    read = {touch.rows.key[0] for touch in base.touches} | base.read
    matrices = [name for name, parameter in replica.module.named_parameters() if parameter.ndim > 1]
    names = [name for name in matrices if name not in read]
    return [Refusal(common_path(replica.module, names, ()), UNUSED)] if names else []
