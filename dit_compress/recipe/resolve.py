"""From a document to a recipe: the top of it, its steps, their names and what each reads."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.limits import MAX_NAME_BYTES, MAX_SEED
from dit_compress.core.pipeline import is_pipeline, open_pipeline
from dit_compress.plugin import defaults
from dit_compress.plugin.registry import closest
from dit_compress.recipe import document as yaml_document
from dit_compress.recipe.inputs import Draft, Inputs, as_path, is_folder
from dit_compress.recipe.messages import show, unknown_key
from dit_compress.recipe.model import BASE, PARTIAL, Recipe, StepEntry
from dit_compress.recipe.validate import Checker

if TYPE_CHECKING:
    from dit_compress.plugin.options import Part
    from dit_compress.plugin.registry import Registry
    from dit_compress.recipe.document import Document, Place

TOP_KEYS = ("name", "seed", "licence", "model", "data", "text", "sampler", "trackers", "steps")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_NAME_MEND = "Use letters, digits, '_', '-' and '.'"


def resolve(document: Document, registry: Registry) -> Recipe:
    """Make a recipe of a document; raise one UserError with all that is wrong."""
    checker = Checker(document, registry)
    data = document.data
    for key in data:
        if key not in TOP_KEYS:
            checker.fault((key,), *unknown_key(key, list(TOP_KEYS), "the recipe"))
    name, seed, licence = _name(checker), _seed(checker), _licence(checker)
    model, source = _model(checker)
    whole = _whole_pipeline(data.get("model"))
    shared = {kind: checker.part(kind, data[kind], (kind,)) for kind in ("data", "text", "sampler") if kind in data}
    trackers = _trackers(checker)
    drafts = _drafts(checker)
    if whole is not None:
        _take_parts(checker, whole, shared, drafts)
    _give_names(checker, drafts)
    first = source if source is not None else BASE if "model" in data else None
    Inputs(checker, drafts, first).resolve()
    checker.finish()
    steps = tuple(
        StepEntry(draft.kind, draft.part, draft.name, draft.inputs, document.line(draft.place))
        for draft in drafts
        if draft.kind and draft.part and draft.name
    )
    return Recipe(
        name=name, seed=seed, licence=licence, model=model, source=source, trackers=trackers, steps=steps,
        path=document.path, **shared,
    )  # fmt: skip


def dump(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML, every default written out."""
    return yaml_document.dump(recipe.as_data())


# ------------------------------------------------------------------ the top of a recipe


def _name(checker: Checker) -> str:
    name = checker.document.data.get("name", Path(checker.document.path).stem)
    if fault := _name_fault(name):
        checker.fault(("name",), f"{show(name)} can't name a folder", fault)
    return str(name)


def _name_fault(name: Any) -> str:
    """Return the mend where a name can't be that of a folder."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        return _NAME_MEND
    return f"Shorten it to {MAX_NAME_BYTES} letters" if len(name.encode()) > MAX_NAME_BYTES else ""


def _seed(checker: Checker) -> int:
    seed = checker.document.data.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        checker.fault(("seed",), f"expected a whole number from 0 for 'seed', got {show(seed)}", "Write 0")
        return 0
    if seed > MAX_SEED:
        checker.fault(("seed",), f"expected a number of at most {MAX_SEED} for 'seed', got {show(seed)}", "Lower it")
        return 0
    return seed


def _licence(checker: Checker) -> str | None:
    licence = checker.document.data.get("licence")
    if "licence" in checker.document.data and not (isinstance(licence, str) and licence.strip()):
        checker.fault(("licence",), f"expected the name of a licence, got {show(licence)}", "Write it: Apache-2.0")
        return None
    return licence


def _model(checker: Checker) -> tuple[Part | None, str | None]:
    """Return the model's part, or the bundle that ``from`` names."""
    value = checker.document.data.get("model")
    if not (isinstance(value, dict) and "from" in value):
        return (checker.part("model", value, ("model",)) if "model" in checker.document.data else None), None
    path = value["from"]
    for key in [key for key in value if key != "from"]:
        checker.fault(("model", key), f"{key!r} beside 'from'", "Name a plugin ('use') or a folder ('from'), not both")
    if not isinstance(path, str) or not is_folder(path):
        checker.fault(
            ("model", "from"), f"there is no folder {show(path)}", "Give a bundle, a run or a diffusers folder"
        )
        return None, None
    if _is_diffusers(Path(path)):
        return checker.part("model", {"use": defaults.MODEL, "path": path}, ("model",)), None
    return None, as_path(path)


def _whole_pipeline(value: Any) -> Path | None:
    """Return the pipeline's folder that ``from`` names."""
    path = value.get("from") if isinstance(value, dict) else None
    found = isinstance(path, str) and is_folder(path) and _is_diffusers(Path(path)) and is_pipeline(Path(path))
    return Path(path) if found and path else None


