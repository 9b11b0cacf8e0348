"""Gates on modules that observation finds: the contract, what is left and why, pruning before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import part

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.flow import Flow, euler
from dit_compress.model.skipping import gated_modules, skipping_euler
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress.testing.transforms import TransformContract
from dit_compress_plugins.model_video_dit.layers import Attention, Block

if TYPE_CHECKING:
    from pathlib import Path


class TestLazy(TransformContract):
    def step(self) -> Any:
        return part("transform", "lazy", num_steps=5, pool="sum")


def gated_bundle(folder: Path, bundle: Bundle, **options: Any) -> Bundle:
    result = part("transform", "lazy", **options).run(tiny_context(folder, input=bundle))
    assert result.bundle is not None
    return Bundle.open(result.bundle.path)


def test_gates_are_logged_with_their_schedule_and_change_no_weight(tmp_path: Path) -> None:
    before = tiny_bundle(tmp_path / "before")
    step = part("transform", "lazy", num_steps=5, modules=["ffn"])
    result = step.run(tiny_context(tmp_path / "step", input=before))
    assert result.metrics == {"gates": 3, "gated_calls": 15}
    after = Bundle.open(result.bundle.path)
    assert (after.flow.num_steps, after.flow.sampler) == (5, None)
    (entry,) = after.spec.need_denoiser().log
    assert (entry["name"], entry["revision"], entry["data"]["pool"]) == ("lazy", 1, "mean")
    assert entry["data"]["sigmas"] == list(after.flow.sigmas())
    assert entry["data"]["gates"][2] == {"module": "transformer_blocks.2.ff", "argument": 0, "width": 48}
    old, new = before.denoiser().module.state_dict(), after.denoiser().module.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items())
    added = {name: value for name, value in new.items() if name not in old}
    assert set(added) == {f"transformer_blocks.{i}.ff.skip_{what}" for i in range(3) for what in ("gate", "mean")}
    assert all(not value.any() if name.endswith("gate") else bool((value == 1).all()) for name, value in added.items())
    assert step.plan(before.spec).notes == ("3 modules get gates for 5 steps",)
    with pytest.raises(UserError, match="^the denoiser has gates already. Take the second 'transform: lazy' out"):
        step.plan(after.spec)
    with pytest.raises(UserError, match="the transform 'lazy' needs its plugin, and a pruned folder loads without any"):
        dit_compress.save(after.denoiser().module, tmp_path / "folder")


@pytest.mark.parametrize("first", ["prune", "gates"])
def test_pruning_before_and_after(first: str, tmp_path: Path) -> None:
    """Blocks, heads and channels go with gates on; those of what stays are as they were, and skip."""
    bundle = tiny_bundle(tmp_path / "bundle")
    levels = {"block": {"remove": 1}, "head": {"remove": 1}, "ffn": {"keep": 0.5, "units": 8}}
    steps = {
        "gates": part("transform", "lazy", num_steps=4),
        "prune": part("prune", "trilevel", levels=levels, search={"use": "random"}),
    }
    for name in sorted(steps, key=lambda name: name != first):
        result = steps[name].run(tiny_context(tmp_path / name, input=bundle))
        bundle = Bundle.open(result.bundle.path)
    denoiser = bundle.denoiser()
    assert len(gated_modules(denoiser.module)) == 6
    torch.manual_seed(0)
    noise, _, cond = denoiser.example(2, (2, 2, 2))
    sigmas = bundle.flow.sigmas()
    with torch.no_grad():
        assert torch.equal(skipping_euler(denoiser, noise, cond, sigmas)[0], euler(denoiser, noise, cond, sigmas))
        for owner in gated_modules(denoiser.module).values():
            torch.nn.init.normal_(owner.skip_gate, std=0.5)
        _, computed = skipping_euler(denoiser, noise, cond, sigmas)
    assert not all(bool(rows.all()) for rows in computed.values())


# ------------------------------------------------------------------ what is left


class Odd(Block):
    """The reference's block, written in another way."""

    how = ""

    def forward(self, x_BSD: Any, text_BLD: Any, table_B6D: Any, rope: Any, bias_B11L: Any) -> Any:
        shift1, scale1, gate1, shift3, scale3, gate3 = (self.scale_shift_table + table_B6D).chunk(6, dim=1)
        z = self.norm1(x_BSD) * (1 + scale1) + shift1
        y = Attention.forward(self.attn1, z, rope=rope) if self.how == "inside" else self.attn1(z, rope=rope)
        x_BSD = x_BSD + (y.mul_(gate1) if self.how == "writes" else gate1 * y)
        x_BSD = x_BSD + self.attn2(self.norm2(x_BSD), text_BLD, bias_B11L=bias_B11L)
        for _ in range(2 if self.how == "twice" else 1):
            x_BSD = x_BSD + gate3 * self.ff(self.norm3(x_BSD) * (1 + scale3) + shift3)
        return x_BSD


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("", {}),
        ("inside", {"attn1": "no module of its own inside the block is called for it"}),
        ("writes", {"attn1": "its block writes into what it gives"}),
        ("twice", {"ff": "one call of the model calls it 2 times"}),
    ],
)
def test_what_can_have_no_gate_is_named_and_left(how: str, left: dict[str, str]) -> None:
    denoiser = tiny_denoiser("video_dit", layers=1)
    (block,) = denoiser.module.transformer_blocks
    block.__class__ = type("Odd", (Odd,), {"how": how})
    entry, found = part("transform", "lazy").entry(denoiser, Flow())
    assert found == {f"transformer_blocks.0.{name}": why for name, why in left.items()}
    gates = [gate["module"].rpartition(".")[2] for gate in entry["data"]["gates"]]
    assert gates == [name for name in ("attn1", "attn2", "ff") if name not in left]


def test_where_none_can_have_one_it_is_refused() -> None:
    denoiser = tiny_denoiser("video_dit", layers=1)
    denoiser.module.transformer_blocks[0].__class__ = type("Odd", (Odd,), {"how": "twice"})
    with pytest.raises(UserError) as seen:
        part("transform", "lazy", modules=["ffn"]).entry(denoiser, Flow())
    assert str(seen.value) == (
        "no attention or FFN of VideoDiT can have a gate; left alone: transformer_blocks.0.ff (one call of the model "
        "calls it 2 times). Call each as a module inside its block, from tokens [B,S,D] to tokens"
    )
