"""Plain DiTs that share, write in place or branch: removed exactly, or refused with a reason; never silently wrong."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from plain_dits import CHANNELS, HEADS, WIDTH, Model, attend
from torch import Tensor, nn

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.figures import count_parameters
from dit_compress.search.budget import parameter_price
from dit_compress.structure.compact import block_axis, compact_module, disagreement
from dit_compress.structure.observe.discover import observe

if TYPE_CHECKING:
    from dit_compress.structure.record import Call


class Mixer(nn.Module):
    """Attention with as many heads as ``n`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.n = HEADS
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (item.unflatten(-1, (self.n, -1)).transpose(1, 2) for item in self.qkv(x).chunk(3, -1))
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, CHANNELS), nn.Linear(CHANNELS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.mlp = Mixer(), Mlp()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x + self.mixer(F.layer_norm(x + t[:, None], (WIDTH,)))
        return x + self.mlp(F.layer_norm(x, (WIDTH,)))


def recorded(module: nn.Module) -> Call:
    with dit_compress.record(module) as call:
        module(torch.randn(2, 6, 4).double(), torch.rand(2).double() + 1)
    return call


def made(block: type[nn.Module], depth: int = 3) -> tuple[Any, Call]:
    torch.manual_seed(0)
    module = Model(block, depth).double().eval()
    return module, recorded(module)


# ------------------------------------------------------------------ weights that blocks share


def test_a_module_that_blocks_share_is_refused_and_the_others_are_cut() -> None:
    module, _ = made(Block)
    for block in module.blocks[1:]:
        block.mlp = module.blocks[0].mlp
    call = recorded(module)
    structure = observe(module, call)
    assert [part.path for part in structure.attentions] == [f"blocks.{index}.mixer" for index in range(3)]
    assert structure.feed_forwards == ()
    reasons = {item.path: item.reason for item in structure.refusals}
    assert reasons.keys() == {f"blocks.{index}.mlp" for index in range(3)}
    assert reasons["blocks.0.mlp"] == "its weights are those of blocks.1.mlp.up.weight, too"
    with pytest.raises(UserError, match="'ffn' finds nothing .*its weights are those of"):
        dit_compress.prune(module, call=call, keep={"ffn": 0.5})


def test_weights_that_blocks_tie_are_not_untied() -> None:
    module, _ = made(Block)
    module.blocks[2].mlp.up.weight = module.blocks[0].mlp.up.weight
    call = recorded(module)
    structure = observe(module, call)
    assert [part.path for part in structure.feed_forwards] == ["blocks.1.mlp"]
    dit_compress.prune(module, call=call, remove={"head": 1})
    assert module.blocks[2].mlp.up.weight is module.blocks[0].mlp.up.weight


def test_a_shared_module_goes_with_no_block() -> None:
    """Blocks 0 and 1 share an MLP: taking block 0 away takes its mixer alone."""
    module, _ = made(Block)
    module.blocks[1].mlp = module.blocks[0].mlp
    call = recorded(module)
    axes = [block_axis(observe(module, call).main)]
    price = parameter_price(module, axes)
    mixer, mlp = count_parameters(module.blocks[0].mixer), count_parameters(module.blocks[0].mlp)
    assert price.blocks[axes[0].name] == (mixer, mixer, mixer + mlp)
    before = count_parameters(module)
    assert price.of(axes, {}) == before
    kept = {axes[0].name: (1, 2)}
    compact_module(module, call, axes, kept)
    assert count_parameters(module) == price.of(axes, kept) == before - mixer


# ------------------------------------------------------------------ blocks that write into their input


class InPlace(Block):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x += self.mixer(F.layer_norm(x + t[:, None], (WIDTH,)))
        x += self.mlp(F.layer_norm(x, (WIDTH,)))
        return x


def test_a_block_that_writes_into_its_input_is_skipped_like_any_other() -> None:
    module, call = made(InPlace)
    plain, _ = made(Block)
    assert torch.equal(call.replay(plain), call.replay(module))
    for each in (module, plain):
        dit_compress.prune(each, call=call, remove={"block": 1})
        assert len(each.blocks) == 2
    assert torch.equal(call.replay(plain), call.replay(module))


# ------------------------------------------------------------------ other ways for other values


class TwoWays(Block):
    """Where the clock is below 0, heads are counted by a constant."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        before, self.mixer.n = self.mixer.n, self.mixer.n if float(t[0, 0]) > 0 else HEADS
        x = super().forward(x, t)
        self.mixer.n = before
        return x


def test_heads_that_only_another_call_counts_otherwise_are_refused() -> None:
    torch.manual_seed(0)
    module: Any = Model(TwoWays).double().eval()
    with torch.no_grad():
        module.clock.weight.fill_(1.0)
        module.clock.bias.zero_()
    structure = observe(module, recorded(module))
    assert structure.attentions == ()
    assert len(structure.feed_forwards) == 3
    reasons = ("its control flow depends on values: with other arguments", "3 heads: no set of attributes")
    assert all(item.reason.startswith(reasons) for item in structure.refusals)


class Either(Block):
    """The recorded call does not reach the mixer."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) if float(t.abs().sum()) < 1e-9 else x + self.mlp(x + t[:, None])


def test_what_the_call_does_not_use_is_told() -> None:
    module, call = made(Either)
    structure = observe(module, call)
    assert {(item.path, item.reason) for item in structure.refusals} == {
        (f"blocks.{index}.mixer", "the recorded call does not use it") for index in range(3)
    }


# ------------------------------------------------------------------ what hangs together is told


class NormedChannels(Block):
    """LayerNorm over the hidden channels: none can go alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, CHANNELS), nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, WIDTH))


class NormedLate(Block):
    """The same after the activation."""

    def __init__(self) -> None:
        super().__init__()
        late = (nn.GELU(), nn.LayerNorm(CHANNELS))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, CHANNELS), *late, nn.Linear(CHANNELS, WIDTH))


class Powers(Block):
    """What is left of a masked channel differs from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.mlp = nn.Linear(WIDTH, CHANNELS), nn.Linear(CHANNELS, WIDTH), nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = super().forward(x, t)
        return x + self.down(self.up(x).exp() + t[:, None, :CHANNELS])


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (NormedChannels, "20 channels: no set of attributes makes compact equal masked"),
        (NormedLate, "all of it hangs together: one unit, and one must stay"),
        (Powers, "reads something that falls into no units"),
    ],
)
def test_channels_that_can_not_go_are_told_and_are_no_axis(block: type[nn.Module], reason: str) -> None:
    module, call = made(block)
    structure = observe(module, call)
    parts = [*structure.attentions, *structure.feed_forwards]
    assert [part.path for part in parts if part.count > 1] == [f"blocks.{index}.mixer" for index in range(3)]
    assert len(structure.refusals) == 3
    assert all(reason in item.reason for item in structure.refusals)
    dit_compress.prune(module, call=call, remove={"head": 1})
    assert module.blocks[0].mixer.n == HEADS - 1


# ------------------------------------------------------------------ torch's own layers


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, CHANNELS, batch_first=True, norm_first=True) for _ in range(3)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.enter(x) + t[:, None, None]
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


def test_layers_of_torch_are_blocks() -> None:
    torch.manual_seed(0)
    module = Layers().double().eval()
    call = recorded(module)
    structure = observe(module, call)
    assert structure.main.length == 3
    assert {part.count for part in structure.attentions} == {HEADS}
    assert {part.count for part in structure.feed_forwards} == {CHANNELS}
    whole = copy.deepcopy(module)
    dit_compress.prune(module, call=call, remove={"head": 1}, keep={"ffn": 0.5})
    with torch.no_grad():
        for large, small in zip(whole.blocks, module.blocks, strict=True):
            _keep_rows(large.linear1.weight, small.linear1.weight)
            large.linear1.bias.mul_(large.linear1.weight.any(1))
            _keep_rows(large.self_attn.out_proj.weight.T, small.self_attn.out_proj.weight.T)
    assert call.replay(module).sub(call.replay(whole)).abs().max() < 1e-12
    assert module.blocks[0].linear1.out_features == CHANNELS // 2


def _keep_rows(large: Tensor, small: Tensor) -> None:
    """Zero what is not there any more: a head's output columns, a channel's input row."""
    large.mul_((large[:, None] == small[None]).all(-1).any(1)[:, None])


# ------------------------------------------------------------------ the proof


class Answer:
    """An object of somebody's own."""

    def __init__(self, sample: Any) -> None:
        self.sample = sample


class Answers(Model):
    def __init__(self) -> None:
        super().__init__(Block)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return Answer(super().forward(x, t))


def test_tensors_in_an_object_are_compared() -> None:
    a, b = Answer(torch.ones(2)), Answer(torch.tensor([1.0, 3.0]))
    assert disagreement(a, b) == pytest.approx(2 / 3)


def test_nothing_to_compare_proves_nothing() -> None:
    assert disagreement("one", "another") == math.inf
    assert disagreement((torch.ones(1),), (torch.ones(1), torch.ones(1))) == math.inf


def test_a_nan_anywhere_is_the_largest_error() -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, math.nan])
    assert math.isnan(disagreement((good, bad), (good, good)))
    assert math.isnan(disagreement((bad, good), (good, good)))


def test_complex_results_are_compared() -> None:
    assert disagreement(torch.tensor([1 + 1j, 2 + 0j]), torch.tensor([1 + 0j, 2 + 0j])) == pytest.approx(0.5)


def test_a_call_that_gives_no_tensor_is_refused() -> None:
    class Silent(Model):
        def forward(self, x: Tensor, t: Tensor) -> Any:
            return str(super().forward(x, t).shape)

    module = Silent(Block).double().eval()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(UserError, match="gives no tensor back"):
        dit_compress.prune(module, call=recorded(module), remove={"head": 1})
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