def _take_parts(checker: Checker, folder: Path, shared: dict[Any, Part | None], drafts: list[Draft]) -> None:
    """Take the text encoders and the VAE of a pipeline, too, where the recipe names no others."""
    try:
        pipeline = open_pipeline(folder)
    except UserError:  # the model's own part says it
        return
    text, vae = ({"use": name, "path": str(folder)} for name in (defaults.TEXT, defaults.VAE))
    if "text" not in shared and "text_encoder" in pipeline.parts and checker.plugin("text", text):
        shared["text"] = checker.part("text", text, ("model",))
    others = any(draft.kind == "latent" for draft in drafts)
    if "vae" in pipeline.parts and not others and checker.plugin("latent", vae):
        part = checker.part("latent", vae, ("model",))
        drafts.insert(0, Draft(("model",), "latent", defaults.VAE, part=part))


def _is_diffusers(path: Path) -> bool:
    """Tell whether a folder holds a diffusers model or pipeline, and neither a bundle nor a run."""
    ours, theirs = ("bundle.json", "run.json"), ("config.json", "model_index.json")
    return not any((path / name).is_file() for name in ours) and any((path / name).is_file() for name in theirs)


def _trackers(checker: Checker) -> tuple[Part, ...]:
    value = checker.document.data.get("trackers", [])
    if not isinstance(value, list):
        part = checker.part("tracker", value, ("trackers",))
        return (part,) if part else ()
    parts = [checker.part("tracker", item, ("trackers", index)) for index, item in enumerate(value)]
    return tuple(part for part in parts if part is not None)


# ------------------------------------------------------------------ steps


def _drafts(checker: Checker) -> list[Draft]:
    if "steps" not in checker.document.data:
        checker.fault((), "the recipe needs 'steps'", "Add 'steps:' with a list")
        return []
    value = checker.document.data["steps"]
    if not isinstance(value, list) or not value:
        checker.fault(("steps",), f"expected a list of steps, got {show(value)}", "Begin each step with '- '")
        return []
    return [_draft(checker, item, ("steps", index)) for index, item in enumerate(value)]


def _draft(checker: Checker, item: Any, place: Place) -> Draft:
    step_kinds = checker.registry.step_kinds
    if not isinstance(item, dict):
        checker.fault(
            place, f"expected a step, got {show(item)}", f"Write '- KIND: ...' with one of: {', '.join(step_kinds)}"
        )
        return Draft(place)
    kinds = [key for key in item if key in step_kinds]
    parts = [checker.part(kind, item[kind], (*place, kind)) for kind in kinds]
    rest = {key: value for key, value in item.items() if key not in kinds}
    if len(kinds) != 1:
        _fault_of_kinds(checker, kinds, rest, place)
        return Draft(place, given=rest)
    plugin = checker.plugin(kinds[0], item[kinds[0]])
    if plugin is None:
        return Draft(place, kinds[0], given=rest)
    known = ["name", "input", *plugin.slots]
    for key in [key for key in rest if key not in known]:
        what, mend = unknown_key(key, known, f"step {kinds[0]} {plugin.name!r}")
        if key in plugin.options.model_fields:
            mend = f"It is an option: indent it under '{kinds[0]}:'"
        checker.fault((*place, key), what, mend)
    return Draft(place, kinds[0], plugin.name, plugin.slots, parts[0], given=rest)


def _fault_of_kinds(checker: Checker, kinds: list[str], rest: dict[str, Any], place: Place) -> None:
    if kinds:
        checker.fault(
            (*place, kinds[1]), f"two kinds in one step: {kinds[0]!r} and {kinds[1]!r}", "Begin a new step with '- '"
        )
        return
    known = checker.registry.step_kinds
    for key in rest:
        if guess := closest(key, known):
            checker.fault((*place, key), f"unknown kind of step {key!r}", f"Did you mean {guess!r}?")
            return
    found = f" (found {', '.join(map(repr, rest))})" if rest else ""
    checker.fault(place, f"the step has no kind{found}", f"Use one of: {', '.join(known)}")


def _give_names(checker: Checker, drafts: list[Draft]) -> None:
    """Name the steps as given; otherwise by the plugin's name, made unique by a number."""
    taken: dict[str, Draft] = {}
    for draft in drafts:
        if "name" not in draft.given:
            continue
        name, place = draft.given["name"], (*draft.place, "name")
        if fault := _name_fault(name):
            checker.fault(place, f"{show(name)} can't name a step", fault)
        elif name.endswith(PARTIAL):
            checker.fault(
                place, f"{name!r} can't name a step: folders of unfinished steps are named so", "Choose another name"
            )
        elif name == BASE:
            checker.fault(place, f"{BASE!r} is the name of what 'model:' gives", "Choose another name")
        elif name in taken:
            line = checker.document.line(taken[name].place)
            checker.fault(place, f"two steps are named {name!r}, the first on line {line}", "Choose another name")
        else:
            draft.name = name
            taken[name] = draft
    counts: Counter[str] = Counter()
    for draft in drafts:
        if "name" not in draft.given and draft.plugin_name:
            name = draft.plugin_name
            counts[name] += 1
            draft.name = name if counts[name] == 1 else f"{name}-{counts[name]}"
            while draft.name in taken or draft.name == BASE:
                counts[name] += 1
                draft.name = f"{name}-{counts[name]}"
            taken[draft.name] = draft
