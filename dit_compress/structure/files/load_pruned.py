"""Load a pruned model of diffusers as its original class, cut to the shapes of its weights.

    from load_pruned import load

    pipeline = LTXPipeline.from_pretrained("LTX-Video", transformer=load("pruned"))

In a whole pipeline's folder ``model_index.json`` names :class:`PrunedModel`, and ``from_pretrained(…,
trust_remote_code=True)`` does this itself. A pruned folder has ``config.json`` (that of the whole model: its class
can't express what was removed), safetensors, and ``pruning.json`` with the edits. This file lies beside them and needs
torch, safetensors and diffusers only.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.core.files import check_file, file_record, read_json
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.edits import edits_from_data
from dit_compress.structure.empty import empty_weights

PRUNING = "pruning.json"
LOADER = "load_pruned.py"
ATTRIBUTE = "dit_compress_pruning"
"""The attribute with a module's record and the text of this file; ``save_pretrained`` writes both."""
_SAYS = {"schema": int, "class": str, "config": str, "base": dict, "log": list, "files": dict}
"""What a record says, and as what."""
_COPY_AGAIN = "Copy the folder again"
PIPELINE_CLASS = "PrunedModel"
"""The class of this file that a pipeline's index names."""
READS = 1
"""The newest schema of ``pruning.json`` that is understood."""


def load(
    folder: str | Path,
    *,
    torch_dtype: torch.dtype | None = None,
    cls: Any = None,
    module: nn.Module | None = None,
    verify: bool = True,
) -> nn.Module:
    """Load the model of a pruned folder, in evaluation mode; ``save_pretrained`` writes such a folder again.

    Without weights where ``empty_weights`` is at work.

    torch_dtype: None keeps the dtype of the file. cls: the class, where it is none of diffusers'. module: a whole
    model of a class that no config describes; it is cut, and its weights replaced. verify: compare checksums (sizes
    are compared in any case). Raises UserError where the folder is not whole, or of another model.
    """
    folder = Path(folder)
    record = read_record(folder)
    for name, written in record["files"].items():
        check_file(folder / name, written, _COPY_AGAIN, contents=verify)
    edits = edits_of(record, str(folder / PRUNING))
    state = _read_state([folder / name for name in record["files"]])
    empty = next(nn.Linear(1, 1).parameters()).is_meta
    with empty_weights():
        module = _made(folder, record, cls) if module is None else _given(module, record, folder)
        if _shapes(module.state_dict()) != _shapes(state):  # a class may state the pruned shape in its config
            _cut(module, edits, str(folder / PRUNING))
    if empty:
        state |= {name: state[name].to("meta") for name, _ in module.named_parameters() if name in state}
    _fill(module, state, folder)
    if torch_dtype is not None:
        cast(module, torch_dtype)
    loader = folder / LOADER
    remember(module, record, loader.read_text("utf-8") if loader.is_file() else "")
    return module.eval()


class PrunedModel(nn.Module):
    """What ``model_index.json`` of a pipeline names: diffusers then loads the folder through this file."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **_: Any) -> nn.Module:
        """Load the model, of its original class: what diffusers' options say of devices is left to the pipeline."""
        return load(folder, torch_dtype=torch_dtype)


def read_record(folder: Path) -> dict[str, Any]:
    """Read ``pruning.json``; it must be complete and of a known schema."""
    record, where = read_json(folder / PRUNING), str(folder / PRUNING)
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in _SAYS.items()):
        raise UserError("not a whole record of a pruning", where=where, mend=_COPY_AGAIN)
    for name, written in record["files"].items():
        if not isinstance(written, dict) or not {"bytes", "sha256"} <= written.keys() or Path(name).name != name:
            raise UserError(f"not the record of a file: {name[:80]!r}", where=where, mend=_COPY_AGAIN)
    if record["schema"] > READS:
        raise UserError(
            f"written with schema {record['schema']}, read up to {READS}", where=where, mend="Upgrade dit-compress"
        )
    return record


def edits_of(record: dict[str, Any], where: str = "") -> list[Any]:
    """Return every edit of a record, in order.

    Raises:
        UserError: a plugin's transform stands among them, or an entry is none of ours.
    """
    try:
        names = [entry["name"] for entry in record["log"]]
        other = next((name for name in names if name != "prune"), None)
        if other is None:
            return [edit for entry in record["log"] for edit in edits_from_data(entry["data"]["edits"])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a whole plan: {type(error).__name__}: {error}", where=where, mend=_COPY_AGAIN) from error
    raise UserError(
        f"the transform {other!r} needs its plugin, and a pruned folder loads without any",
        where=where,
        mend="Keep the model as a bundle, which dit_compress.load opens",
    )


def remember(module: nn.Module, record: dict[str, Any], loader: str) -> None:
    """Note in the module how it was pruned; its ``save_pretrained`` then writes a pruned folder."""
    setattr(module, ATTRIBUTE, {"record": record, "loader": loader})
    if hasattr(type(module), "save_pretrained"):
        setattr(module, "save_pretrained", MethodType(save, module))  # noqa: B010 - no attribute of nn.Module's


def save(module: Any, save_directory: str | Path, **options: Any) -> None:
    """Write the weights of a pruned module, and what it takes to load them again (in the place of ``save_pretrained``).

    A class of diffusers with a ``save_pretrained`` of its own that states the pruned shape is left to it.
    """
    folder = Path(save_directory)
    files = write_weights(module, folder, **options)
    if not _stated(module, folder):
        write_record(folder, module, files)


def write_weights(module: Any, folder: Path, **options: Any) -> list[Path]:
    """Write a pruned module's weights; give their files.

    A class of diffusers saves itself, with ``options``. Any other's ``save_pretrained`` is not asked: its
    ``from_pretrained`` would take such a folder for a whole model's and fill what is missing with random weights.
    """
    if not options.get("safe_serialization", True) or options.get("push_to_hub"):
        name = "push_to_hub" if options.get("push_to_hub") else "safe_serialization"
        raise UserError("a pruned model is saved as safetensors, in a folder", mend=f"Leave {name!r} out")
    edits_of(getattr(module, ATTRIBUTE)["record"])
    if not hasattr(type(module), "from_config"):
        name = "pruned" if hasattr(type(module), "from_pretrained") else "model"
        return [_write_state(options.get("state_dict") or module.state_dict(), folder / f"{name}.safetensors")]
    try:
        type(module).save_pretrained(module, folder, **options)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"its save_pretrained fails: {error}",
            where=type(module).__name__,
            mend="Let its config hold numbers, words, lists and dicts alone",
        ) from error
    return weight_files(folder)


