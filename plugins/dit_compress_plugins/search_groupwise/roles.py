"""The roles that move in a search and in its comparison, and their phase."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.train.objective import Phase, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.train.objective import Objective
    from dit_compress_plugins.search_groupwise import GroupwiseOptions

MASKS_OVER_LORA = 10
"""The masks' learning rate over that of LoRA, by default."""


def roles_of(inner: Objective, options: GroupwiseOptions) -> dict[str, Role]:
    """Return an objective's roles with student and text frozen, but for LoRA; whole on every process."""
    roles = {name: Role(role.module) if name in ("student", "text") else role for name, role in inner.roles.items()}
    if options.lora is not None:
        rate = options.lora.lr or options.lr / MASKS_OVER_LORA
        roles["student"] = Role(inner.roles["student"].module, lr=rate)
    return {name: replace(role, whole=True) for name, role in roles.items()}


def phase_of(name: str, roles: Mapping[str, Role], inner: Objective, weighed: str) -> Phase:
    """Return the one phase in which these roles move; what the objective weighs is measured at the role ``weighed``."""
    weighing = inner.phases[0].weighing
    moving = tuple(role for role, own in roles.items() if own.lr is not None)
    return Phase(name, moving, weighing=replace(weighing, role=weighed) if weighing else None)
