"""prune, save, reload, prune again: in memory, in folders, in bundles, with and without this package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from fresh import run_fresh
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from toy import context_in, part, tiny_bundle

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_file
from dit_compress.model.bundle import Bundle
from dit_compress.model.cut import compact, example_output
from dit_compress.model.denoiser import Denoiser
from dit_compress.model.figures import count_parameters
from dit_compress.plugin.registry import installed
from dit_compress.pruning.prune import planned, prune_by_plan
from dit_compress.recipe import make_part
from dit_compress.run.base import BaseStep
from dit_compress.structure.apply import apply_edits
from dit_compress.structure.compact import LOG_NAME, relative_error
from dit_compress.structure.edits import KeepBlocks, edits_as_data, edits_from_data
from dit_compress.structure.empty import empty_weights
from dit_compress.structure.files.pruned import remember_log, shapes_of
from dit_compress.testing.models import tiny_denoiser

COUNTS: dict[str, Any] = {"remove": {"block": 1, "head": 1}, "keep": {"ffn": 0.75}}


def save_tiny(folder: Path, name: str = "ltx", dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The tiny model as a folder of diffusers."""
    module: Any = tiny_denoiser(name).module.to(dtype)
    module.save_pretrained(folder, **options)
    return module


def behind(module: Any, like: str = "ltx") -> Denoiser:
    """A module behind the convention of a tiny model."""
    denoiser = tiny_denoiser(like)
    denoiser.module = module.float()
    denoiser.forget_structure()
    return denoiser


def heterogeneous(name: str = "wan") -> Denoiser:
    """A denoiser pruned in place to other counts in each block, and what it takes to save it."""
    denoiser = tiny_denoiser(name)
    axes = [*_axes(denoiser, "head"), *_axes(denoiser, "ffn"), *_axes(denoiser, "block")]
    kept = {axis.name: tuple(range(axis.units - (axis.block or 0) - (axis.level == "block"))) for axis in axes}
    base = shapes_of(denoiser.module)
    remember_log(denoiser.module, base, [compact(denoiser, axes, kept)])
    return denoiser


def _axes(denoiser: Denoiser, level: str) -> list[Any]:
    return make_part("granularity", level, installed()).build().axes(denoiser.structure())


def same_state(found: Any, expected: Any) -> None:
    left, right = found.state_dict(), expected.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], value) and left[name].dtype == value.dtype for name, value in right.items())


# ------------------------------------------------------------------ in memory


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, dit_compress; print('torch' in sys.modules, hasattr(dit_compress, 'nothing'), dir(dit_compress))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("False False")
    assert "'load'" in printed
    assert "'prune'" in printed