def _write_state(state: dict[str, torch.Tensor], file: Path) -> Path:
    from safetensors.torch import save_file

    seen: set[int] = set()
    own = {}
    for name, value in state.items():
        place = value.untyped_storage().data_ptr()
        own[name] = value.clone() if place in seen else value.contiguous()
        seen.add(place)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(own, file, metadata={"format": "pt"})
    return file


def _stated(module: Any, folder: Path) -> bool:
    """Tell whether a class that overrides diffusers' ``save_pretrained`` wrote a config of the module's own shape."""
    kind = type(module)
    if not hasattr(kind, "from_config") or kind.save_pretrained.__module__.startswith("diffusers."):
        return False
    with empty_weights():
        made = kind.from_config(read_json(folder / "config.json"))
    return _shapes(made.state_dict()) == _shapes(module.state_dict())


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def write_record(folder: Path, module: nn.Module, files: list[Path]) -> None:
    """Write ``pruning.json`` beside a module's weights that are written, and the text of this file."""
    held = getattr(module, ATTRIBUTE)
    record = {**held["record"], "files": {item.name: file_record(item) for item in files}}
    (folder / PRUNING).write_text(json.dumps(record, separators=(",", ":")) + "\n", "utf-8")
    (folder / LOADER).write_text(held["loader"], "utf-8")


def class_name(module: nn.Module) -> str:
    """Return a module's class as a record names it: a model of diffusers by its name, any other by its full one."""
    kind = type(module)
    return kind.__name__ if hasattr(kind, "from_config") else f"{kind.__module__}.{kind.__qualname__}"


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors of a folder; the shards that an index names, where there is one."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is None:
        return sorted(folder.glob("*.safetensors"))
    return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast floating tensors to a dtype, except those that the class keeps in float32 (as ``from_pretrained`` does)."""
    precise = set(getattr(type(module), "_keep_in_fp32_modules", None) or ())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if precise & set(name.split(".")) else dtype)


def _read_state(files: list[Path]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"not a whole safetensors file: {error}", where=str(file)) from error
    return state


def _fill(module: nn.Module, state: dict[str, torch.Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()[:200]
        raise UserError(f"the weights do not fit the plan: {first}", where=str(folder)) from error


def _made(folder: Path, record: dict[str, Any], cls: Any) -> nn.Module:
    """Make the whole model of ``config.json``."""
    if "." in record["class"]:
        raise UserError(
            f"{record['class']!r} is no class of diffusers", where=str(folder), mend="Give a whole one as 'module'"
        )
    config = read_json(folder / "config.json")
    if record["class"] != config.get("_class_name"):
        raise UserError(
            f"config.json is that of {config.get('_class_name')!r}, {PRUNING} of {record['class']!r}", where=str(folder)
        )
    return (cls or class_named(record["class"])).from_config(dict(config))


def _cut(module: nn.Module, edits: list[Any], where: str) -> None:
    """Apply a plan; raise a UserError where it is none of this model's."""
    try:
        apply_edits(module, edits)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the plan does not fit the model: {error}", where=where, mend=_COPY_AGAIN) from error


def _given(module: nn.Module, record: dict[str, Any], folder: Path) -> nn.Module:
    """Check the whole model that somebody made; raise a UserError where it is another one."""
    shapes = _shapes(module.state_dict())
    other = next(
        (name for name in sorted({*shapes, *record["base"]}) if shapes.get(name) != record["base"].get(name)), None
    )
    if class_name(module).rpartition(".")[2] != record["class"].rpartition(".")[2] or other is not None:
        raise UserError(
            f"{class_name(module)!r} is not the whole model that was pruned: "
            + (f"{other!r} is {shapes.get(other)}, was {record['base'].get(other)}" if other else record["class"]),
            where=str(folder),
            mend="Make 'module' as the pruned model was made",
        )
    return module


def class_named(name: str, mend: str = "Give the class as 'cls'") -> Any:
    """Return a model class of diffusers; nothing else that can be imported has a name here."""
    import diffusers
    from diffusers.models import transformers

    found = getattr(diffusers, name, None) or getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise UserError(f"diffusers {diffusers.__version__} has no class {name[:80]!r}", mend=mend)
    return found
