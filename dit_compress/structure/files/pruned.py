"""``pruning.json``: what was done to a model, of which model it is."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_data
from dit_compress.core.version import SCHEMA, __version__
from dit_compress.structure.files import load_pruned
from dit_compress.structure.files.digest import digest_of
from dit_compress.structure.files.load_pruned import ATTRIBUTE, LOADER, PRUNING, read_record, remember
from dit_compress.structure.files.standalone import flat_source
from dit_compress.structure.files.tensor_files import open_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

_OTHER = "Use the plan with the model it was made for"


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Return the shape of every tensor of a module's state."""
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def record_of(
    class_name: str,
    config: Mapping[str, Any],
    base: Mapping[str, Sequence[int]],
    log: Sequence[dict[str, Any]],
    weights: str | None = None,
) -> dict[str, Any]:
    """Return ``pruning.json`` but for the files: of which model it is, and what was done to it.

    base, weights: shapes, and digest of the weights, before the first entry of the log.
    """
    return {
        "schema": SCHEMA,
        "toolkit": __version__,
        "class": class_name,
        "config": config_digest(config),
        "base": {name: list(shape) for name, shape in sorted(base.items())},
        "log": list(log),
        "files": {},
    } | ({} if weights is None else {"weights": weights})


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the checksum of a config, whatever version of diffusers wrote it."""
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    return sha256_data(json.loads(json.dumps(own, default=str)))


def remember_log(module: nn.Module, base: Mapping[str, Sequence[int]], log: Sequence[dict[str, Any]]) -> None:
    """Let a pruned module remember how it was pruned, whatever its class; it then saves itself as a pruned folder."""
    if log:
        config = getattr(module, "config", {}) if hasattr(type(module), "from_config") else {}
        record = record_of(load_pruned.class_name(module), dict(config), base, log)
        remember(module, record, flat_source("dit_compress.structure.files.load_pruned"))


def log_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Return the transform log of a module that came from a pruned folder; empty for any other."""
    held = getattr(module, ATTRIBUTE, None)
    return tuple(held["record"]["log"]) if held else ()


def base_of(module: nn.Module) -> dict[str, list[int]]:
    """Return the shapes before the first pruning."""
    held = getattr(module, ATTRIBUTE, None)
    return held["record"]["base"] if held else shapes_of(module)


def made_for(folder: Path) -> str:
    """Return the digest of the weights of a whole model; of one that is pruned already, of the whole one's."""
    written = read_record(folder).get("weights") if (folder / PRUNING).is_file() else None
    return written or digest_of(open_weights(folder))


def read_plan(path: Path) -> dict[str, Any]:
    """Read the record of a pruned folder, or of its ``pruning.json`` alone."""
    return read_record(path if path.is_dir() else path.parent)


def check_plan(
    record: Mapping[str, Any],
    class_name: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    where: str,
) -> None:
    """Raise a UserError where a plan was made for another class, config, or for other tensors."""
    if record["class"] != class_name:
        raise UserError(f"the plan is for {record['class']}, this is {class_name!r}", where=where, mend=_OTHER)
    base = record["base"]
    for name in sorted(base.keys() | shapes.keys()):
        planned, found = base.get(name), shapes.get(name)
        if planned is None or found is None or list(planned) != list(found):
            recorded = "has no such tensor" if planned is None else f"says {list(planned)}"
            seen = "is missing" if found is None else f"is {list(found)}"
            raise UserError(
                f"the plan is for another model: {name!r} {seen}, the plan {recorded}", where=where, mend=_OTHER
            )
    if record["config"] != config_digest(config):
        raise UserError("the plan is for another config: its checksum differs", where=where, mend=_OTHER)


def write_record(folder: Path, record: Mapping[str, Any], files: Mapping[str, Any], config: Path) -> None:
    """Write everything of a pruned folder but the weights; ``config`` is copied as it is."""
    shutil.copyfile(config, folder / "config.json")
    text = json.dumps({**record, "files": dict(files)}, separators=(",", ":"))
    (folder / PRUNING).write_text(text + "\n", "utf-8")
    (folder / LOADER).write_text(flat_source("dit_compress.structure.files.load_pruned"), "utf-8")
