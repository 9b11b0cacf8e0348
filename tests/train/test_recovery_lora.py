"""LoRA of every distiller: adapters alone move, resume is exact, a file that stock pipelines load, what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_parallel import objective, options_of, samples
from toy import batch, context_in, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.core.progress import quiet
from dit_compress.model.flow import Flow
from dit_compress.model.twins import write_twin
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.structure.files.digest import digest_of
from dit_compress.structure.files.lora import BASE
from dit_compress.structure.files.tensor_files import open_weights
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train import distill as engine
from dit_compress.train.held import Eighths, hold
from dit_compress.train.loop import fit
from dit_compress.train.lora import FILE, adapt, fold, take_off, without, write_lora
from dit_compress.train.objective import Role
from dit_compress.train.options import Lora
from dit_compress.train.targets import count, linears, targets_of
from dit_compress_plugins.distill_lazy import LazyOptions
from dit_compress_plugins.distill_lazy.objective import LazyObjective

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser

OPTIONS = {"steps": 4, "batch": 4, "lr": 1e-2, "warmup": 0, "ema": 0.5, "checkpoint_every": 2}


def distilled(folder: Path, bundle: Any, **lora: Any) -> Any:
    """What ``distill: flow`` with LoRA makes of a bundle."""
    context = context_in(folder, input=bundle)
    context.latents = lambda _split, _text: samples()
    return engine.distill(part("distill", "flow", **OPTIONS, lora={"rank": 2, **lora}), context)


def gated() -> Denoiser:
    denoiser, step = tiny_denoiser("video_dit"), part("transform", "lazy")
    step.replay(denoiser.module, step.entry(denoiser, Flow(3.0, 4, 2.0))[0]["data"])
    denoiser.forget_structure()
    return denoiser


def answers(denoiser: Denoiser) -> torch.Tensor:
    given = batch(words())
    with torch.no_grad():
        return denoiser.eval()(given.x0, torch.full((4,), 0.5), words()(given.tokens))


@pytest.mark.parametrize("base", ["float32", "int8"])
def test_a_step_gives_folded_weights_and_a_file_and_resumes_bit_for_bit(tmp_path: Path, base: str) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    result = distilled(tmp_path / "whole", bundle, alpha=6, base=base, targets=["to_q", "*.ff.*"])
    state, old = (each.denoiser().module.state_dict() for each in (result.bundle, bundle))
    lora = load_file(tmp_path / "whole" / result.files["lora"])
    assert result.files == {"lora": FILE}
    with safe_open(tmp_path / "whole" / FILE, "pt") as file:
        assert file.metadata() == {BASE: digest_of(open_weights(bundle.path / "denoiser"))}
    moved = {name for name in old if not torch.equal(old[name], state[name])}
    assert moved == {
        name.removeprefix("transformer.").replace(".lora_B", "") for name in lora if name.endswith("lora_B.weight")
    }
    assert len(moved) == 3 * 4, "queries of both attentions, and both linears of the FFN"
    assert all(".to_q." in name or ".ff." in name for name in moved)
    for name in moved:
        key = f"transformer.{name.removesuffix('.weight')}.lora_"
        torch.testing.assert_close(state[name], old[name] + lora[f"{key}B.weight"] @ lora[f"{key}A.weight"])
    assert result.bundle.weights("text") == bundle.weights("text"), "a new encoder is not trained beside LoRA"

    places = tmp_path / "whole" / "checkpoints"
    (place,) = places.iterdir()
    names = json.loads((place / "state.json").read_text())["tensors"]
    assert {name.split("/")[1] for name in names} == {"weight", "average", "exp_avg", "exp_avg_sq"}
    assert all(".lora_" in name for name in names), "adapters alone"
    shutil.copytree(places, tmp_path / "again" / "checkpoints")
    again = distilled(tmp_path / "again", bundle, alpha=6, base=base, targets=["to_q", "*.ff.*"])
    assert again.bundle.digest() == result.bundle.digest()
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


@pytest.mark.parametrize("kind", ["affine", "adversarial", "dmd", "scaled", "reward", "elastic", "lazy"])
def test_in_every_distiller_the_base_stays(tmp_path: Path, kind: str) -> None:
    if kind == "lazy":
        options = LazyOptions(steps=4, batch=4, lora={"rank": 2})
        made: Any = LazyObjective(options, gated(), words(), Flow(3.0, 4, 2.0))
        made.options = options
    else:
        made = objective(kind, "video_dit", options_of(kind, lora={"rank": 2}))
    adapt(made.roles, made.options.lora, 0)
    named = dict(made.student.named_parameters())
    before = {name: value.detach().clone() for name, value in named.items()}
    fit(made, samples(), made.options, context_in(tmp_path))
    moved = {name for name, value in named.items() if not torch.equal(value, before[name])}
    lora = {name for name in named if ".lora_" in name}
    assert moved - lora == ({n for n in named if n.endswith("skip_gate")} if kind == "lazy" else set())
    assert len(lora & moved) > len(lora) / 2
    assert made.roles["student"].trained().keys() <= lora | {name for name in named if name.endswith("skip_gate")}
    with_lora = answers(made.student)
    with without(made.student.module):
        assert not torch.equal(answers(made.student), with_lora)
    torch.testing.assert_close(answers(made.student), with_lora, rtol=0, atol=0)
    fold(take_off(made.student.module))
    torch.testing.assert_close(answers(made.student), with_lora, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["LTX-Video", "Wan2.1-T2V-1.3B", "FLUX.1-dev"])
def test_a_stock_pipeline_with_the_file_computes_what_the_folded_model_does(model: str, tmp_path: Path) -> None:
    write_twin(model, tmp_path / "twin")
    plugin = make_part("model", {"use": "diffusers", "path": str(tmp_path / "twin")}, installed()).build()
    denoiser = plugin.denoiser(plugin.create())
    adapt({"student": Role(denoiser, lr=1.0)}, Lora(rank=2, alpha=6), 0)
    torch.manual_seed(1)
    for name, value in denoiser.named_parameters():
        torch.nn.init.normal_(value, std=0.1) if ".lora_B." in name else None
    write_lora(denoiser.module.eval(), tmp_path / FILE, "x")
    example = denoiser.example(1, denoiser.example_size)
    with torch.no_grad():
        with without(denoiser.module):
            base = denoiser(*example)
        fold(take_off(denoiser.module))
        folded = denoiser(*example)
        with quiet():
            pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "twin")
            pipeline.load_lora_weights(tmp_path)
        stock = copy.copy(denoiser)
        stock.__dict__["_modules"] = {**denoiser._modules, "module": pipeline.transformer.eval()}
        torch.testing.assert_close(stock(*example), folded, rtol=1e-4, atol=1e-5)
    assert float((folded - base).abs().max()) > 0.05
    assert sum(".lora_A." in name for name in load_file(tmp_path / FILE)) == len(linears(denoiser))


def test_what_is_counted_and_refused() -> None:
    denoiser = tiny_denoiser("video_dit")
    lora = Lora(rank=2, targets=("to_q", "transformer_blocks.1.ff.*"))
    sides = [sum(denoiser.module.get_submodule(name).weight.shape) for name in targets_of(denoiser, lora)]
    assert len(sides) == 3 * 2 + 2
    assert count(denoiser, lora) == 2 * sum(sides)
    size = sum(value.numel() for value in denoiser.parameters())
    step = part("distill", "flow", lora={"rank": 2, "targets": ["to_q", "transformer_blocks.1.ff.*"]})
    assert step.num_parameters(denoiser) == (size + 2 * sum(sides), 2 * sum(sides))
    with pytest.raises(UserError, match="'to_query' of 'targets' of 'lora' names no linear .*'to_q'"):
        targets_of(denoiser, Lora(rank=2, targets=("to_query", "to_k")))
    with pytest.raises(UserError, match="'rank: 64' of 'lora' is larger than the smaller side of '.*', 48"):
        targets_of(denoiser, Lora())
    with pytest.raises(UserError, match="at least 1 for 'lora.rank' of distill 'flow', got 0"):
        part("distill", "flow", lora={"rank": 0})


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_teacher_in_fewer_bytes_answers_alike(dtype: str) -> None:
    whole = tiny_denoiser("video_dit")
    kept = hold(copy.deepcopy(whole), dtype)
    error = (answers(kept) - answers(whole)).norm() / answers(whole).norm()
    assert 0 < float(error) < 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        one, other = answers(kept), answers(whole)
    assert torch.equal(one, other) is (dtype == "bfloat16"), "there a product takes the weights in bfloat16 anyway"
    inside = {id(whole.module.get_submodule(name).weight): name for name in linears(whole)}
    matrices = sum(value.numel() for value in whole.parameters() if id(value) in inside)
    saved = sum(v.numel() * v.element_size() for v in whole.parameters()) - sum(
        v.numel() * v.element_size() for v in kept.parameters()
    )
    rows = sum(whole.module.get_submodule(name).out_features for name in linears(whole))
    assert saved == (2 * matrices if dtype == "bfloat16" else 3 * matrices - 4 * rows)
    q, scale = Eighths().right_inverse(torch.tensor([[2.0, -254.0], [0.0, 0.0]]))
    assert (q.tolist(), scale.tolist()) == ([[1, -127], [0, 0]], [[2.0], [1.0]])
