"""A model on disk: denoiser, VAE, text encoder, flow settings, lineage. Whole and immutable.

bundle/
  bundle.json        components (plugin, config, transform log, sha256), flow, lineage, licence, its own sha256
  denoiser/          config.json + diffusion_pytorch_model.safetensors
  latent/  text/     likewise, where the bundle has them; text/tokens/: a tokenizer's files
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from dit_compress.core.errors import UserError
from dit_compress.core.files import (
    check_file,
    file_record,
    is_whole,
    link_file,
    read_json,
    sealed,
    sha256_data,
    whole_folder,
    write_json,
)
from dit_compress.core.schema import faults
from dit_compress.core.version import SCHEMA, __version__
from dit_compress.model.flow import Flow
from dit_compress.model.paths import resolve_bundle
from dit_compress.model.record import BundleRecord
from dit_compress.model.spec import ComponentSpec, Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.protocols import Codec, TextEncoder

COMPONENTS = {"denoiser": "model", "latent": "latent", "text": "text"}
"""Component → the kind of the plugin that loads it."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
TOKENS = "tokens"
"""The one folder that a component may hold: what its encoder's ``keep_tokens`` wrote."""
_AGAIN = "Copy the bundle again"
_MOST = 10
"""Faults of a bundle.json that are named."""
_PLAIN_NAME = re.compile(rf"(?:{TOKENS}/(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)?)?[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Bundle:
    """A bundle opened for reading. Components are loaded, and their checksums compared, when asked for.

    width: of its nested ones, that to which its denoiser is cut; None: the denoiser as it lies there.
    """

    path: Path
    data: dict[str, Any]
    width: float | None = None

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read ``bundle.json``, of a run that of its last bundle, and refuse what can't be right."""
        folder = resolve_bundle(path)
        if not (folder / "bundle.json").is_file():
            raise UserError("no bundle here (bundle.json is missing)", where=str(folder))
        data = read_json(folder / "bundle.json")
        where = str(folder / "bundle.json")
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise UserError("not a bundle: 'schema' is missing", where=where)
        if data["schema"] > SCHEMA:
            raise UserError(
                f"written with schema {data['schema']}; this toolkit ({__version__}) reads up to {SCHEMA}",
                where=where,
                mend="Upgrade dit-compress",
            )
        missing = [name for name in ("components", "flow", "lineage") if name not in data]
        if missing or not isinstance(data["components"], dict):
            raise UserError(f"not a whole bundle: {missing or 'components'} missing", where=where, mend=_AGAIN)
        for name, component in data["components"].items():
            _check_component(name, component, where)
        if found := list(faults(BundleRecord, data))[:_MOST]:
            raise UserError.join([UserError(fault, where=where, mend=_AGAIN) for fault in found])
        if not is_whole(data):
            raise UserError("the checksum of its entries differs from the one written", where=where, mend=_AGAIN)
        return cls(folder, data)

    @property
    def spec(self) -> Spec:
        """The bundle without weights."""
        video = self.data.get("video")
        return Spec(
            video=tuple(video) if video else None,
            denoiser=self._narrowed(self._component("denoiser")),
            latent=self._component("latent"),
            text=self._component("text"),
            flow=self.flow,
        )

    @property
    def flow(self) -> Flow:
        """Schedule and sampling settings."""
        return Flow.from_data(self.data["flow"])

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """Every step the bundle came through, oldest first."""
        return self.data["lineage"]

    def digest(self, component: str | None = None) -> str:
        """Return digest of one component's files, or of all."""
        files = {name: entry["files"] for name, entry in self.data["components"].items()}
        return sha256_data(files if component is None else files[component])

    @property
    def latents(self) -> str:
        """The name of the latents that its VAE makes: the digest of the VAE, of the first one where decoders follow."""
        return self.data["components"]["latent"].get("latents") or self.digest("latent")

    def weights(self, component: str) -> dict[str, str]:
        """Return the digests of a component's files but its config."""
        files = self.data["components"][component]["files"]
        return {name: digest for name, digest in files.items() if name != "config.json"}

    def narrowed(self, width: float) -> Bundle:
        """Return the same bundle, its denoiser cut to a nested width; UserError where it has no such width."""
        from dit_compress.structure.nesting import need_nesting

        need_nesting(self._need("denoiser").log, str(self.path)).cut(width, str(self.path))
        return replace(self, width=width)

    def denoiser(self) -> Denoiser:
        """Return the denoiser with its weights."""
        from dit_compress.structure.nesting import narrow

        component = self._need("denoiser")
        module = self._load("denoiser", component)
        if self.width is not None:
            narrow(module, self.width, str(self.path))
        return component.loader().denoiser(module)

    def codec(self) -> Codec:
        """Return the VAE with its weights."""
        return cast("Codec", self._load("latent", self._need("latent")))

    def text(self) -> nn.Module:
        """Return the caption encoder (see ``hooks.TextEncoder``)."""
        return self._load("text", self._need("text"))

    def check(self, name: str) -> dict[str, Any]:
        """Compare a component's files with their record, and return it.

        Raises:
            UserError: a file is missing or changed, is a symbolic link, or the record does not name it.
        """
        folder, files = self.path / name, self.data["components"][name]["files"]
        found = sorted(folder.rglob("*")) if folder.is_dir() else []
        for item in (folder, *found):
            if item.is_symlink():
                raise UserError("a symbolic link: a bundle holds its files itself", where=str(item), mend=_AGAIN)
        for file, record in files.items():
            check_file(folder / file, record, _AGAIN)
        named = {*files, *(str(parent) for file in files for parent in PurePosixPath(file).parents)}
        for item in found:
            if item.relative_to(folder).as_posix() not in named:
                what = f"the bundle's record does not name this {'folder' if item.is_dir() else 'file'}"
                raise UserError(what, where=str(item), mend="Delete it")
        return files

    def _component(self, name: str) -> ComponentSpec | None:
        entry = self.data["components"].get(name)
        if entry is None:
            return None
        tokens = self.path / name / TOKENS
        return ComponentSpec(
            COMPONENTS[name], entry["plugin"], entry["config"], tuple(entry["log"]), entry.get("latents"),
            tokens if tokens.is_dir() else None,
        )  # fmt: skip

    def _narrowed(self, component: ComponentSpec | None) -> ComponentSpec | None:
        return component if component is None or self.width is None else component.narrowed(self.width)

    def _need(self, name: str) -> ComponentSpec:
        component = self._component(name)
        if component is None:
            raise UserError(f"the bundle has no component {name!r}", where=str(self.path))
        return component

    def _load(self, name: str, component: ComponentSpec) -> nn.Module:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = self.path / name
        self.check(name)
        try:
            state = load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise UserError(f"not a whole safetensors file: {error}", where=str(folder / WEIGHTS)) from error
        module = component.build()
        try:
            module.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()[:200]
            raise UserError(
                f"the weights do not fit the model {component.plugin!r}: {first}",
                where=str(folder / WEIGHTS),
                mend="Make the bundle again: the plugin's code has changed since",
            ) from error
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        return module


def _check_component(name: str, component: Mapping[str, Any], where: str) -> None:
    """Raise a UserError where a component is none of ours, or names files that are not its own."""
    if name not in COMPONENTS:
        raise UserError(f"component {name!r} is none of {', '.join(COMPONENTS)}", where=where)
    if not isinstance(component, dict) or not {"plugin", "config", "log", "files"} <= component.keys():
        raise UserError(f"component {name!r} is not whole", where=where, mend=_AGAIN)
    if not isinstance(component["files"], dict) or not all(_PLAIN_NAME.fullmatch(file) for file in component["files"]):
        raise UserError(f"component {name!r} names a file outside its folder", where=where)
    if WEIGHTS not in component["files"]:
        raise UserError(f"component {name!r} has no {WEIGHTS}", where=where, mend=_AGAIN)


def write_bundle(
    path: Path,
    spec: Spec,
    modules: Mapping[str, nn.Module],
    *,
    base: Bundle | None,
    lineage: Sequence[dict[str, Any]],
    licence: str | None = None,
) -> Bundle:
    """Write a bundle atomically: new components from ``modules``, the others linked from ``base``."""
    components: dict[str, Any] = {}
    with whole_folder(path) as folder:
        for name in COMPONENTS:
            component: ComponentSpec | None = getattr(spec, name)
            if component is None:
                continue
            if name in modules:
                files = save_component(folder / name, modules[name], component.config)
                if name == "text" and modules[name].state_dict():
                    files |= _keep_tokens(cast("TextEncoder", modules[name]), folder / name)
            elif base is not None:
                files = base.check(name)
                for file in files:
                    link_file(base.path / name / file, folder / name / file)
            else:
                raise KeyError(f"component {name!r} has neither a module nor a base bundle")
            components[name] = {
                "plugin": component.plugin,
                "config": component.config,
                "log": list(component.log),
                "files": files,
            } | ({"latents": component.latents} if component.latents else {})
        record = {
            "schema": SCHEMA,
            "components": components,
            "flow": spec.flow.as_data(),
            "video": list(spec.video) if spec.video else None,
            "lineage": list(lineage),
            "licence": licence if licence is not None else (base.data.get("licence") if base else None),
        }
        write_json(folder / "bundle.json", sealed(record))
    return Bundle.open(path)


def component_digest(module: nn.Module, config: dict[str, Any], scratch: Path) -> str:
    """Return the digest that a component has in a bundle; it is written into ``scratch`` for the moment."""
    with TemporaryDirectory(dir=scratch) as folder:
        return sha256_data(save_component(Path(folder) / "component", module, config))


def save_component(folder: Path, module: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """Write ``config.json`` and safetensors, byte for byte the same for equal weights; return the files' records."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    state = {name: value.detach().cpu().contiguous() for name, value in sorted(module.state_dict().items())}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return _records(folder, folder)


def _keep_tokens(encoder: TextEncoder, folder: Path) -> dict[str, Any]:
    """Write what an encoder tokenizes by beside its weights; return the files' records."""
    encoder.keep_tokens(folder / TOKENS)
    return _records(folder / TOKENS, folder)


def _records(place: Path, folder: Path) -> dict[str, Any]:
    """Return the records of the files in a place, by their path in the component's folder."""
    files = [item for item in sorted(place.rglob("*")) if item.is_file()]
    return {item.relative_to(folder).as_posix(): file_record(item) for item in files}
