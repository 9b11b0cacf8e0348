"""Prune one model without a recipe: a module in memory, a diffusers folder, a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import need_place, publish, sha256_data, whole_folder
from dit_compress.core.progress import say
from dit_compress.core.version import REVISION
from dit_compress.model.bundle import Bundle
from dit_compress.model.denoiser import Denoiser
from dit_compress.model.spec import Spec
from dit_compress.plugin import defaults
from dit_compress.pruning.folder import load, save
from dit_compress.pruning.recorded import RecordedDenoiser, size_of
from dit_compress.pruning.step import asked_part, find, need_schedule, need_size, understood
from dit_compress.pruning.target import Folder, component_folder, denoiser_of, open_target
from dit_compress.run.keys import Node, lineage_entry
from dit_compress.step.context import Context
from dit_compress.structure.apply import apply_edits, replace_tensor
from dit_compress.structure.compact import CompactionError
from dit_compress.structure.copies import shared_copy, single_copy
from dit_compress.structure.edits import MAKING, edits_from_data
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.disk import SHARD_BYTES, prune_weights, refuse_quantised
from dit_compress.structure.files.load_pruned import edits_of
from dit_compress.structure.files.made import tensors_on_disk
from dit_compress.structure.files.on_disk import bring_to_memory, left_on_disk
from dit_compress.structure.files.pruned import (
    base_of,
    check_plan,
    log_of,
    made_for,
    read_plan,
    record_of,
    remember_log,
    write_record,
)
from dit_compress.structure.files.tensor_files import open_weights
from dit_compress.structure.files.whole import read_config
from dit_compress.structure.lookup import tensor_at, tensor_or_none
from dit_compress.structure.nesting import need_one_width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from dit_compress.plugin.options import Part
    from dit_compress.structure.edits import Edit
    from dit_compress.structure.record import Call


def prune(
    model: str | Path | nn.Module | Denoiser,
    *,
    params: float | str | None = None,
    flops: float | str | None = None,
    latency: float | str | Mapping[str, Any] | None = None,
    size: Sequence[int] | None = None,
    levels: Sequence[str] | None = None,
    heterogeneous: bool = False,
    curves: str | Path | None = None,
    remove: Mapping[str, int] | None = None,
    keep: Mapping[str, float] | None = None,
    search: str | Mapping[str, Any] = defaults.SEARCH,
    modulation: Mapping[str, Any] | None = None,
    call: Call | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> nn.Module:
    """Prune a model to a budget or to counts per level; the pruned module, of its original class.

    model: a module or Denoiser, pruned in place; or a path: a folder of diffusers (a model's or a pipeline's), one
        that this function wrote, a bundle, a run.
    params, flops, latency: the budget, one of them: parameters; FLOPs of one call for one sample; its seconds, or
        ``{"seconds": …, "table": file, "machine": whose}`` (measured here where no table is given). ``"50%"`` is half
        of the whole model's figure.
    size: cells (T, H, W) of the latent that FLOPs and seconds are for; a bundle's or a call's own if absent.
    levels: what a budget may cut; blocks, heads and FFN channels if absent.
    heterogeneous: widths of each block. curves: a report of ``sensitivity --each`` that decides on them.
    remove, keep: ``{"block": 8, "head": 12}`` and ``{"ffn": 0.75}``, counts and shares per level.
    search: a search plugin that needs no data, or ``{"use": name, option: value}``.
    modulation: instead of units: ``{"rank": 64}``, per-block modulation of low rank, or ``{"table": [1.0, 0.75]}``,
        exact at these sigmas and for no other (timesteps, where a ``call`` is given); ``"schedule"`` is a bundle's own.
    call: one call of the module (:func:`dit_compress.record`): what its structure is seen on, and the result proven.
        With it any ``nn.Module`` can be pruned; without it those that a model plugin knows.
    out: where to write what :func:`dit_compress.load` reads. The weights of a folder are cut on disk, as they are,
        into shards of at most ``shard_bytes``.

    Masked equals compact is proven first. Raises UserError where the model is not understood or the budget
    can't be met; then nothing is changed or written.
    """
    asked: dict[str, Any] = {
        "params": params,
        "flops": flops,
        "latency": latency,
        "levels": levels,
        "heterogeneous": heterogeneous,
        "curves": curves,
        "remove": remove,
        "keep": keep,
        "modulation": modulation,
    }
    part, place = asked_part(**asked, size=_size(size, call, flops or latency), search=search), free(out)
    if not isinstance(model, str | Path):
        need_schedule(part)
        return _prune_live(model, part, place, seed, shard_bytes, call)
    target = open_target(model)
    if isinstance(target, Folder):
        need_schedule(part)
        return _prune_folder(target, part, place, seed, shard_bytes, call)
    if call is not None:
        raise UserError("a bundle says itself how its model is called", where=str(model), mend="Leave 'call' out")
    return _prune_bundle(target, part, place, seed)


def planned(path: str | Path, **asked: Any) -> tuple[Spec, Spec]:
    """Describe the model at a path before and after, without weights: the counts are settled, the units are not.

    asked: as for :func:`prune`, from ``params`` to ``modulation``.
    """
    target, part = open_target(path), asked_part(**asked)
    if isinstance(target, Folder):
        need_schedule(part)
    need_size(part, spec := target.spec)
    need_one_width(spec.need_denoiser().log, "pruning")
    return spec, part.build().plan(spec)


def prune_by_plan(plan: Path, source: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """Repeat a plan (``pruning.json``) on another checkpoint of the same model, on disk; ``file → size and sha256``.

    Raises UserError where names, shapes or the config's checksum are those of another model; then nothing is written.
    """
    record, folder, place = read_plan(plan), component_folder(source), free(out)
    assert place is not None
    config = read_config(folder)
    check_plan(record, config["_class_name"], config, open_weights(folder).shapes(), str(folder))
    return _write_folder(folder, edits_of(record), {**record, "weights": made_for(folder)}, place, shard_bytes)


def _size(size: Sequence[int] | None, call: Call | None, depends: object) -> Sequence[int] | None:
    """Return the size that FLOPs and seconds are for: a recorded call has a size of its own."""
    if call is None or not depends:
        return size
    if size is not None:
        raise UserError("a recorded call has a size of its own", mend="Leave 'size' out, or record a larger call")
    return size_of(call)


def free(out: str | Path | None) -> Path | None:
    """Return where to write; raise a UserError where something is there already, or nothing can be made."""
    if out is not None:
        need_place(Path(out), "folder")
    if out is not None and Path(out).exists():
        raise UserError("this exists already", where=str(out), mend="Name a new folder, or remove this one")
    return None if out is None else Path(out)


# ------------------------------------------------------------------ modules, folders and bundles


def _edits(entries: Sequence[dict[str, Any]]) -> list[Edit]:
    return [edit for entry in entries for edit in edits_from_data(entry["data"]["edits"])]


def _apply(module: nn.Module, entries: Sequence[dict[str, Any]], made: Mapping[str, Tensor]) -> None:
    """Edit a live module in its own dtype, and let it remember how it was pruned. made: values that no edit gives."""
    log, base = log_of(module), base_of(module)
    apply_edits(module, _edits(entries))
    for name, value in made.items():
        replace_tensor(module, name, value.to(tensor_at(module, name)))
    remember_log(module, base, [*log, *entries])


def _made(module: nn.Module, entries: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the tensors of a pruned module that were not cut out of the whole one's."""
    names = (name for edit in _edits(entries) if isinstance(edit, MAKING) for name in edit.made)
    return {name: found for name in names if (found := tensor_or_none(module, name)) is not None}


