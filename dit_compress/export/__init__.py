"""Export: components and a profile in, files for a device out, proven to compute the same.

Names are imported when they are asked for: what verifies or plays a package needs no torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_compress.export.base import ExportOptions, ExportStep
    from dit_compress.export.component import Component
    from dit_compress.export.components import dit_step, text_encoder, vae_decoder
    from dit_compress.export.inspection import inspect
    from dit_compress.export.package import check_components, describe_video, export_components
    from dit_compress.export.profiles import Device, profile_named
    from dit_compress.export.step import export
    from dit_compress.export.types import Artifact, Diagnostic, Fidelity, Precision, Profile, Runner

_PUBLIC = {
    "Artifact": "types",
    "Component": "component",
    "Device": "profiles",
    "Diagnostic": "types",
    "ExportOptions": "base",
    "ExportStep": "base",
    "Fidelity": "types",
    "Precision": "types",
    "Profile": "types",
    "Runner": "types",
    "check_components": "package",
    "describe_video": "package",
    "dit_step": "components",
    "export": "step",
    "export_components": "package",
    "inspect": "inspection",
    "profile_named": "profiles",
    "text_encoder": "components",
    "vae_decoder": "components",
}

__all__ = [
    "Artifact",
    "Component",
    "Device",
    "Diagnostic",
    "ExportOptions",
    "ExportStep",
    "Fidelity",
    "Precision",
    "Profile",
    "Runner",
    "check_components",
    "describe_video",
    "dit_step",
    "export",
    "export_components",
    "inspect",
    "profile_named",
    "text_encoder",
    "vae_decoder",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dit_compress.export' has no attribute {name!r}")
    from dit_compress.plugin.options import load_object

    return load_object(f"dit_compress.export.{_PUBLIC[name]}:{name}")


class _Callable(ModuleType):
    """This package, which is also the function ``dit_compress.export``: the two have one name."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Export a module by one recorded call: see ``dit_compress.export.recorded.export``."""
        from dit_compress.export.recorded import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
