"""Modules and conventions from folders, classes and bundle configs."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import diffusers
import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.core.pipeline import DENOISERS, Pipeline, is_pipeline, open_pipeline, scheduler_config
from dit_compress.core.schema import faults
from dit_compress.model.flow import Flow
from dit_compress.model.record import FlowSettings
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files import load_pruned
from dit_compress.structure.files.load_pruned import PRUNING
from dit_compress.structure.files.original import from_original
from dit_compress.structure.files.whole import load_whole, made, own_config, read_config, said
from dit_compress_plugins.model_diffusers.convention import Convention, observe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dit_compress_plugins.model_diffusers import DiffusersOptions

ATTRIBUTE = "dit_compress_convention"
FLOW = "flow.json"
"""What a pipeline that was exported here holds of its bundle's flow."""


def load_module(options: DiffusersOptions) -> nn.Module:
    """Load the module of the options from local files only, and never a pickle; no weights where none are asked for.

    None are where ``empty_weights`` puts new parameters on the meta device.
    """
    if options.weights is not None:
        return _original(options, Path(options.weights))
    if options.class_name is not None:
        return _strictly_made(options.class_name, options.config or {})
    folder = _component(options)
    if (folder / PRUNING).is_file():
        planning = next(nn.Linear(1, 1).parameters()).is_meta
        return load_pruned.load(folder, torch_dtype=torch.float32, verify=not planning)
    return load_whole(folder)


def _original(options: DiffusersOptions, file: Path) -> nn.Module:
    """Make the module of the options with the weights of a single file."""
    if not file.is_file():
        raise UserError("no such file", where=str(file), mend="Give a safetensors file of the original repository")
    planning = next(nn.Linear(1, 1).parameters()).is_meta
    with empty_weights():
        if options.class_name is not None:
            module = _strictly_made(options.class_name, options.config or {})
        else:
            config = read_config(_component(options))
            module = made_of(config["_class_name"], config)
    if not planning:
        module.load_state_dict(from_original(module, file), strict=True, assign=True)
    return module.eval()


