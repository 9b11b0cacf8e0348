"""Tiny twins of public pipelines: the same classes, random weights, folders as ``from_pretrained`` reads them.

A recipe for a public model runs on its twin in a minute, before it costs a cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import whole_folder
from dit_compress.core.progress import quiet

if TYPE_CHECKING:
    from pathlib import Path

TWINS = {
    "Wan2.1-T2V-1.3B": "WanPipeline",
    "Wan2.2-T2V-A14B": "WanPipeline",
    "Wan2.2-TI2V-5B": "WanPipeline",
    "Wan2.1-I2V-14B": "WanImageToVideoPipeline",
    "LTX-Video": "LTXPipeline",
    "LTX-2": "LTX2Pipeline",
    "CogVideoX-2b": "CogVideoXPipeline",
    "CogVideoX-5b": "CogVideoXPipeline",
    "HunyuanVideo-1.5": "HunyuanVideo15Pipeline",
    "HunyuanVideo-1.5-I2V": "HunyuanVideo15ImageToVideoPipeline",
    "SANA-Video_2B": "SanaVideoPipeline",
    "FLUX.1-dev": "FluxPipeline",
    "stable-diffusion-3.5-medium": "StableDiffusion3Pipeline",
}
"""Public models, by the names of their repositories, and the class of their pipelines."""


def write_twin(name: str, out: Path, seed: int = 0) -> str:
    """Write a pipeline folder; return the model it is the twin of.

    Args:
        name: a model of :data:`TWINS`, or a class of pipelines: its first model.
        out: the folder, not there yet.
        seed: of the random weights.

    Raises:
        UserError: no such twin, or the folder is there.
    """
    model = model_of(name)
    if out.exists():
        raise UserError("this exists already", where=str(out), mend="Name a new folder, or remove this one")
    with whole_folder(out) as partial, quiet():
        pipeline_of(model, seed).save_pretrained(partial)
    return model


def model_of(name: str) -> str:
    """Return the model that a name stands for: its own, or the class of its pipeline."""
    found = name if name in TWINS else next((model for model, kind in TWINS.items() if kind == name), None)
    if found is None:
        known = [*TWINS, *dict.fromkeys(TWINS.values())]
        raise UserError(f"no twin of {name!r}", mend=f"There are: {', '.join(known)}")
    return found


def pipeline_of(model: str, seed: int = 0) -> Any:
    """Make the pipeline of a twin."""
    import torch

    from dit_compress.model.twins.pipelines import PIPELINES

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PIPELINES[model]()
