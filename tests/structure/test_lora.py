"""A LoRA pruned by the edit table: base + LoRA pruned equals the merged model pruned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dit_compress.core.errors import UserError
from dit_compress.model.cut import example_output
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import relative_error
from dit_compress.structure.edits import KeepBlocks, Scale, Take
from dit_compress.structure.files.lora import prune_lora
from dit_compress.structure.files.pruned import shapes_of
from dit_compress.testing.models import tiny_denoiser

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_out"]


def randomised(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    return model


def with_lora(name: str, **options: Any) -> tuple[Any, Any]:
    """A tiny denoiser, and the same with a random LoRA around its module."""
    denoiser = tiny_denoiser(name)
    return denoiser, randomised(get_peft_model(denoiser.module, LoraConfig(r=3, target_modules=TARGETS, **options)))


def merged(denoiser: Any, model: Any) -> Any:
    denoiser.module = model.merge_and_unload()
    return denoiser


def add(state: dict[str, torch.Tensor], lora: dict[str, torch.Tensor], a: str, b: str, scale: float) -> None:
    """``W += scale·B·A`` by hand, an independent merge."""
    for key, up in lora.items():
        if key.endswith(b):
            module = key.removesuffix(b)
            path = module.removeprefix("base_model.model.").removeprefix("transformer.")
            state[f"{path}.weight"] += scale * up @ lora[module + a]


@pytest.mark.parametrize("name", ["video_dit", "ltx", "wan"])
@pytest.mark.parametrize("style", ["peft", "diffusers", "old", "comfy", "kohya"])
def test_pruned_lora_equals_pruned_merged_model(tmp_path: Path, name: str, style: str) -> None:
    whole, model = with_lora(name, lora_alpha=6)
    base = shapes_of(tiny_denoiser(name).module)
    state = get_peft_model_state_dict(model)
    a, b, prefix = {
        "peft": (".lora_A.weight", ".lora_B.weight", "base_model.model."),
        "diffusers": (".lora_A.weight", ".lora_B.weight", "transformer."),
        "old": (".lora.down.weight", ".lora.up.weight", "transformer."),
        "comfy": (".lora_down.weight", ".lora_up.weight", "diffusion_model."),
        "kohya": (".lora_down.weight", ".lora_up.weight", "lora_unet_"),
    }[style]
    state = {
        prefix + key.removeprefix("base_model.model.").replace(".lora_A.weight", a).replace(".lora_B.weight", b): value
        for key, value in state.items()
    }
    if style == "kohya":
        state = {
            key.split(".lora")[0].replace(".", "_") + ".lora" + key.split(".lora")[1]: x for key, x in state.items()
        }
    save_file(state, tmp_path / "lora.safetensors", metadata={"format": "pt"})
    edits = _edits(name)
    prune_lora(tmp_path / "lora.safetensors", tmp_path / "small.safetensors", edits, base)

    expected = merged(whole, model)
    apply_edits(expected.module, edits)
    expected.forget_structure()
    small = tiny_denoiser(name)
    apply_edits(small.module, edits)
    small.forget_structure()
    before = example_output(small)
    weights, lora = small.module.state_dict(), load_file(tmp_path / "small.safetensors")
    assert 0 < len(lora) < len(state)
    if style == "kohya":
        assert all(key.startswith("lora_unet_") and key.count(".") == 2 for key in lora)
        paths = {path.replace(".", "_"): path for path, _ in small.module.named_modules()}
        lora = {
            paths[key.split(".")[0].removeprefix("lora_unet_")] + key[key.index(".") :]: x for key, x in lora.items()
        }
    if style == "comfy":
        lora = {key.removeprefix("diffusion_model."): value for key, value in lora.items()}
    add(weights, lora, a, b, scale=6 / 3)
    small.module.load_state_dict(weights)
    reference = example_output(expected)
    assert relative_error(before, reference) > 1e-2, "the LoRA must change the output, or the test proves nothing"
    assert relative_error(example_output(small), reference) < 3e-6


def _edits(name: str) -> list[Any]:
    """Blocks, heads and channels together, as compiled for the model itself."""
    from dit_compress.structure.compact import block_axis
    from dit_compress.structure.edits import compile_edits
    from dit_compress_plugins.granularity_ffn.axes import ffn_axis
    from dit_compress_plugins.granularity_head.axes import head_axis

    denoiser = tiny_denoiser(name)
    found = denoiser.structure()
    axes = [block_axis(found.main), *map(head_axis, found.attentions), *map(ffn_axis, found.feed_forwards)]
    kept = {axis.name: tuple(unit for unit in range(axis.units) if unit % 3 != 1) for axis in axes}
    return compile_edits(denoiser.module, axes, kept)


def test_what_is_added_to_whole_tensors_follows(tmp_path: Path) -> None:
    """ComfyUI's ``diff`` and ``diff_b``; a text encoder's factors stay."""
    base = {"blocks.0.a.weight": [4, 3], "blocks.0.a.bias": [4], "blocks.1.a.weight": [4, 3], "blocks.1.a.bias": [4]}
    weight, bias, text = torch.randn(4, 3), torch.randn(4), torch.randn(2, 2)
    state = {
        "diffusion_model.blocks.1.a.diff": weight, "diffusion_model.blocks.1.a.diff_b": bias,
        "diffusion_model.blocks.0.a.diff_b": bias.clone(), "lora_te_x.lora_down.weight": text,
    }  # fmt: skip
    save_file(state, tmp_path / "lora.safetensors")
    edits = [Take("blocks.1.a.weight", 0, (0, 2)), Take("blocks.1.a.bias", 0, (0, 2)), KeepBlocks("blocks", (1,))]
    prune_lora(tmp_path / "lora.safetensors", tmp_path / "small.safetensors", edits, base)
    found = load_file(tmp_path / "small.safetensors")
    assert found.keys() == {
        "diffusion_model.blocks.0.a.diff",
        "diffusion_model.blocks.0.a.diff_b",
        "lora_te_x.lora_down.weight",
    }
    assert torch.equal(found["diffusion_model.blocks.0.a.diff"], weight[[0, 2]])
    assert torch.equal(found["diffusion_model.blocks.0.a.diff_b"], bias[[0, 2]])


def test_peft_loads_the_pruned_folder_into_the_pruned_model(tmp_path: Path) -> None:
    whole, model = with_lora("ltx", lora_alpha=6, rank_pattern={"transformer_blocks.2.attn1.to_q": 5, "to_v": 2})
    model.save_pretrained(tmp_path / "lora")
    edits = _edits("ltx")
    prune_lora(tmp_path / "lora", tmp_path / "small", edits, shapes_of(tiny_denoiser("ltx").module))
    small = tiny_denoiser("ltx")
    apply_edits(small.module, edits)
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"transformer_blocks.1.attn1.to_q": 5, "to_v": 2}
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(small.module, tmp_path / "small")
    small.forget_structure()
    small.module = loaded.merge_and_unload()
    expected = merged(whole, model)
    apply_edits(expected.module, edits)
    expected.forget_structure()
    assert relative_error(example_output(small), example_output(expected)) < 3e-6


# ------------------------------------------------------------------ by hand


BASE = {"blocks.0.a.weight": (4, 3), "blocks.1.a.weight": (4, 3), "blocks.1.a.bias": (4,), "out.weight": (2, 4)}
BASE |= {"blocks.1.b.c.weight": (3, 3), "both.in_proj_weight": (6, 2), "conv.weight": (4, 3, 1, 2)}


def lora_file(tmp_path: Path, **tensors: torch.Tensor) -> Path:
    path = tmp_path / "lora.safetensors"
    config = {"transformer.r": 2, "transformer.alpha_pattern": {"blocks.0.a": 1, "blocks.1.a": 4}}
    save_file(
        {name.replace("__", "."): value for name, value in tensors.items()},
        path,
        metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config)},
    )
    return path


def test_rows_columns_factors_and_names_by_hand(tmp_path: Path) -> None:
    down, up = torch.arange(6.0).reshape(2, 3), torch.arange(8.0).reshape(4, 2)
    source = lora_file(
        tmp_path,
        transformer__blocks__1__a__lora_A__weight=down,
        transformer__blocks__1__a__lora_B__weight=up,
        transformer__blocks__1__a__lora_B__bias=torch.arange(4.0),
        transformer__blocks__1__a__alpha=torch.tensor(4.0),
        transformer__blocks__0__a__lora_A__weight=down.clone(),
        transformer__out__modules_to_save__weight=torch.arange(8.0).reshape(2, 4),
        text_encoder__x__lora_A__weight=down.clone(),
    )
    edits = [
        Take("blocks.1.a.weight", 0, (0, 3)),
        Take("blocks.1.a.bias", 0, (0, 3)),
        Take("blocks.1.a.weight", 1, (2,)),
        Scale("blocks.1.a.weight", 0.5),
        Take("out.weight", 1, (1, 2)),
        KeepBlocks("blocks", (1,)),
    ]
    prune_lora(source, tmp_path / "new" / "small.safetensors", edits, BASE)
    found = load_file(tmp_path / "new" / "small.safetensors")
    assert {name: value.tolist() for name, value in found.items()} == {
        "transformer.blocks.0.a.lora_A.weight": [[2.0], [5.0]],
        "transformer.blocks.0.a.lora_B.weight": [[0.0, 0.5], [3.0, 3.5]],
        "transformer.blocks.0.a.lora_B.bias": [0.0, 3.0],
        "transformer.blocks.0.a.alpha": 4.0,
        "transformer.out.modules_to_save.weight": [[1.0, 2.0], [5.0, 6.0]],
        "text_encoder.x.lora_A.weight": down.tolist(),
    }
    with safe_open(tmp_path / "new" / "small.safetensors", "pt") as opened:
        config = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert config == {"transformer.r": 2, "transformer.alpha_pattern": {"blocks.0.a": 4}}


def test_a_module_saved_whole_follows_all_edits_of_its_tensors(tmp_path: Path) -> None:
    """However deep it is, and whether or not peft has put the adapter's name after ``modules_to_save``."""
    weight = torch.arange(9.0).reshape(3, 3)
    names = ["t.blocks.1.b.modules_to_save.c.weight", "t.blocks.1.b.modules_to_save.default.c.weight"]
    for name in names:
        save_file({name: weight}, tmp_path / "lora.safetensors")
        edits = [Take("blocks.1.b.c.weight", 0, (0, 2)), Scale("blocks.1.b.c.weight", 2.0), KeepBlocks("blocks", (1,))]
        prune_lora(tmp_path / "lora.safetensors", tmp_path / "small.safetensors", edits, BASE)
        found = load_file(tmp_path / "small.safetensors")
        assert {key: value.tolist() for key, value in found.items()} == {
            name.replace("blocks.1", "blocks.0"): [[0.0, 2.0, 4.0], [12.0, 14.0, 16.0]]
        }


