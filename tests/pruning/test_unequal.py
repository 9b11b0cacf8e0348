"""Budgets of models whose blocks differ in size: met by what is planned and by what is pruned; shares; each its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from command import here
from torch import Tensor, nn

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.figures import count_flops, count_parameters
from dit_compress.pruning.recorded import RecordedDenoiser
from dit_compress.search.allocate import apportioned
from dit_compress.structure.copies import meta_copy


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str]:
        status, out, err = here(capsys, monkeypatch, *arguments)
        return int(status or 0), err if status else out

    return command


def attend(x: Tensor, qkv: nn.Linear, heads: int) -> Tensor:
    b, s, _ = x.shape
    q, k, v = qkv(F.layer_norm(x, x.shape[-1:])).reshape(b, s, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, -1)


class Rung(nn.Module):
    """A block with a feed-forward of its own width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, channels), nn.Linear(channels, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(attend(x, self.qkv, self.heads))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (24,)))))


class Pyramid(nn.Module):
    """Every block is wider than the last."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 24), nn.Linear(24, 4)
        self.blocks = nn.ModuleList(Rung(channels) for channels in (32, 64, 96, 128, 160, 192))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


class Pair(nn.Module):
    """A wide stream and a narrow one, each with a feed-forward; the last block leaves the narrow one alone."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.heads, self.last = 4, last
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 128), nn.Linear(128, 24)
        self.give = nn.Linear(12, 24)
        if not last:
            self.narrow_up, self.narrow_down = nn.Linear(12, 32), nn.Linear(32, 12)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.proj(attend(x + self.give(y).mean(1, keepdim=True), self.qkv, self.heads))
        x = x + self.down(F.gelu(self.up(F.layer_norm(x, (24,)))))
        return x, y if self.last else y + self.narrow_down(F.gelu(self.narrow_up(F.layer_norm(y, (12,)))))


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.text, self.leave = nn.Linear(4, 24), nn.Linear(4, 12), nn.Linear(24, 4)
        self.blocks = nn.ModuleList(Pair(index == 4) for index in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.enter(x), self.text(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.leave(x)


def made(kind: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    module = kind().eval()
    with dit_compress.record(module) as call:
        module(torch.randn(2, 6, 4))
    return module, call


def flops_of(module: nn.Module, call: Any) -> int:
    return count_flops(meta_copy(RecordedDenoiser(module, call)), (1, 1, 1))


@pytest.mark.parametrize("kind", [Pyramid, TwoStreams])
@pytest.mark.parametrize("share", [0.85, 0.7, 0.5, 0.35])
@pytest.mark.parametrize("heterogeneous", [False, True])
def test_a_budget_of_parameters_is_met(kind: Any, share: float, heterogeneous: bool) -> None:
    module, call = made(kind)
    budget = int(share * count_parameters(module))
    dit_compress.prune(module, call=call, params=budget, heterogeneous=heterogeneous)
    assert 0.99 * budget <= count_parameters(module) <= budget


@pytest.mark.parametrize("kind", [Pyramid, TwoStreams])
def test_a_share_is_of_the_whole_models_figure(kind: Any) -> None:
    module, call = made(kind)
    whole = count_parameters(module)
    dit_compress.prune(module, call=call, params="60%")
    assert 0.99 * 0.6 * whole <= count_parameters(module) <= 0.6 * whole
    module, call = made(kind)
    whole = flops_of(module, call)
    dit_compress.prune(module, call=call, flops="62.5%")
    assert 0.99 * 0.625 * whole <= flops_of(module, call) <= 0.625 * whole


@pytest.mark.parametrize("share", ["0%", "101%"])
def test_no_share_of_a_model(share: str) -> None:
    module, call = made(Pyramid)
    with pytest.raises(UserError, match=f"{share} is no share of the model: write more than 0% and at most 100%"):
        dit_compress.prune(module, call=call, params=share)


def test_each_block_has_widths_of_its_own_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    module, call = made(Pyramid)
    dit_compress.prune(module, call=call, params="60%", levels=["head", "ffn"], heterogeneous=True)
    assert "the budget is shared out by the paper's proportions" in capsys.readouterr().err
    shares = [
        block.up.out_features / wide for block, wide in zip(module.blocks, (32, 64, 96, 128, 160, 192), strict=True)
    ]
    assert len({round(share, 2) for share in shares}) > 1
    with pytest.raises(UserError, match="'heterogeneous' and 'curves' go with a budget"):
        dit_compress.prune(module, call=call, remove={"head": 1}, heterogeneous=True)


def test_blocks_are_divided_among_those_that_are_alike() -> None:
    assert apportioned([range(23), range(23, 24)], 20) == [19, 1]
    assert apportioned([range(23), range(23, 24)], 11) == [11, 0]
    assert apportioned([[index] for index in range(6)], 3) == [1, 0, 1, 0, 1, 0]
    assert apportioned([range(8)], 5) == [5]


@pytest.mark.parametrize("share", ["90%", "75%", "60%", "45%"])
@pytest.mark.parametrize("extra", [[], ["--heterogeneous"], ["--levels", "block,ffn"]])
def test_what_is_planned_of_sd3_holds_and_is_what_is_pruned(run: Any, share: str, extra: list[str]) -> None:
    """Its last block has no feed-forward for the text."""
    torch.manual_seed(0)
    module: Any = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    module.save_pretrained("sd3")
    wanted = float(share[:-1]) / 100 * count_parameters(module)
    status, planned = run("prune", "sd3", "--params", share, *extra, "--dry-run")
    assert status == 0, planned
    size = int(planned.splitlines()[-1].split()[0].replace(",", ""))
    assert 0.99 * wanted - 1 <= size <= wanted
    status, printed = run("prune", "sd3", "--params", share, *extra, "--out", "small")
    assert (status, printed) == (0, f"{planned}small\n")
    assert count_parameters(dit_compress.load("small")) == size
