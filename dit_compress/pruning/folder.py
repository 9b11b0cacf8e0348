"""Pruned models as folders: what ``pruning.json`` says, and loading them (and bundles) as their original class.

folder/
  config.json              of the whole model, unchanged
  *.safetensors            of the pruned one; an index where there are shards
  pruning.json             the plan: base class, config and shapes, transform log, checksums
  load_pruned.py           loads the folder without this package
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress import SCHEMA, __version__
from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, sha256_data, whole_folder
from dit_compress.model.bundle import Bundle
from dit_compress.run import keys as graph
from dit_compress.structure.compact import LOG_NAME
from dit_compress.structure.edits import edits_from_data
from dit_compress.structure.files import load_pruned
from dit_compress.structure.files.disk import SHARD_BYTES
from dit_compress.structure.files.load_pruned import ATTRIBUTE, LOADER, PRUNING, read_record, remember
from dit_compress.structure.files.standalone import flat_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from dit_compress.structure.edits import Edit

_OTHER = "Use the plan with the model it was made for"


def load(
    path: str | Path, *, torch_dtype: Any = None, module: nn.Module | None = None, verify: bool = True
) -> nn.Module:
    """A pruned model as its original class, with the dtype of its file, in evaluation mode.

    path: a folder that :func:`dit_compress.prune` or ``save_pretrained`` wrote, a bundle, or a run (its last bundle).
    torch_dtype: cast to it. module: a whole model, where its class is none of diffusers'; it is cut, its weights are
    replaced. verify: compare checksums (a bundle's are compared in any case). Raises UserError.
    """
    folder = Path(path)
    if (folder / PRUNING).is_file():
        return load_pruned.load(folder, torch_dtype=torch_dtype, module=module, verify=verify)
    bundle = graph.resolve_bundle(folder)
    if not (bundle / "bundle.json").is_file():
        raise UserError(
            f"neither a pruned model ({PRUNING}), a bundle nor a run",
            where=str(folder),
            mend="Load an ordinary folder with its class's from_pretrained",
        )
    module = Bundle.open(bundle).denoiser().module
    if torch_dtype is not None:
        load_pruned.cast(module, torch_dtype)
    return module.eval()


def save(module: nn.Module, path: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a pruned module so that :func:`load` reads it: by its ``save_pretrained`` where its class has one.

    Raises UserError for a module that was not pruned here and has no ``save_pretrained``.
    """
    if hasattr(module, "save_pretrained"):
        with whole_folder(Path(path)) as folder:
            saving: Any = module
            saving.save_pretrained(folder, max_shard_size=shard_bytes)
        return
    held = getattr(module, ATTRIBUTE, None)
    if held is None:
        raise UserError(f"{type(module).__name__} was not pruned here", mend="Save its state dict yourself")
    from safetensors.torch import save_file

    seen: set[int] = set()
    state = {}
    for name, value in module.state_dict().items():
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        state[name] = value.clone() if shared else value.contiguous()
    with whole_folder(Path(path)) as folder:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        load_pruned.write_record(folder, held["record"], held["loader"])


# ------------------------------------------------------------------ the record


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Shape of every tensor of a module's state."""
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def record_of(
    class_name: str, config: Mapping[str, Any], base: Mapping[str, Sequence[int]], log: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """``pruning.json`` but for the files: of which model it is, and what was done to it.

    base: shapes before the first entry of the log.
    """
    return {
        "schema": SCHEMA,
        "toolkit": __version__,
        "class": class_name,
        "config": config_digest(config),
        "base": {name: list(shape) for name, shape in sorted(base.items())},
        "log": list(log),
        "files": {},
    }


def config_digest(config: Mapping[str, Any]) -> str:
    """Checksum of a config, whatever version of diffusers wrote it."""
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    return sha256_data(json.loads(json.dumps(own, default=str)))


def remember_log(module: nn.Module, base: Mapping[str, Sequence[int]], log: Sequence[dict[str, Any]]) -> None:
    """Let a pruned module remember how it was pruned; one of diffusers then saves itself as a pruned folder.

    A class with a ``save_pretrained`` of its own is left to it: it can state the pruned shape in its config.
    """
    from diffusers import ModelMixin

    saves = getattr(type(module), "save_pretrained", None)
    ordinary = isinstance(module, ModelMixin) and saves is ModelMixin.save_pretrained
    if log and (ordinary or saves is None) and all(entry["name"] == LOG_NAME for entry in log):
        config: Any = module.config if ordinary else {}
        record = record_of(load_pruned.class_name(module), dict(config), base, log)
        remember(module, record, flat_source("dit_compress.structure.files.load_pruned"))


def log_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """The transform log of a module that came from a pruned folder; empty for any other."""
    held = getattr(module, ATTRIBUTE, None)
    return tuple(held["record"]["log"]) if held else ()


def base_of(module: nn.Module) -> dict[str, list[int]]:
    """Shapes before the first pruning."""
    held = getattr(module, ATTRIBUTE, None)
    return held["record"]["base"] if held else shapes_of(module)


def read_log(folder: Path) -> tuple[dict[str, Any], ...]:
    """The transform log of a pruned folder or of a bundle's denoiser."""
    if (folder / PRUNING).is_file():
        return tuple(read_record(folder)["log"])
    return Bundle.open(folder).spec.need_denoiser().log


def edits_of(record: Mapping[str, Any]) -> list[Edit]:
    """Every edit of a record, in order. Raises UserError where another transform stands among them."""
    for entry in record["log"]:
        if entry["name"] != LOG_NAME:
            raise UserError(f"the transform {entry['name']!r} is no table of edits")
    return [edit for entry in record["log"] for edit in edits_from_data(entry["data"]["edits"])]


def read_plan(path: Path) -> dict[str, Any]:
    """The record of a pruned folder, or of its ``pruning.json`` alone."""
    return read_record(path if path.is_dir() else path.parent)


def check_plan(
    record: Mapping[str, Any],
    class_name: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    where: str,
) -> None:
    """UserError where a plan was made for another class, config, or for other tensors."""
    if record["class"] != class_name:
        raise UserError(f"the plan is for {record['class']}, this is {class_name!r}", where=where, mend=_OTHER)
    base = record["base"]
    for name in sorted(base.keys() | shapes.keys()):
        planned, found = base.get(name), shapes.get(name)
        if planned is None or found is None or list(planned) != list(found):
            said = "has no such tensor" if planned is None else f"says {list(planned)}"
            seen = "is missing" if found is None else f"is {list(found)}"
            raise UserError(
                f"the plan is for another model: {name!r} {seen}, the plan {said}", where=where, mend=_OTHER
            )
    if record["config"] != config_digest(config):
        raise UserError("the plan is for another config: its checksum differs", where=where, mend=_OTHER)


def write_record(folder: Path, record: Mapping[str, Any], files: Mapping[str, Any], config: Path) -> None:
    """Everything of a pruned folder but the weights; ``config`` is copied as it is."""
    shutil.copyfile(config, folder / "config.json")
    text = json.dumps({**record, "files": dict(files)}, separators=(",", ":"))
    (folder / PRUNING).write_text(text + "\n", "utf-8")
    (folder / LOADER).write_text(flat_source("dit_compress.structure.files.load_pruned"), "utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model's folder."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise UserError("no config of a diffusers model", where=str(folder / "config.json"))
    return config
