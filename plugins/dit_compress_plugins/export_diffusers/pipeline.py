"""A whole pipeline around a bundle: its own parts written, the others those of the folder it came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers

from dit_compress.core.errors import UserError
from dit_compress.core.files import link_file, link_tree
from dit_compress.core.pipeline import DENOISERS, INDEX, SCHEDULER, Pipeline, open_pipeline, scheduler_config
from dit_compress.model.licence import CARD
from dit_compress.structure.files.load_pruned import LOADER, PIPELINE_CLASS, PRUNING
from dit_compress_plugins.export_diffusers import flow_of_noise
from dit_compress_plugins.export_diffusers.scheduler import scheduler_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from dit_compress.model.bundle import Bundle
    from dit_compress.model.spec import Spec


def base_of(spec: Spec, option: str | None) -> Pipeline | None:
    """Return the pipeline that a bundle goes into: the one that is named, else the one that its model came from.

    Raises UserError where the folder is not whole, or the bundle's parts can't be in it; None where there is none.
    """
    named = option or (spec.need_denoiser().config.get("convention") or {}).get("pipeline")
    if named is None:
        return None
    found = open_pipeline(Path(named))
    found.check()
    _check_parts(spec, found)
    _scheduler(spec, found)
    return found


def _scheduler(spec: Spec, base: Pipeline) -> Any:
    """Make the scheduler of a bundle in a pipeline."""
    known = spec.need_denoiser().config.get("convention") or {}
    return scheduler_of(spec.flow, class_of(base), scheduler_config(base.folder), known.get("prediction", "velocity"))


def class_of(base: Pipeline) -> Any:
    """Return the class of a pipeline; nothing but a class of diffusers."""
    found = getattr(diffusers, base.class_name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise UserError(
            f"diffusers {diffusers.__version__} has no pipeline {base.class_name[:80]!r}",
            where=str(base.folder / INDEX),
            mend="Upgrade diffusers, or leave 'pipeline' out",
        )
    return found


def _check_parts(spec: Spec, base: Pipeline) -> None:
    """Raise a UserError where the bundle has something that the pipeline has no place for."""
    where, denoiser, part = str(base.folder), spec.need_denoiser(), part_of(spec, base)
    kind, place = denoiser.config.get("class_name"), base.parts.get(part)
    if place is None or (kind != place[1] and not base.folder.joinpath(part, LOADER).is_file()):
        theirs = place[1] if place else "none"
        raise UserError(
            f"the bundle's model is a {kind or denoiser.plugin}, and {base.class_name} takes {theirs}",
            where=where,
            mend="Name the pipeline that the model came from",
        )
    if spec.latent is not None:
        ours, theirs = spec.latent.config.get("class_name"), base.parts.get("vae", ("", "none"))[1]
        if ours != theirs:
            raise UserError(
                f"the bundle's VAE is {ours or spec.latent.plugin}, and {base.class_name} takes {theirs}",
                where=where,
                mend="Leave 'pipeline' out: parts are written alone, for code of your own",
            )
    if spec.text is not None and hasattr(spec.text.outline, "save_pretrained"):
        raise UserError(
            f"the bundle's text encoder is {spec.text.plugin}, which {base.class_name} does not know",
            where=where,
            mend="Name the pipeline's own encoders: text: {use: transformers, path: FOLDER}",
        )
    replace(spec.flow, between=None).need_euler()


def part_of(spec: Spec, base: Pipeline | None) -> str:
    """Return the name of a bundle's denoiser in a pipeline: of two experts the one that it came from."""
    known = spec.need_denoiser().config.get("convention") or {}
    return known.get("part", DENOISERS[0]) if base is not None else DENOISERS[0]


def check_experts(one: Bundle, other: Bundle, base: Pipeline | None) -> None:
    """Raise a UserError unless two bundles are the experts of one pipeline, sampled at the same sigmas."""
    where, parts = str(other.path), [part_of(each.spec, base) for each in (one, other)]
    if base is None or sorted(parts) != sorted(DENOISERS):
        raise UserError(
            f"'other' is the second expert of a pipeline; these are {' and '.join(parts)}",
            where=where,
            mend=f"Make it from the same folder with model: {{…, part: {DENOISERS[1]}}}",
        )
    _check_parts(other.spec, base)
    ours, theirs = one.flow.sigmas(), other.flow.sigmas()
    if ours != theirs:
        raise UserError(
            f"the experts are sampled at other sigmas: {one.flow.num_steps} steps at shift {one.flow.shift:g}, "
            f"and {other.flow.num_steps} at {other.flow.shift:g}",
            where=where,
            mend="Train both with one 'sampling_steps' and one shift",
        )


def write_pipeline(folder: Path, base: Pipeline, bundle: Bundle, own: Collection[str]) -> None:
    """Write what the bundle's own parts lack around them: the other parts, scheduler, index, licence, card."""
    index = dict(base.index)
    for name in base.parts:
        if name not in own and name != SCHEDULER:
            link_tree(base.folder / name, folder / name)
        if (folder / name / PRUNING).is_file():
            index[name] = [Path(LOADER).stem, PIPELINE_CLASS]
        elif name in own:
            index[name] = ["diffusers", base_class(folder / name)]
    scheduler = _scheduler(bundle.spec, base)
    scheduler.save_pretrained(folder / SCHEDULER)
    index[SCHEDULER] = ["diffusers", type(scheduler).__name__]
    if not type(scheduler).__module__.startswith("diffusers."):
        source = Path(flow_of_noise.__file__)
        link_file(source, folder / SCHEDULER / source.name)
        index[SCHEDULER][0] = source.stem
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    for file in base.terms():
        link_file(file, folder / file.name)
    (folder / CARD).write_text(card(index, bundle), "utf-8")


def _brings_code(value: Any) -> bool:
    """Tell whether a part of an index is made by a file beside it."""
    return isinstance(value, list) and value[0] in (Path(LOADER).stem, Path(flow_of_noise.__file__).stem)


def base_class(folder: Path) -> str:
    """Return the class that a part's config names."""
    return json.loads((folder / "config.json").read_text("utf-8"))["_class_name"]


def card(index: dict[str, Any], bundle: Bundle) -> str:
    """Return a model card that says the licence, and how the pipeline is opened and sampled."""
    flow, front = bundle.flow, "library_name: diffusers"
    name, _, link = (bundle.data.get("licence") or "").rstrip(")").partition(" (")
    if name:
        front += f"\nlicense: other\nlicense_name: {name}\nlicense_link: {link}" if link else f"\nlicense: {name}"
    code = sorted(f"`{name}/{value[0]}.py`" for name, value in index.items() if _brings_code(value))
    given = ", trust_remote_code=True" if code else ""
    why = f"No class of diffusers states this model: {' and '.join(code)} makes it. Read it first.\n\n" if code else ""
    return (
        f"---\n{front}\n---\n\n{why}```python\npipeline = diffusers.DiffusionPipeline.from_pretrained(FOLDER{given})\n"
        f'pipeline(prompt="…", num_inference_steps={flow.num_steps}, guidance_scale={flow.guidance:g})\n```\n'
    )
