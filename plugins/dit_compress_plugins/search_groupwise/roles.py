"""What moves beside the masks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.train.objective import Role

if TYPE_CHECKING:
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