def _strictly_made(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """Make a module of what a recipe says, where a key that the class does not know is a mistake."""
    known = own_config(load_pruned.class_named(class_name, "Check 'class_name'"), config)
    if unknown := sorted(config.keys() - known.keys()):
        raise UserError(f"{class_name} takes no {unknown[0]!r}", mend="Remove it from 'config'")
    return made_of(class_name, config)


def made_of(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """Make a module of a class of diffusers from its config."""
    return made(load_pruned.class_named(class_name, "Check 'class_name'"), config, f"the config of {class_name}")


def convention(options: DiffusersOptions) -> Convention:
    """Return what the options state; else what the pipeline's scheduler states; else a flow model."""
    pipeline = pipeline_of(options)
    scheduler = options.scheduler or _stated(options)
    inverted = bool(scheduler.get("invert_sigmas", False))
    stated = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}.get(scheduler.get("prediction_type", "epsilon"))
    if _flows(scheduler):
        stated = "reversed" if inverted else "velocity"
    prediction = options.prediction or stated
    if prediction is None:
        raise UserError(f"the scheduler predicts {scheduler.get('prediction_type')!r}", mend="Say 'prediction'")
    preserving = prediction in ("noise", "x0", "v")
    if preserving and not scheduler:
        raise UserError(
            f"the prediction {prediction!r} needs the noise levels that the model was trained on",
            mend="Give 'scheduler' (its config, with _class_name), or the folder of the whole pipeline",
        )
    return Convention(
        prediction=prediction,
        reversed_time=inverted if options.reversed_time is None else options.reversed_time,
        timestep_scale=options.timestep_scale,
        layout=options.layout,
        scheduler=dict(scheduler) if preserving else None,
        rope_scale=options.rope_scale,
        pipeline=str(pipeline.folder) if pipeline else None,
        part=options.part,
        guidance=_guidance(options) if options.guidance is None else options.guidance,
        first_scale=_first_scale(options),
    )


def _flows(scheduler: Mapping[str, Any]) -> bool:
    """Tell whether a scheduler is that of a flow model; none is."""
    return "FlowMatch" in scheduler.get("_class_name", "FlowMatch") or bool(scheduler.get("use_flow_sigmas", False))


def flow(options: DiffusersOptions) -> Flow:
    """Return the flow of a pipeline's scheduler: its shift, where that is one number for every size of video.

    And the sigmas that a model is for, where it is one of two experts.
    """
    pipeline = pipeline_of(options)
    between = _between(pipeline.boundary, options.part) if pipeline else None
    written = Path(options.path or "") / FLOW
    if pipeline and written.is_file():
        return replace(_written(written), between=between)
    known = _stated(options)
    shift = known.get("flow_shift", known.get("shift"))
    if not known or not _flows(known) or known.get("use_dynamic_shifting"):
        shift = None
    found = Flow(between=between)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or shift <= 0:
        return found
    return replace(found, shift=float(shift))


def _written(file: Path) -> Flow:
    """Read the flow that ``export: diffusers`` wrote beside the scheduler, which may have another shift for it."""
    data = read_json(file)
    if not isinstance(data, dict) or (fault := next(iter(faults(FlowSettings, data)), None)) is not None:
        what = fault if isinstance(data, dict) else "no settings"
        raise UserError(f"not the flow of a bundle: {what}", where=str(file), mend="Export the pipeline again")
    return Flow.from_data(data)


def _between(boundary: float | None, part: str) -> tuple[float, float] | None:
    """Return the sigmas of one of two experts; None where there is one model."""
    if boundary is None:
        return None
    return (boundary, 1.0) if part == DENOISERS[0] else (0.0, boundary)


def _stated(options: DiffusersOptions) -> dict[str, Any]:
    """Return the config of the scheduler beside the model; empty where there is none."""
    return {} if options.path is None else scheduler_config(Path(options.path))


def pipeline_of(options: DiffusersOptions) -> Pipeline | None:
    """Open the pipeline that the options name; None where they name a model's own folder, or none.

    Raises UserError where the folder is not whole, or has another pipeline's parts.
    """
    if options.path is None or not is_pipeline(Path(options.path)):
        return None
    found = open_pipeline(Path(options.path))
    found.check()
    return found


def _guidance(options: DiffusersOptions) -> float | None:
    """Return the guidance that the folder's pipeline has when not asked for another; None where there is none."""
    name = _config(options, "model_index.json").get("_class_name")
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    asked = inspect.signature(kind.__call__).parameters if isinstance(kind, type) else {}
    usual = asked["guidance_scale"].default if "guidance_scale" in asked else None
    return float(usual) if isinstance(usual, int | float) else None


def _first_scale(options: DiffusersOptions) -> float:
    """Return the factor from normalised latents to those of a first frame; CogVideoX 1.5 has one."""
    config = _config(options, "vae/config.json")
    return 1 / float(config["scaling_factor"]) ** 2 if config.get("invert_scale_latents") else 1.0


def _config(options: DiffusersOptions, name: str) -> Mapping[str, Any]:
    """Read a config of the options' folder; empty where there is none."""
    file = Path(options.path or "") / name
    found = read_json(file) if options.path and file.is_file() else {}
    return found if isinstance(found, dict) else {}


def alphas_cumprod(noise_levels: Mapping[str, Any] | None) -> Tensor:
    """Return the alpha-bar ``[N]`` of a scheduler's config."""
    config = {"_class_name": "DDPMScheduler", **(noise_levels or {})}
    name, mend = config["_class_name"], "Give a DDPM, DDIM or DPM scheduler"
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise UserError(f"diffusers {diffusers.__version__} has no scheduler {name!r}", mend=mend)
    try:
        scheduler = cast("Any", kind).from_config(config)
    except Exception as error:
        raise UserError(f"{name} can't be made of this config: {said(error)}", mend="Correct 'scheduler'") from error
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(f"{name} has no alphas_cumprod", mend=mend)
    return scheduler.alphas_cumprod


def attach(module: nn.Module, known: Convention) -> None:
    """Note the convention on the module, so that copies carry it."""
    setattr(module, ATTRIBUTE, known)


def of(module: nn.Module) -> Convention:
    """Return the convention of a module; observe it where nobody noted it."""
    if not hasattr(module, ATTRIBUTE):
        attach(module, observe(module, Convention()))
    return getattr(module, ATTRIBUTE)


def convention_from_data(data: Mapping[str, Any]) -> Convention:
    """Read the convention of a bundle's config."""
    return Convention(**{**data, "rope_scale": tuple(data["rope_scale"])})


def as_json(value: Any) -> Any:
    """Turn tuples into lists, mappings into dicts."""
    return json.loads(json.dumps(value))


def _component(options: DiffusersOptions) -> Path:
    """Return the model's folder in a pipeline, or the folder itself."""
    folder, name = Path(options.path or ""), options.part
    for found in (folder / name, *([folder] if name == DENOISERS[0] else [])):
        if (found / "config.json").is_file():
            return found
    raise UserError(f"{folder} has no config.json", mend=f"Give the folder of a model, or a pipeline with {name}/")
