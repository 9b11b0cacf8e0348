"""Edits of the table, applied to a live module or to a state dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.structure.edits import (
    COMPUTING,
    Factor,
    GatherArgument,
    KeepBlocks,
    Scale,
    SetAttribute,
    Substitute,
    Tabulate,
    Take,
)
from dit_compress.structure.lookup import set_attribute, tensor_at
from dit_compress.structure.modulation import factor, tabulate
from dit_compress.structure.substitutes import substitute
from dit_compress.structure.tombstone import Tombstone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dit_compress.structure.edits import Edit


def apply_edits(module: nn.Module, edits: Iterable[Edit]) -> None:
    """Edit a live module in place (on any device, meta included). Tensors that are made anew are NaN."""
    for edit in edits:
        if isinstance(edit, Take | Scale):
            replace_tensor(module, edit.tensor, edit_tensor(tensor_at(module, edit.tensor), edit))
        elif isinstance(edit, SetAttribute):
            set_attribute(module, edit.module, edit.attribute, edit.value)
        elif isinstance(edit, GatherArgument):
            _gather(module.get_submodule(edit.module), edit)
        elif isinstance(edit, Substitute):
            substitute(module.get_submodule(edit.module))
        elif isinstance(edit, KeepBlocks):
            _keep_blocks(module, edit)
        elif isinstance(edit, Factor):
            factor(module, edit)
        elif isinstance(edit, Tabulate):
            tabulate(module, edit)
        else:
            raise unknown_edit(edit)


def edit_state(state: Mapping[str, Tensor], edits: Iterable[Edit]) -> dict[str, Tensor]:
    """Make the same edits on a state dict, or on a part of one; return a new dict and leave the given one untouched."""
    edited = dict(state)
    for edit in edits:
        if isinstance(edit, Take | Scale):
            if edit.tensor in edited:
                edited[edit.tensor] = edit_tensor(edited[edit.tensor], edit)
        elif isinstance(edit, KeepBlocks):
            edited = {new: value for name, value in edited.items() if (new := rename(name, edit)) is not None}
        elif not isinstance(edit, COMPUTING):
            raise unknown_edit(edit)
    return edited


def unknown_edit(edit: object) -> TypeError:
    """Make the error for an edit of a kind that is not in the table: skipping it would give another model."""
    return TypeError(f"{type(edit).__name__} is no edit that can be applied here")


def edit_tensor(tensor: Tensor, edit: Take | Scale) -> Tensor:
    """Make one edit on one tensor."""
    if isinstance(edit, Scale):
        return tensor * edit.factor
    return tensor.index_select(edit.dim, torch.tensor(edit.index, device=tensor.device))


def rename(name: str, edit: KeepBlocks) -> str | None:
    """Return a tensor's name after a block edit; None where it is gone."""
    if edit.names:
        gone = any(name.startswith(f"{path}.") for path in edit.gone(0))
        return name if not gone or any(name.startswith(f"{path}.") for path in edit.spared()) else None
    head = f"{edit.stack}."
    if not name.startswith(head):
        return name
    index, _, rest = name[len(head) :].partition(".")
    if int(index) not in edit.index:
        kept = any(name.startswith(f"{path}.") for path in edit.spared())
        return name if edit.tombstones and kept else None
    return name if edit.tombstones else f"{head}{edit.index.index(int(index))}.{rest}"


def replace_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Put other values, maybe of another shape, in a parameter's or buffer's place."""
    path, _, leaf = name.rpartition(".")
    owner, old = module.get_submodule(path), tensor_at(module, name)
    value = value.detach()
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, value)
    _resize(owner, leaf, value)


def _resize(owner: nn.Module, leaf: str, value: Tensor) -> None:
    """Set the integers that torch's own modules keep about their weight."""
    if isinstance(owner, nn.Linear) and leaf == "weight":
        owner.out_features, owner.in_features = value.shape
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d) and leaf == "weight":
        depthwise = owner.groups == owner.in_channels == owner.out_channels
        owner.out_channels = value.shape[0]
        owner.in_channels = value.shape[0] if depthwise else value.shape[1] * owner.groups
        owner.groups = value.shape[0] if depthwise else owner.groups
    for name in ("normalized_shape", "dim"):
        shape = getattr(owner, name, None)
        if isinstance(shape, tuple) and value.ndim == 1:
            setattr(owner, name, (value.shape[0],))


def _gather(owner: nn.Module, edit: GatherArgument) -> None:
    index = torch.tensor(edit.index)

    def take(tensor: Any) -> Any:
        if isinstance(tensor, tuple | list):
            return type(tensor)(take(item) for item in tensor)
        fits = isinstance(tensor, Tensor) and tensor.ndim >= abs(edit.dim) and tensor.shape[edit.dim] > 1
        if not fits or edit.size not in (0, tensor.shape[edit.dim]):
            return tensor
        return tensor.index_select(edit.dim, index.to(tensor.device))

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(edit.argument, int):
            return (*args[: edit.argument], take(args[edit.argument]), *args[edit.argument + 1 :]), kwargs
        if kwargs.get(edit.argument) is None:
            return None
        return args, {**kwargs, edit.argument: take(kwargs[edit.argument])}

    owner.register_forward_pre_hook(hook, with_kwargs=True)


def _keep_blocks(module: nn.Module, edit: KeepBlocks) -> None:
    path, _, leaf = edit.stack.rpartition(".")
    blocks: Any = () if edit.names else module.get_submodule(edit.stack)
    if edit.tombstones or edit.names:
        for name in edit.gone(len(blocks)):
            own = tuple(item.removeprefix(f"{name}.") for item in edit.spared() if item.startswith(f"{name}."))
            tombstone = Tombstone(edit.stream, edit.output, edit.returns, module.get_submodule(name), own)
            owner, _, child = name.rpartition(".")
            module.get_submodule(owner).register_module(child, tombstone)
    else:
        kept = [blocks[index] for index in edit.index]
        made = nn.Sequential(*kept) if isinstance(blocks, nn.Sequential) else nn.ModuleList(kept)
        setattr(module.get_submodule(path), leaf, made)