def _prune_live(
    model: nn.Module | Denoiser, part: Part, out: Path | None, seed: int, shard_bytes: int, call: Call | None
) -> nn.Module:
    """Search, proof and writing on copies that share the weights; only then the module is edited."""
    denoiser, spec = model, Spec()
    if call is not None:
        denoiser = RecordedDenoiser(model.module if isinstance(model, Denoiser) else model, call)
    elif not isinstance(model, Denoiser):
        denoiser, spec = denoiser_of(model)
    assert isinstance(denoiser, Denoiser)
    entries, made = _found(denoiser, spec, part, seed)
    if out is not None:
        copied = shared_copy(denoiser.module)
        _apply(copied, entries, made)
        save(copied, out, shard_bytes=shard_bytes)
        del copied
    _apply(denoiser.module, entries, made)
    if isinstance(model, Denoiser):
        model.forget_structure()
    return denoiser.module


def _found(denoiser: Denoiser, spec: Spec, part: Part, seed: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Find transform-log entries, and the tensors that they make anew; the denoiser stays as it is."""
    copied = shared_copy(denoiser)
    try:
        entries = find(copied, spec, part, seed)
    except UserError as error:
        # Where one of its kernels has no float64, half precision is too coarse for the proof.
        half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in denoiser.parameters())
        if not half or not isinstance(error.__cause__, CompactionError):
            raise
        copied = single_copy(denoiser)
        entries = find(copied, spec, part, seed)
    return entries, _made(copied.module, entries)


def _prune_folder(
    target: Folder, part: Part, out: Path | None, seed: int, shard_bytes: int, call: Call | None
) -> nn.Module:
    """Search and proof read one weight at a time; then the files are cut on disk."""
    weights, config = open_weights(target.path), read_config(target.path)
    refuse_quantised(weights)
    with empty_weights():
        denoiser, spec = target.load() if call is None else (RecordedDenoiser(target.module(), call), Spec())
    log, base = log_of(denoiser.module), base_of(denoiser.module)
    with left_on_disk(denoiser.module, target.weights(denoiser.module)):
        entries = find(denoiser, spec, part, seed)
        if out is None:
            bring_to_memory(denoiser.module)
    if out is None:
        remember_log(denoiser.module, base, [*log, *entries])
        return denoiser.module
    made = _made(denoiser.module, entries)
    del denoiser
    record = record_of(config["_class_name"], config, base, [*log, *entries], made_for(target.path))
    _write_folder(target.path, _edits(entries), record, out, shard_bytes, made)
    return load(out, verify=False)


def _write_folder(
    source: Path,
    edits: Sequence[Edit],
    record: Mapping[str, Any],
    out: Path,
    shard_bytes: int,
    made: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write a pruned folder: weights cut on disk, config, plan, loader; whole or not at all."""
    say(f"writing {out}")
    with whole_folder(out) as folder, tensors_on_disk(made or {}, edits, open_weights(source)) as new:
        files = prune_weights(source, folder, edits, made=new, shard_bytes=shard_bytes)
        write_record(folder, record, files, source / "config.json")
    return files


def _prune_bundle(bundle: Bundle, part: Part, out: Path | None, seed: int) -> nn.Module:
    """Prune a bundle as the step of a recipe would; in memory only without ``out``."""
    if out is None:
        denoiser = bundle.denoiser()
        log, base = log_of(denoiser.module), base_of(denoiser.module)
        entries = find(denoiser, bundle.spec, part, seed)
        remember_log(denoiser.module, base, [*log, *entries])
        return denoiser.module
    need_size(part, bundle.spec)
    need_one_width(bundle.spec.need_denoiser().log, "pruning")
    work = out.with_name(f".{out.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        record = _record(bundle, part, seed)
        context = Context(name="prune", seed=seed, folder=work, cache=work, bundles={"input": bundle}, record=record)
        with understood():
            part.build().run(context)
        publish(work / "bundle", out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Bundle.open(out).denoiser().module


def _record(bundle: Bundle, part: Part, seed: int) -> dict[str, Any]:
    """Describe the step as lineage does."""
    node, inputs = Node("prune", "prune", {"step": part}), {"input": bundle.digest()}
    key = sha256_data([REVISION, node.describe(contents=True), inputs, seed])
    return lineage_entry(node, key=key, inputs=inputs, sources={}, seed=seed)
