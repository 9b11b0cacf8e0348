"""Weights in the layout of a model's original repository, one safetensors file: what ComfyUI and others read.

One table a class, read both ways: a tensor of the original has another name, is several of diffusers' joined along its
rows (q, k and v), or has its halves in the other order. Tested against the converters that diffusers ships.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dit_compress.core.errors import UserError
from dit_compress.structure.files.tensor_files import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

PREFIX = "model.diffusion_model."
"""What stands before every name where a file holds more than the transformer."""


class Rule(NamedTuple):
    """Names of diffusers that match, the original's name, its place among those joined, whether halves are swapped."""

    pattern: str
    original: str
    place: int = 0
    swapped: bool = False


def _renamed(*pairs: tuple[str, str]) -> list[Rule]:
    """Return rules of modules that have another name, for weight and bias."""
    return [Rule(rf"{theirs}\.(weight|bias)", rf"{original}.\{_groups(theirs) + 1}") for theirs, original in pairs]


def _groups(pattern: str) -> int:
    return re.compile(pattern).groups


_WAN_BLOCK = r"blocks\.(\d+)\."
WAN = [
    *_renamed(
        (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
        (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
        (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
        (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
        (r"condition_embedder\.time_proj", "time_projection.1"),
        (r"condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
        (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
        (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
        (r"condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
        ("proj_out", "head.head"),
        ("patch_embedding", "patch_embedding"),
        (_WAN_BLOCK + r"attn1\.to_out\.0", r"blocks.\1.self_attn.o"),
        (_WAN_BLOCK + r"attn2\.to_out\.0", r"blocks.\1.cross_attn.o"),
        (_WAN_BLOCK + r"attn1\.(?:to_)?(q|k|v|norm_q|norm_k)", r"blocks.\1.self_attn.\2"),
        (_WAN_BLOCK + r"attn2\.(?:to_)?(q|k|v|norm_q|norm_k)", r"blocks.\1.cross_attn.\2"),
        (_WAN_BLOCK + r"attn2\.add_(k|v)_proj", r"blocks.\1.cross_attn.\2_img"),
        (_WAN_BLOCK + r"attn2\.norm_added_k", r"blocks.\1.cross_attn.norm_k_img"),
        (_WAN_BLOCK + r"ffn\.net\.0\.proj", r"blocks.\1.ffn.0"),
        (_WAN_BLOCK + r"ffn\.net\.2", r"blocks.\1.ffn.2"),
        (_WAN_BLOCK + r"norm2", r"blocks.\1.norm3"),
    ),
    Rule(_WAN_BLOCK + "scale_shift_table", r"blocks.\1.modulation"),
    Rule("scale_shift_table", "head.modulation"),
]
LTX = [
    Rule(r"proj_in\.(.*)", PREFIX + r"patchify_proj.\1"),
    Rule(r"time_embed\.(.*)", PREFIX + r"adaln_single.\1"),
    Rule(r"(.*)\.norm_(q|k)\.(.*)", PREFIX + r"\1.\2_norm.\3"),
    Rule(r"(transformer_blocks|caption_projection|proj_out)\.(.*)", PREFIX + r"\1.\2"),
    Rule("scale_shift_table", PREFIX + "scale_shift_table"),
]
_DOUBLE, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."


def _joined(block: str, original: str, *names: str) -> list[Rule]:
    """Return rules of modules whose rows the original holds in one."""
    return [Rule(rf"{block}{name}\.(weight|bias)", rf"{original}.\2", place) for place, name in enumerate(names)]


FLUX = [
    *_renamed(
        (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
        (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
        ("context_embedder", "txt_in"),
        ("x_embedder", "img_in"),
        ("proj_out", "final_layer.linear"),
        (_DOUBLE + r"norm1\.linear", r"double_blocks.\1.img_mod.lin"),
        (_DOUBLE + r"norm1_context\.linear", r"double_blocks.\1.txt_mod.lin"),
        (_DOUBLE + r"ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.0"),
        (_DOUBLE + r"ff\.net\.2", r"double_blocks.\1.img_mlp.2"),
        (_DOUBLE + r"ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.0"),
        (_DOUBLE + r"ff_context\.net\.2", r"double_blocks.\1.txt_mlp.2"),
        (_DOUBLE + r"attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
        (_DOUBLE + r"attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
        (_SINGLE + r"norm\.linear", r"single_blocks.\1.modulation.lin"),
        (_SINGLE + "proj_out", r"single_blocks.\1.linear2"),
    ),
    *_joined(_DOUBLE, r"double_blocks.\1.img_attn.qkv", r"attn\.to_q", r"attn\.to_k", r"attn\.to_v"),
    *_joined(_DOUBLE, r"double_blocks.\1.txt_attn.qkv", r"attn\.add_q_proj", r"attn\.add_k_proj", r"attn\.add_v_proj"),
    *_joined(_SINGLE, r"single_blocks.\1.linear1", r"attn\.to_q", r"attn\.to_k", r"attn\.to_v", "proj_mlp"),
    Rule(_DOUBLE + r"attn\.norm_q\.weight", r"double_blocks.\1.img_attn.norm.query_norm.scale"),
    Rule(_DOUBLE + r"attn\.norm_k\.weight", r"double_blocks.\1.img_attn.norm.key_norm.scale"),
    Rule(_DOUBLE + r"attn\.norm_added_q\.weight", r"double_blocks.\1.txt_attn.norm.query_norm.scale"),
    Rule(_DOUBLE + r"attn\.norm_added_k\.weight", r"double_blocks.\1.txt_attn.norm.key_norm.scale"),
    Rule(_SINGLE + r"attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    Rule(_SINGLE + r"attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    Rule(r"norm_out\.linear\.(weight|bias)", r"final_layer.adaLN_modulation.1.\1", swapped=True),
]
TABLES = {"WanTransformer3DModel": WAN, "LTXVideoTransformer3DModel": LTX, "FluxTransformer2DModel": FLUX}


class Parts(NamedTuple):
    """The tensors of diffusers that one of the original's is made of, in order."""

    names: tuple[str, ...]
    swapped: bool


def layout(module: nn.Module) -> dict[str, Parts]:
    """Return what each tensor of the original is made of; UserError where class or tensor is not known."""
    name = need_table(type(module).__name__)
    found: dict[str, list[tuple[int, str, bool]]] = {}
    for each in module.state_dict():
        rule = next((rule for rule in TABLES[name] if re.fullmatch(rule.pattern, each)), None)
        if rule is None:
            raise UserError(f"the original layout of {name} has no place for {each!r}", mend="Leave 'single_file' out")
        original = re.sub(rule.pattern, rule.original, each, count=1)
        found.setdefault(original, []).append((rule.place, each, rule.swapped))
    return {
        original: Parts(tuple(each for _, each, _ in sorted(parts)), parts[0][2]) for original, parts in found.items()
    }


def need_table(name: str) -> str:
    """Return the name of a class whose original layout is known; UserError for any other."""
    if name not in TABLES:
        raise UserError(
            f"the original layout of {name} is not known", mend=f"There are those of: {', '.join(sorted(TABLES))}"
        )
    return name


def to_original(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors in the original layout."""
    state = module.state_dict()
    return {
        original: _swapped(torch.cat([state[name] for name in parts.names])) if parts.swapped
        else torch.cat([state[name] for name in parts.names]) if len(parts.names) > 1
        else state[parts.names[0]]
        for original, parts in layout(module).items()
    }  # fmt: skip


def from_original(module: nn.Module, file: Path) -> dict[str, Tensor]:
    """Read a module's tensors out of a file of the original layout, with a prefix or without.

    Args:
        module: of the file's shape; it may be without weights.
        file: of safetensors; what else is in it (a VAE) is passed over.

    Raises:
        UserError: the file is not whole, lacks a tensor, or has it in another shape.
    """
    from safetensors import safe_open

    shapes = {name: value.shape for name, value in module.state_dict().items()}
    _, stored = read_header(file)
    state: dict[str, Tensor] = {}
    with safe_open(str(file), "pt") as opened:
        for original, parts in layout(module).items():
            name = _stored_as(original, stored)
            if name is None:
                raise UserError(
                    f"the file lacks {original!r}", where=str(file), mend="Give the file of a model of this config"
                )
            value, rows = opened.get_tensor(name), [shapes[part][0] for part in parts.names]
            wanted = [sum(rows), *shapes[parts.names[0]][1:]]
            if list(value.shape) != wanted:
                raise UserError(
                    f"{name!r} is {list(value.shape)} in the file, {wanted} by the config",
                    where=str(file),
                    mend="Give the file of a model of this config",
                )
            value = _swapped(value) if parts.swapped else value
            state |= {part: piece.clone() for part, piece in zip(parts.names, value.split(rows), strict=True)}
    return state


def _stored_as(original: str, stored: Mapping[str, Any]) -> str | None:
    bare = original.removeprefix(PREFIX)
    return next((name for name in (bare, PREFIX + bare) if name in stored), None)


def _swapped(value: Tensor) -> Tensor:
    """Return the halves in the other order: scale and shift of diffusers are shift and scale of the original."""
    return torch.cat(tuple(reversed(value.chunk(2))))
