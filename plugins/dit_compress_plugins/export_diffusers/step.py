"""Write ``save_pretrained`` folders, read them back, compare bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from dit_compress.core.errors import UserError
from dit_compress.core.files import whole_folder, write_json
from dit_compress.core.pipeline import DENOISERS
from dit_compress.export.widths import at_each, narrowed
from dit_compress.step.context import Result
from dit_compress.structure.files.load_pruned import PRUNING, load
from dit_compress.structure.files.original import from_original, need_table, to_original
from dit_compress_plugins.export_diffusers.pipeline import base_of, check_experts, part_of, write_pipeline
from dit_compress_plugins.export_diffusers.stated import need_stated, stated

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.export_diffusers import DiffusersOptions


class DiffusersExport:
    """Step ``export: {use: diffusers}``."""

    def __init__(self, options: DiffusersOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle as it is; raise where it has no denoiser, not these widths, or no place there."""
        spec.need_denoiser()
        narrowed(spec, self.options.widths)
        base_of(spec, self.options.pipeline)
        if self.options.single_file:
            need_table(type(spec.outline().module).__name__)
            need_stated(spec.outline().module)
        return spec

    def run(self, context: Context) -> Result:
        """Write one folder per component, of each width that is asked for."""
        return at_each(context, self.options.widths, self.written)

    def written(self, context: Context) -> Result:
        """Write one folder per component, each reloaded and compared; and the pipeline around them."""
        bundle, other = context.input, context.slot("other")
        base = base_of(bundle.spec, self.options.pipeline)
        denoisers = [bundle] if other is None else [bundle, other]
        if other is not None:
            check_experts(bundle, other, base)
        modules: dict[str, Any] = {part_of(each.spec, base): stated(each.denoiser()) for each in denoisers}
        if bundle.spec.latent is not None:
            modules["vae"] = bundle.codec()
        if bundle.spec.text is not None and hasattr(text := bundle.text(), "save_pretrained"):
            modules["text_encoder"] = text  # T5 stays in the folder it came from
        with whole_folder(context.folder / "files") as folder:
            for name, module in modules.items():
                save_and_prove(folder / name, module)
                if self.options.single_file and name in DENOISERS:
                    need_stated(module)
                    write_single(folder / "single_file" / f"{name}.safetensors", module)
            write_json(folder / "flow.json", bundle.flow.as_data())
            if base is not None:
                write_pipeline(folder, base, bundle, modules)
        return Result(
            metrics={"passed": True, "components": len(modules), "pipeline": base.class_name if base else None},
            files={name: f"files/{name}" for name in modules},
        )


def write_single(file: Path, module: Any) -> None:
    """Write a denoiser's weights in the original repository's layout, read them back, compare all tensors."""
    file.parent.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in to_original(module).items()}, file, {"format": "pt"})
    again = from_original(module, file)
    if different := [name for name, value in module.state_dict().items() if not torch.equal(again[name], value)]:
        raise UserError(f"reloaded weights differ: {different[:3]}", where=str(file))


def save_and_prove(folder: Path, module: Any) -> None:
    """Write by ``save_pretrained``, reload, compare all tensors; what a config can't state is in ``pruning.json``."""
    module.save_pretrained(folder)
    try:
        again = _reload(folder, module)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the config of {type(module).__name__} can't express this model: {str(error).splitlines()[0]}",
            mend="Load the bundle with dit_compress.load instead",
        ) from error
    state, expected = again.state_dict(), module.state_dict()
    different = [name for name in expected if name not in state or not torch.equal(state[name], expected[name])]
    if different or state.keys() != expected.keys():
        raise UserError(f"reloaded weights differ: {different[:3]}", where=str(folder))


def _reload(folder: Path, like: Any) -> Any:
    if (folder / PRUNING).is_file():
        return load(folder)
    return type(like).from_pretrained(folder, local_files_only=True, torch_dtype=next(like.parameters()).dtype)
