"""The model that a command names, a bundle or a folder of diffusers, and the plugin that knows its convention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import check_file
from dit_compress.model.bundle import Bundle
from dit_compress.model.paths import resolve_bundle
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin import defaults
from dit_compress.plugin.options import load_object
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files import load_pruned
from dit_compress.structure.files.load_pruned import PRUNING, read_record
from dit_compress.structure.files.pruned import log_of
from dit_compress.structure.files.whole import RECORD, load_whole, whole_weights

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.files.tensor_files import TensorAt


@dataclass(frozen=True)
class Folder:
    """A model of diffusers on disk. given: the path as it was named, maybe a pipeline's; path: the model's own."""

    given: Path
    path: Path

    def load(self) -> tuple[Denoiser, Spec]:
        """Return the denoiser in float32, or without weights inside ``empty_weights``; and the model without."""
        maker = make_part("model", {"use": defaults.MODEL, "path": str(self.given)}, installed()).build()
        module = maker.create()
        spec = ComponentSpec("model", defaults.MODEL, maker.config_of(module), log_of(module))
        return maker.denoiser(module), Spec(denoiser=spec)

    def module(self) -> nn.Module:
        """Load the module in float32, for a call that somebody recorded: no plugin is asked how it is called."""
        import torch

        if (self.path / PRUNING).is_file():
            return load_pruned.load(self.path, torch_dtype=torch.float32)
        return load_whole(self.path, torch.float32)

    def weights(self, module: nn.Module) -> dict[str, TensorAt]:
        """Find the weights of its module in its files; UserError where they are not those that belong there."""
        if (self.path / PRUNING).is_file():
            for name, written in read_record(self.path)["files"].items():
                check_file(self.path / name, written, "Copy the folder again")
        return whole_weights(self.path, module)

    @property
    def spec(self) -> Spec:
        """The model without weights; none is read."""
        with empty_weights():
            return self.load()[1]


def open_target(path: str | Path) -> Folder | Bundle:
    """Open a bundle, a run's last bundle, or a folder of diffusers at a path; raise a UserError for anything else."""
    bundle = resolve_bundle(path)
    if (bundle / "bundle.json").is_file():
        return Bundle.open(bundle)
    return Folder(Path(path), component_folder(Path(path)))


def empty_denoiser(target: str) -> Denoiser:
    """Build a denoiser without weights: of what :func:`open_target` opens, or of a class of diffusers that is named."""
    if not Path(target).exists() and target.isidentifier():
        maker = make_part("model", {"use": defaults.MODEL, "class_name": target}, installed()).build()
        with empty_weights():
            return maker.denoiser(maker.create()).to("meta")
    found = open_target(target)
    if isinstance(found, Bundle):
        return found.spec.build_denoiser().to("meta")
    with empty_weights():
        return found.load()[0].to("meta")


def weights_folder(target: str) -> Path | None:
    """Return where the denoiser's weights lie of what :func:`open_target` opens; nowhere of a class that is named."""
    if not Path(target).exists() and target.isidentifier():
        return None
    found = open_target(target)
    return found.path / "denoiser" if isinstance(found, Bundle) else found.path


def component_folder(path: Path) -> Path:
    """Return the transformer's folder of a pipeline, or the folder itself."""
    for found in (path / "transformer", path):
        if (found / "config.json").is_file():
            return found
    raise UserError("neither a bundle, a run, nor a diffusers folder with a config.json", where=str(path), mend=RECORD)


def denoiser_of(module: nn.Module) -> tuple[Denoiser, Spec]:
    """Put a live module behind the convention of the plugin that makes its class from its config.

    Raises UserError where no plugin does, with the objection of each.
    """
    objections = []
    for entry in installed().entries("model"):
        maker: Any = load_object(entry.plugin.load)
        try:
            config = maker.config_of(module)
            with empty_weights():
                like = maker.from_config(config)
        except Exception as error:  # noqa: BLE001 - a plugin may fail in any way on a module that is not its own
            objections.append(f"{entry.plugin.name}: {' '.join(str(error).split()) or type(error).__name__}")
            continue
        if type(like) is type(module):
            spec = ComponentSpec("model", entry.plugin.name, config, log_of(module))
            return maker.denoiser(module), Spec(denoiser=spec)
        objections.append(f"{entry.plugin.name}: makes {type(like).__name__}")
    raise UserError(
        f"no model plugin knows {type(module).__name__} ({'; '.join(objections)})",
        mend="Give a Denoiser around the module, or record one of its calls and give that as 'call'",
    )
