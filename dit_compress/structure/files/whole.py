"""The whole model in a folder of diffusers: the one way by which every command opens it.

What is wrong with config and weights is one UserError each; ``plan`` and ``inspect`` read the config alone. Nothing in
a folder is executed: the class is one of diffusers, weights are safetensors.
"""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.files import read_json
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.load_pruned import class_named
from dit_compress.structure.files.tensor_files import open_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch

    from dit_compress.structure.files.tensor_files import TensorAt

MAX_MODULES = 30_000
"""Modules of the largest model that is made; a transformer of 100 blocks has some 6,000."""
_WIDTH = 200
"""Letters of what a library said."""
_AGAIN = "Download or copy the folder again"
RECORD = "Load any other model yourself, 'with dit_compress.record(model) as call' call it, and prune(model, call=call)"
"""The way of models that are none of diffusers."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a model's folder; it must name a class, and no code."""
    config, where = read_json(folder / "config.json"), str(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise UserError("no config of a diffusers model", where=where, mend=RECORD)
    if "auto_map" in config:
        raise UserError(
            "it asks for code of its own ('auto_map'), which is never executed",
            where=where,
            mend="Give the folder of a class that is part of diffusers",
        )
    return config


def made(kind: Any, config: Mapping[str, Any], where: str) -> nn.Module:
    """Make a model of a class from its config; keys that the class does not know are left out, as diffusers does.

    Raises UserError where the class does not take it, or the model would be endless.
    """
    try:
        with _bounded(kind.__name__):
            return kind(**own_config(kind, config))
    except UserError as error:
        raise UserError(error.problems[0][1], where=where, mend="Correct the config") from error
    except Exception as error:
        raise UserError(
            f"{kind.__name__} can't be made of this config: {said(error)}", where=where, mend="Correct the config"
        ) from error


def own_config(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config the class takes: no notes of diffusers (``_class_name``), no keys unknown to it."""
    taken = inspect.signature(kind.__init__).parameters
    anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    return {name: value for name, value in config.items() if name[:1] != "_" and (anything or name in taken)}


@contextmanager
def _bounded(name: str) -> Iterator[None]:
    """Raise UserError where a model does not come to an end."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise UserError(f"{name} would have more than {MAX_MODULES:,} modules")

    handle = register_module_module_registration_hook(one_more)
    try:
        yield
    finally:
        handle.remove()


def load_whole(folder: Path, dtype: torch.dtype | None = None, named: Callable[[str], Any] | None = None) -> nn.Module:
    """Load the model of a folder, in evaluation mode; without weights where ``empty_weights`` is at work.

    named: gives the class of a name, where it is none of the models that are pruned: a VAE.

    Raises:
        UserError: config or weights are broken, or not those of each other.
    """
    config = read_config(folder)
    where = str(folder / "config.json")
    name = config["_class_name"]
    kind = named(name) if named else class_named(name, f"Check '_class_name' in config.json. {RECORD}")
    with empty_weights():
        empty = made(kind, config, where)
    if next(nn.Linear(1, 1).parameters()).is_meta:
        return empty.eval()
    whole_weights(folder, empty)
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, torch_dtype=dtype)
    except Exception as error:
        raise UserError(f"diffusers can't load it: {said(error)}", where=str(folder), mend=_AGAIN) from error


def whole_weights(folder: Path, module: Any) -> dict[str, TensorAt]:
    """Find every tensor of a module's state in the files of a folder, by the module's names.

    Raises UserError where files are not whole, or lack a tensor that the module has, or have another.
    """
    found = dict(open_weights(folder).tensors)
    if hasattr(module, "_fix_state_dict_keys_on_load"):  # names of older versions of the class
        module._fix_state_dict_keys_on_load(found)  # noqa: SLF001 - what from_pretrained does with them
    state = module.state_dict()
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    for name in found.keys() - state.keys():
        if not any(re.search(pattern, name) for pattern in ignored):
            raise UserError(
                f"the weights have {name!r}, which {type(module).__name__} has not by config.json",
                where=str(folder),
                mend=f"Correct config.json. {_AGAIN}",
            )
    for name, value in state.items():
        if name not in found:
            raise UserError(f"the weights lack {name!r}", where=str(folder), mend=_AGAIN)
        if list(found[name].shape) != list(value.shape):
            raise UserError(
                f"{name!r} is {list(found[name].shape)} in the weights, {list(value.shape)} by config.json",
                where=str(folder),
                mend=_AGAIN,
            )
    return found


def said(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    text = root_cause(error)
    name = type(error).__name__
    text = text if len(text) <= _WIDTH else f"{text[:_WIDTH]} …"
    return text if text == name else f"{name}: {text}"
