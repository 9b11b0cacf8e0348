"""Pruned models as folders: what ``pruning.json`` says, and loading them (and bundles) as their original class.

folder/
  config.json              of the whole model, unchanged
  *.safetensors            of the pruned one; an index where there are shards
  pruning.json             the plan: base class, config and shapes, transform log, checksums
  load_pruned.py           loads the folder without this package
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import whole_folder
from dit_compress.model.bundle import Bundle
from dit_compress.model.paths import resolve_bundle
from dit_compress.structure.files import load_pruned
from dit_compress.structure.files.disk import SHARD_BYTES
from dit_compress.structure.files.load_pruned import ATTRIBUTE, PRUNING, read_record
from dit_compress.structure.nesting import narrow

if TYPE_CHECKING:
    from torch import nn


def load(
    path: str | Path,
    *,
    torch_dtype: Any = None,
    cls: Any = None,
    module: nn.Module | None = None,
    verify: bool = True,
    width: float | None = None,
) -> nn.Module:
    """Load a pruned model as its original class, with the dtype of its file, in evaluation mode.

    path: a folder that :func:`dit_compress.prune` or ``save_pretrained`` wrote, a bundle, or a run (its last bundle).
    torch_dtype: cast to it. cls: a class with diffusers' ``from_config``, where it is none of diffusers' own. module: a
    whole model of any other class; it is cut, its weights are replaced. verify: compare checksums (a bundle's are
    compared in any case). width: of a model of nested widths (``prune: nested``), the one that is cut out of it; the
    whole of it if absent. Raises UserError, also for a width that it has not.
    """
    folder = Path(path)
    if (folder / PRUNING).is_file():
        found = load_pruned.load(folder, torch_dtype=torch_dtype, cls=cls, module=module, verify=verify)
        if width is not None:
            narrow(found, width, str(folder))
        return found
    bundle = resolve_bundle(folder)
    if not (bundle / "bundle.json").is_file():
        raise UserError(
            f"neither a pruned model ({PRUNING}), a bundle nor a run",
            where=str(folder),
            mend=f"Give what dit_compress wrote; a pruned model without its {PRUNING} can't be loaded by any class",
        )
    opened = Bundle.open(bundle)
    module = (opened if width is None else opened.narrowed(width)).denoiser().module
    if torch_dtype is not None:
        load_pruned.cast(module, torch_dtype)
    return module.eval()


def save(module: nn.Module, path: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a pruned module so that :func:`load` reads it; one that is whole by its ``save_pretrained``.

    Raises UserError for a module that was not pruned here and has no ``save_pretrained``.
    """
    saving: Any = module
    if not hasattr(module, ATTRIBUTE):
        if not hasattr(module, "save_pretrained"):
            raise UserError(f"{type(module).__name__} was not pruned here", mend="Save its state dict yourself")
        with whole_folder(Path(path)) as folder:
            saving.save_pretrained(folder, max_shard_size=shard_bytes)
        return
    load_pruned.edits_of(getattr(module, ATTRIBUTE)["record"])
    with whole_folder(Path(path)) as folder:
        files = load_pruned.write_weights(module, folder, max_shard_size=shard_bytes)
        load_pruned.write_record(folder, module, files)


# ------------------------------------------------------------------ the record


def read_log(folder: Path) -> tuple[dict[str, Any], ...]:
    """Read the transform log of a pruned folder or of a bundle's denoiser."""
    if (folder / PRUNING).is_file():
        return tuple(read_record(folder)["log"])
    return Bundle.open(folder).spec.need_denoiser().log