def test_a_config_that_names_a_module_of_modules_follows(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    config = {"modules_to_save": ["blocks.0.a", "blocks.1.b", "out", "blocks"]}
    save_file({"out.lora_B.weight": torch.ones(2, 2)}, path, metadata={"adapter": json.dumps(config)})
    prune_lora(path, tmp_path / "small.safetensors", [KeepBlocks("blocks", (1,))], BASE)
    with safe_open(tmp_path / "small.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["adapter"]) == {"modules_to_save": ["blocks.0.b", "out", "blocks"]}


def test_a_cut_that_no_factor_has_is_refused(tmp_path: Path) -> None:
    source = lora_file(tmp_path, conv__lora_A__weight=torch.ones(2, 3, 1, 2))
    with pytest.raises(UserError, match="axis 3 of its weight is cut.*Merge the LoRA into the model"):
        prune_lora(source, tmp_path / "small.safetensors", [Take("conv.weight", 3, (0,))], BASE)


def test_a_dora_follows_rows_and_is_refused_where_columns_go(tmp_path: Path) -> None:
    source = lora_file(
        tmp_path,
        blocks__0__a__lora_A__weight=torch.ones(2, 3),
        blocks__0__a__lora_B__weight=torch.ones(4, 2),
        blocks__0__a__lora_magnitude_vector=torch.arange(4.0),
    )
    prune_lora(source, tmp_path / "rows.safetensors", [Take("blocks.0.a.weight", 0, (1, 2))], BASE)
    assert load_file(tmp_path / "rows.safetensors")["blocks.0.a.lora_magnitude_vector"].tolist() == [1.0, 2.0]
    with pytest.raises(UserError, match="DoRA magnitude.*Merge the DoRA into the model"):
        prune_lora(source, tmp_path / "no.safetensors", [Take("blocks.0.a.weight", 1, (1, 2))], BASE)
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"elsewhere__a__lora_A__weight": torch.ones(2, 3)}, "belongs to no module of the model"),
        ({"blocks__0__a__lora_X": torch.ones(2, 3)}, "belongs to no module of the model"),
        ({"blocks__0__a__lora_A__weight": torch.ones(2, 5)}, r"is \[2, 5\], the model's 'blocks.0.a.weight' \[4, 3\]"),
        ({"out__modules_to_save__weight": torch.ones(2, 5)}, r"is \[2, 5\], the model's 'out.weight' \[2, 4\]"),
        (
            {"both__lora_B__weight": torch.ones(6, 2)},
            "changes 'both.in_proj_weight', which can't follow. Merge the LoRA",
        ),
        ({"blocks__0__a__lora_B__weight": torch.ones(5, 2)}, r"is \[5, 2\], the model's 'blocks.0.a.weight' \[4, 3\]"),
    ],
)
def test_a_lora_of_another_model_is_refused(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prune_lora(lora_file(tmp_path, **tensors), tmp_path / "small.safetensors", [], BASE)
    assert [item.name for item in tmp_path.iterdir()] == ["lora.safetensors"]