@pytest.mark.parametrize("name", ["video_dit", "ltx", "wan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_is_pruned_in_place(name: str, dtype: torch.dtype) -> None:
    module = tiny_denoiser(name).module.to(dtype)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    pruned = dit_compress.prune(module, **COUNTS)
    assert pruned is module
    assert {value.dtype for value in module.state_dict().values()} == {dtype}
    found = behind(module, name).structure()
    assert (found.main.length, {item.heads for item in found.attentions}) == (2, {3})
    kept = set(before) - set(module.state_dict())
    assert kept, "a block is gone"


def test_a_size_is_met_from_below() -> None:
    module = tiny_denoiser("ltx").module
    budget = 0.7 * count_parameters(module)
    assert 0.99 * budget <= count_parameters(dit_compress.prune(module, params=budget, search="random")) <= budget


def test_a_denoiser_is_taken_as_it_is() -> None:
    denoiser = tiny_denoiser("wan")
    assert dit_compress.prune(denoiser, remove={"head": 2}) is denoiser.module
    assert {item.heads for item in denoiser.structure().attentions} == {2}


def test_a_module_of_no_plugin_is_refused_and_stays() -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"no model plugin knows Linear \(diffusers: .*video_dit: .*Give a Denoiser"):
        dit_compress.prune(module, **COUNTS)


def test_a_compaction_that_is_not_exact_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = tiny_denoiser("ltx").module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    monkeypatch.setattr("dit_compress.structure.compact.TOLERANCE", -1.0)
    with pytest.raises(UserError, match="masked and compact differ by .*not understood"):
        dit_compress.prune(module, **COUNTS, out=tmp_path / "out")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ folders


@pytest.mark.parametrize("name", ["ltx", "wan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_gives_the_folder_of_the_pruned_module(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    module = save_tiny(tmp_path / "whole", name, dtype, max_shard_size="60KB")
    made = dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small", shard_bytes=50_000)
    again = dit_compress.load(tmp_path / "small")
    assert type(made) is type(again) is type(module)
    assert not again.training
    same_state(made, dit_compress.prune(module, **COUNTS))
    same_state(again, made)
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1
    record = json.loads((tmp_path / "small" / "pruning.json").read_text())
    assert {file: entry["sha256"] for file, entry in record["files"].items()} == {
        file.name: sha256_file(file) for file in (tmp_path / "small").glob("*.safetensors")
    }
    whole, small = (json.loads((tmp_path / place / "config.json").read_text()) for place in ("whole", "small"))
    assert whole == small


def test_without_out_nothing_is_written(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    made = dit_compress.prune(tmp_path / "whole", **COUNTS)
    assert [item.name for item in tmp_path.iterdir()] == ["whole"]
    made.save_pretrained(tmp_path / "later")
    same_state(dit_compress.load(tmp_path / "later"), made)


def test_pruned_again_from_disk_the_log_holds_both(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "once")
    twice = dit_compress.prune(tmp_path / "once", remove={"head": 1}, keep={"ffn": 0.5}, out=tmp_path / "twice")
    record = json.loads((tmp_path / "twice" / "pruning.json").read_text())
    assert [entry["name"] for entry in record["log"]] == ["prune", "prune"]
    assert record["base"] == json.loads((tmp_path / "once" / "pruning.json").read_text())["base"]
    found = behind(dit_compress.load(tmp_path / "twice")).structure()
    assert (found.main.length, {item.heads for item in found.attentions}) == (2, {2})
    live = dit_compress.prune(
        dit_compress.prune(dit_compress.load(tmp_path / "once"), remove={"head": 1}, keep={"ffn": 0.5}),
        remove={"block": 1},
    )
    live.save_pretrained(tmp_path / "thrice")
    assert len(json.loads((tmp_path / "thrice" / "pruning.json").read_text())["log"]) == 3
    same_state(dit_compress.load(tmp_path / "thrice"), live)
    assert count_parameters(live) < count_parameters(twice)


def test_the_whole_plan_of_twice_pruned_repeats_on_the_base(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "once")
    dit_compress.prune(tmp_path / "once", remove={"head": 1}, out=tmp_path / "twice")
    prune_by_plan(tmp_path / "twice" / "pruning.json", tmp_path / "whole", tmp_path / "direct")
    same_state(dit_compress.load(tmp_path / "direct"), dit_compress.load(tmp_path / "twice"))


def test_torch_dtype_is_that_of_the_caller(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole", dtype=torch.bfloat16)
    dit_compress.prune(tmp_path / "whole", remove={"head": 1}, out=tmp_path / "small")
    wide = dit_compress.load(tmp_path / "small", torch_dtype=torch.float32)
    assert {value.dtype for value in wide.parameters()} == {torch.float32}
    assert {value.dtype for value in dit_compress.load(tmp_path / "small").parameters()} == {torch.bfloat16}


# ------------------------------------------------------------------ other counts in each block, a fresh process

LOOK = """\
import sys
package, *folders = sys.argv[1:]
if package == "blocked":
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("dit_compress", "dit_compress_plugins"):
                raise ImportError(f"{name} is not here")
    sys.meta_path.insert(0, Block())
    sys.path.insert(0, folders[0])
    from load_pruned import load
else:
    from dit_compress import load
import torch
for folder in folders:
    module = load(folder)
    inputs = torch.load(folder + ".inputs", weights_only=True)
    with torch.no_grad():
        output = module(**inputs, return_dict=False)[0]
    torch.save({"output": output, "class": type(module).__name__}, folder + ".output")
    module.save_pretrained(folder + "-saved")
assert (package == "blocked") == ("dit_compress" not in sys.modules)
"""


def inputs_of(denoiser: Denoiser) -> dict[str, Any]:
    torch.manual_seed(5)
    latent, sigma, cond = denoiser.example(1, denoiser.example_size)
    args, kwargs = denoiser.call(latent, sigma, cond)
    assert args == ()
    return {key: value for key, value in kwargs.items() if key != "return_dict"}


def with_tombstone() -> Denoiser:
    """A block is gone, and its place stays, as a plan with ``tombstones`` leaves it."""
    denoiser = tiny_denoiser("wan")
    base, edits = shapes_of(denoiser.module), [KeepBlocks("blocks", (0, 2), tombstones=True)]
    apply_edits(denoiser.module, edits)
    entry = {"name": LOG_NAME, "revision": 1, "data": {"kept": {}, "edits": edits_as_data(edits)}}
    remember_log(denoiser.module, base, [entry])
    return denoiser


def output_of(denoiser: Denoiser) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.module(**inputs_of(denoiser), return_dict=False)[0]


@pytest.mark.parametrize("package", ["blocked", "installed"])
def test_other_counts_in_each_block_reload_in_a_fresh_process(tmp_path: Path, package: str) -> None:
    denoisers = {"ltx": heterogeneous("ltx"), "wan": heterogeneous("wan"), "tombstone": with_tombstone()}
    for name, denoiser in denoisers.items():
        denoiser.module.save_pretrained(tmp_path / name)
        torch.save(inputs_of(denoiser), tmp_path / f"{name}.inputs")
    done = run_fresh(LOOK, package, *(tmp_path / name for name in denoisers), folder=tmp_path)
    assert done.status == 0, done.printed
    for name, denoiser in denoisers.items():
        found = torch.load(tmp_path / f"{name}.output", weights_only=True)
        assert found["class"] == type(denoiser.module).__name__
        assert relative_error(found["output"], output_of(denoiser)) < 1e-6
        same_state(dit_compress.load(tmp_path / f"{name}-saved"), denoiser.module)


@pytest.mark.parametrize("name", ["ltx", "wan"])
def test_those_counts_do_differ(name: str) -> None:
    structure = heterogeneous(name).structure()
    assert {item.heads for item in structure.attentions} == {4, 3}
    assert len({item.width for item in structure.feed_forwards}) == 2


# ------------------------------------------------------------------ in use


def sampled(transformer: Any) -> torch.Tensor:
    """Two guided steps of LTX's own pipeline."""
    pipeline = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None, text_encoder=None, tokenizer=None, transformer=transformer,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    text, mask = torch.randn(2, 1, 8, 16), torch.ones(1, 8)
    return pipeline(
        prompt_embeds=text[0], negative_prompt_embeds=text[1], prompt_attention_mask=mask,
        negative_prompt_attention_mask=mask, height=64, width=64, num_frames=9, num_inference_steps=2,
        output_type="latent", generator=torch.Generator().manual_seed(1),
    ).frames  # fmt: skip


def test_the_reloaded_model_samples_in_its_pipeline(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    made = dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    frames = sampled(dit_compress.load(tmp_path / "small"))
    assert torch.isfinite(frames).all()
    assert torch.equal(frames, sampled(made))


def test_a_whole_pipeline_folder_and_saving_a_pipeline(tmp_path: Path) -> None:
    save_tiny(tmp_path / "ltx" / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "ltx" / "scheduler")
    made = dit_compress.prune(tmp_path / "ltx", **COUNTS, out=tmp_path / "small")
    pipeline = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None, text_encoder=None, tokenizer=None, transformer=dit_compress.load(tmp_path / "small"),
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path / "pipeline")
    same_state(dit_compress.load(tmp_path / "pipeline" / "transformer"), made)


def test_a_pruned_model_is_fine_tuned_with_lora_merged_and_saved(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    module = dit_compress.load(tmp_path / "small")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = inputs_of(behind(module))
    tuned = get_peft_model(module, LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0", "net.0.proj", "net.2"]))
    optimizer = torch.optim.AdamW([item for item in tuned.parameters() if item.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = tuned(**inputs, return_dict=False)[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path / "tuned")
    again = dit_compress.load(tmp_path / "tuned")
    same_state(again, merged)
    assert any(not torch.equal(value, before[name]) for name, value in again.state_dict().items())


def test_diffusers_own_adapter_goes_into_a_pruned_model(tmp_path: Path) -> None:
    module = dit_compress.prune(tiny_denoiser("wan").module, **COUNTS)
    module.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    module.save_lora_adapter(tmp_path / "lora")
    rows = load_file(next((tmp_path / "lora").glob("*.safetensors")))
    assert {value.shape[0] for name, value in rows.items() if name.endswith("lora_B.weight")} == {36}


# ------------------------------------------------------------------ bundles


def test_a_bundle_gives_a_bundle(tmp_path: Path) -> None:
    source = tiny_bundle(tmp_path / "whole")
    made = dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    bundle = Bundle.open(tmp_path / "small")
    assert [step["step"] for step in bundle.lineage] == ["prune"]
    assert bundle.lineage[0]["inputs"] == {"input": source.digest()}
    same_state(bundle.denoiser().module, made)
    same_state(dit_compress.load(tmp_path / "small"), made)
    linked, original = (tmp_path / place / "text" / "config.json" for place in ("small", "whole"))
    assert linked.samefile(original)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["small", "whole"]
    again = dit_compress.prune(tmp_path / "small", remove={"head": 1})
    assert count_parameters(again) < count_parameters(made)


def test_a_pruned_folder_starts_a_recipe(tmp_path: Path) -> None:
    """The base step's bundle keeps the log of the folder, so that it loads again."""
    save_tiny(tmp_path / "whole", "wan")
    made = dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    part = make_part("model", {"use": "diffusers", "path": str(tmp_path / "small")}, installed())
    bundle = BaseStep({"model": part}).run(context_in(tmp_path / "step")).bundle
    same_state(bundle.denoiser().module, made)


# ------------------------------------------------------------------ refused, with nothing written


def _other_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_eps": 1e-3}))


def _other_class(folder: Path) -> None:
    shutil.rmtree(folder)
    save_tiny(folder, "wan")


def _other_shape(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({**state, "proj_out.weight": state["proj_out.weight"][:4].clone()}, file)


def _other_names(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["extra"] = state.pop("proj_out.bias")
    save_file(state, file)


OTHERS = {
    "config": (_other_config, "another config: its checksum differs"),
    "class": (_other_class, "the plan is for LTXVideoTransformer3DModel, this is 'WanTransformer3DModel'"),
    "shape": (_other_shape, r"'proj_out.weight' is \[4, 48\], the plan says \[8, 48\]"),
    "names": (_other_names, "'extra' is .*, the plan has no such tensor"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_plan_for_another_model_is_refused(tmp_path: Path, name: str) -> None:
    save_tiny(tmp_path / "whole")
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    change, message = OTHERS[name]
    change(tmp_path / "whole")
    with pytest.raises(UserError, match=message):
        prune_by_plan(tmp_path / "small", tmp_path / "whole", tmp_path / "again")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["small", "whole"]


def test_a_missing_shard_is_named_and_nothing_written(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole", max_shard_size="60KB")
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small", shard_bytes=50_000)
    for folder in ("whole", "small"):
        sorted((tmp_path / folder).glob("*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match=r"the shard diffusion_pytorch_model-00002-of-\d+.safetensors is missing"):
        dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "again")
    with pytest.raises(UserError, match=r"the shard diffusion_pytorch_model-00002-of-\d+.safetensors is missing"):
        prune_by_plan(tmp_path / "small", tmp_path / "whole", tmp_path / "again")
    with pytest.raises(UserError, match="00002-of-.*: the file is missing. Copy the folder again"):
        dit_compress.load(tmp_path / "small")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["small", "whole"]


def test_every_tensor_keeps_the_dtype_of_its_file(tmp_path: Path) -> None:
    """Norms in float32 among bfloat16; and a plan made on bfloat16 is repeated on float32."""
    save_tiny(tmp_path / "whole", "wan", torch.bfloat16)
    save_tiny(tmp_path / "wide", "wan")
    file = tmp_path / "whole" / "diffusion_pytorch_model.safetensors"
    state = {name: value.float() if "norm" in name else value for name, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    dit_compress.prune(tmp_path / "whole", remove={"head": 1}, out=tmp_path / "small")
    small = load_file(tmp_path / "small" / file.name)
    assert {name: value.dtype for name, value in small.items()} == {name: value.dtype for name, value in state.items()}
    assert len({value.dtype for value in small.values()}) == 2
    prune_by_plan(tmp_path / "small", tmp_path / "wide", tmp_path / "narrow")
    narrow = load_file(tmp_path / "narrow" / file.name)
    assert {value.dtype for value in narrow.values()} == {torch.float32}
    assert {name: value.shape for name, value in narrow.items()} == {n: value.shape for n, value in small.items()}


def _quantised(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({**state, "proj_out.weight": state["proj_out.weight"].to(torch.int8)}, file)


def _truncated(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def _no_weights(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (_quantised, COUNTS, "dtype I8: quantised weights can't be cut"),
        (_truncated, COUNTS, "truncated or changed"),
        (_no_weights, COUNTS, "no safetensors here"),
        (_no_config, COUNTS, "neither a bundle, a run, nor a diffusers folder"),
        (None, {"params": 10}, "The nearest that can be met is"),
        (None, {"remove": {"head": 4}}, "has 4 units and would keep 0"),
        (None, {}, "nothing says how much to prune"),
        (None, {"params": 1e5, "remove": {"head": 1}}, "a budget and counts at once"),
        (None, {**COUNTS, "search": "magnitud"}, "Did you mean 'magnitude'"),
        (None, {**COUNTS, "search": {"use": "groupwise", "steps": 1}}, "."),
    ],
)
def test_what_can_not_be_is_refused(tmp_path: Path, damage: Any, options: dict[str, Any], message: str) -> None:
    save_tiny(tmp_path / "whole")
    if damage is not None:
        damage(tmp_path / "whole")
    with pytest.raises(UserError, match=message):
        dit_compress.prune(tmp_path / "whole", **options, out=tmp_path / "small")
    assert [item.name for item in tmp_path.iterdir()] == ["whole"]


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    with pytest.raises(UserError, match="this exists already"):
        dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "whole")


def _changed(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _said(**entries: Any) -> Any:
    """Let a record say something else."""

    def damage(folder: Path) -> None:
        path = folder / "pruning.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return damage


def _logged(**entries: Any) -> Any:
    """Let a record's log be of one edit."""
    return _said(log=[{"name": "prune", "data": {"edits": [entries]}}])


def _swapped_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("LTXVideoTransformer3DModel", "WanTransformer3DModel"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed, "the checksum differs"),
        (_truncated, "truncated or changed"),
        (_no_weights, "the file is missing"),
        (_said(schema=99), "written with schema 99"),
        (_said(schema="99"), "not a whole record of a pruning. Copy the folder again"),
        (_said(files={"../x": {"bytes": 1, "sha256": ""}}), "not the record of a file: '../x'"),
        (_said(files={"x": {"bytes": 1}}), "not the record of a file: 'x'"),
        (_said(log=["prune"]), "pruning.json: not a whole plan: TypeError"),
        (_logged(edit="Take"), "not a whole plan: TypeError: Take.__init__"),
        (_logged(edit="Take", index=[[0, 2**40]]), "not a whole plan: ValueError: an edit keeps more than 67,108,864"),
        (_logged(edit="KeepBlocks", stack="nowhere", index=[[0, 1]]), "the plan does not fit the model"),
        (_swapped_config, "config.json is that of 'WanTransformer3DModel'"),
        (lambda folder: (folder / "pruning.json").unlink(), "neither a pruned model"),
        (lambda folder: (folder / "pruning.json").write_text("{}"), "not a whole record"),
        (lambda folder: (folder / "pruning.json").write_text("{"), "not valid JSON"),
    ],
)
def test_a_damaged_folder_is_not_loaded(tmp_path: Path, damage: Any, message: str) -> None:
    save_tiny(tmp_path / "whole")
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    damage(tmp_path / "small")
    with pytest.raises(UserError, match=message):
        dit_compress.load(tmp_path / "small")


@pytest.mark.parametrize("way", ["prune", "run"])
def test_a_damaged_folder_is_not_worked_on(tmp_path: Path, way: str) -> None:
    save_tiny(tmp_path / "whole")
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    _changed(tmp_path / "small")
    model = part("model", "diffusers", path=str(tmp_path / "small"))
    again = {
        "run": model.create,
        "prune": lambda: dit_compress.prune(tmp_path / "small", remove={"block": 1}, out=tmp_path / "twice"),
    }
    with pytest.raises(UserError, match=r"small/diffusion_pytorch_model.safetensors: the checksum differs"):
        again[way]()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["small", "whole"]
    with empty_weights():
        assert model.create() is not None, "a plan reads no weights"


def test_pickles_are_not_written(tmp_path: Path) -> None:
    module = dit_compress.prune(tiny_denoiser("wan").module, **COUNTS)
    with pytest.raises(UserError, match="saved as safetensors"):
        module.save_pretrained(tmp_path, safe_serialization=False)


def test_planned_reads_no_weights(tmp_path: Path) -> None:
    save_tiny(tmp_path / "whole")
    before, after = planned(tmp_path / "whole", **COUNTS)
    made = dit_compress.prune(tmp_path / "whole", **COUNTS)
    assert count_parameters(after.build_denoiser().module) == count_parameters(made)
    assert count_parameters(before.build_denoiser().module) == count_parameters(tiny_denoiser("ltx").module)


def test_the_edits_of_the_record_are_those_of_the_module(tmp_path: Path) -> None:
    denoiser = heterogeneous("wan")
    denoiser.module.save_pretrained(tmp_path / "small")
    record = json.loads((tmp_path / "small" / "pruning.json").read_text())
    again = tiny_denoiser("wan")
    apply_edits(again.module, edits_from_data(record["log"][0]["data"]["edits"]))
    again.forget_structure()
    assert relative_error(example_output(again), example_output(denoiser)) == 0
