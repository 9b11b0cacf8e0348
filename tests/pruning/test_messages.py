"""What a user is told: the word ``record``, sizes, streams, broken plugins, weights that are not finite, levels left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command import here
from safetensors.torch import load_file, save_file
from test_own_save import Body, OfTransformers, TinyConfig, recorded
from torch import Tensor, nn

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.figures import count_parameters
from dit_compress.testing.models import tiny_denoiser


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        status, out, err = here(capsys, monkeypatch, *arguments)
        return int(status or 0), out, err

    return command


def test_a_folder_that_nobody_knows_names_record(run: Any) -> None:
    OfTransformers(TinyConfig()).save_pretrained("theirs")
    Path("weights").mkdir()
    save_file(Body().state_dict(), "weights/model.safetensors")
    for folder in ("theirs", "weights"):
        for command in (["inspect", folder], ["prune", folder, "--params", "50%", "--dry-run"]):
            status, _, printed = run(*command)
            assert status == 2
            assert printed.splitlines()[-1].startswith(folder)
            assert "'with dit_compress.record(model) as call'" in printed


def test_flops_without_a_size_name_the_option(run: Any) -> None:
    tiny_denoiser("ltx").module.save_pretrained("ltx")
    for place in (["--dry-run"], ["--out", "small"]):
        status, _, printed = run("prune", "ltx", "--flops", "1e6", *place)
        assert status == 2
        assert printed.endswith("Give 'size', its cells (T, H, W); on the command line: --size T H W\n")
        assert "step" not in printed


def test_streams_are_named_where_a_path_only_counts(run: Any) -> None:
    import diffusers

    torch.manual_seed(0)
    diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    ).save_pretrained("flux")  # fmt: skip
    status, printed, _ = run("inspect", "flux")
    assert status == 0
    assert all("(" in line.split("ffn")[0] for line in printed.splitlines() if "#" in line)


def test_a_broken_local_plugin_says_why(run: Any) -> None:
    Path("my_dit.py").write_text("from nowhere_at_all import thing\n")
    Path("recipe.yaml").write_text("model: my_model\nsteps: []\n")
    status, _, printed = run("check", "recipe.yaml", "--plugin", "my_dit.py")
    assert status == 2
    assert "(and broken: my_dit: No module named 'nowhere_at_all')" in printed


@pytest.mark.parametrize("name", ["enter.weight", "blocks.1.up.weight"])
def test_weights_that_are_not_finite_are_named(name: str) -> None:
    module = Body().eval()
    with torch.no_grad():
        module.get_parameter(name)[0, 0] = float("nan")
    with pytest.raises(
        UserError, match=f"^Body: the weight '{name}' holds NaN or infinity. Give a model with finite weights$"
    ):
        dit_compress.prune(module, call=recorded(module), remove={"block": 1})


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float32, "nan"), (torch.float32, "-inf"), (torch.bfloat16, "nan"), (torch.float16, "-inf")],
)
def test_inspect_names_weights_of_a_folder_that_are_not_finite(run: Any, dtype: torch.dtype, value: str) -> None:
    """After its table; prune and run refuse the folder with the same words."""
    module: Any = tiny_denoiser("ltx").module.to(dtype)
    name = "transformer_blocks.1.ff.net.2.weight"
    with torch.no_grad():
        module.get_parameter(name)[-1, -1] = float(value)
    module.save_pretrained("ltx")
    status, printed, said = run("inspect", "ltx")
    message = f"the weight '{name}' holds NaN or infinity. Give a model with finite weights"
    assert status == 2
    assert printed.startswith("LTXVideoTransformer3DModel: 146,792 parameters")
    assert said.splitlines()[-1] == f"ltx: {message}"
    status, _, said = run("prune", "ltx", "--remove", "head=1", "--out", "small")
    assert (status, said.splitlines()[-1]) == (2, f"LTXVideoTransformer3DModel: {message}")
    assert not Path("small").exists()


def test_whole_weights_are_looked_through_by_inspect(run: Any) -> None:
    module: Any = tiny_denoiser("ltx").module
    with torch.no_grad():
        module.get_parameter("transformer_blocks.1.ff.net.2.weight")[0, 0] = torch.finfo(torch.float32).max
    module.save_pretrained("ltx", max_shard_size="100KB")
    status, _, said = run("inspect", "ltx")
    assert status == 0
    assert said.splitlines()[-1] == "looking for NaN and infinity in ltx"
    next(Path("ltx").glob("*00002*")).unlink()
    status, _, said = run("inspect", "ltx")
    assert status == 0
    assert "its weights are not looked through: " in said
    assert "is missing. Download or copy it again" in said


def test_a_folder_of_save_lora_weights_is_taken(run: Any) -> None:
    tiny_denoiser("ltx").module.save_pretrained("ltx")
    assert run("prune", "ltx", "--remove", "head=1", "--out", "small")[0] == 0
    lora = {"transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.randn(48, 2)}
    Path("lora").mkdir()
    save_file(lora, "lora/pytorch_lora_weights.safetensors")
    assert run("prune", "lora", "--plan", "small", "--out", "lora-small")[:2] == (0, "lora-small\n")
    found = load_file("lora-small/pytorch_lora_weights.safetensors")
    assert {key: list(value.shape) for key, value in found.items()} == {next(iter(lora)): [36, 2]}


class Opaque(nn.Module):
    """Heads that nothing says how to count, a plain feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 64), nn.Linear(64, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(x).reshape(b, s, 3, 4, 6).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, d))
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 24), nn.Linear(24, 4)
        self.blocks = nn.ModuleList(Opaque() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


def test_refused_heads_do_not_stop_a_default_budget_and_are_reported() -> None:
    def made() -> tuple[Model, Any]:
        module = Model().eval()
        with dit_compress.record(module) as call:
            module(torch.randn(2, 6, 4))
        return module, call

    module, call = made()
    budget = int(0.6 * count_parameters(module))
    with pytest.warns(UserWarning, match=r"^level 'head' is left alone \(blocks.0"):
        dit_compress.prune(module, call=call, params=budget)
    assert 0.99 * budget <= count_parameters(module) <= budget
    module, call = made()
    with pytest.raises(UserError, match=r"^level 'head' finds nothing to remove in this model \(blocks.0"):
        dit_compress.prune(module, call=call, params=budget, levels=["block", "head", "ffn"])
