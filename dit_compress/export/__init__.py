"""Export: components and a profile in, files for a device out, proven to compute the same."""

from dit_compress.export.components import dit_step, vae_decoder
from dit_compress.export.package import check_components, describe_video, export_components
from dit_compress.export.step import export
from dit_compress.export.trace import inspect, trace
from dit_compress.export.types import Artifact, Component, Diagnostic, Fidelity, Precision, Profile, Runner

__all__ = [
    "Artifact",
    "Component",
    "Diagnostic",
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
    "trace",
    "vae_decoder",
]
