"""The width of the residual stream: found by observation, masked as it is cut, refused where it can't be."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.structure.compact import compact_module
from dit_compress.structure.facts import Axis, MaskPoint, Structure
from dit_compress.structure.masks import masked
from dit_compress.structure.observe.discover import observe
from dit_compress.structure.observe.width_units import observe_width
from dit_compress.structure.record import Call
from dit_compress.testing.models import tiny_denoiser

pytestmark = pytest.mark.slow(12)

WIDTH = 6


class Rms(nn.Module):
    """A norm by the mean square, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(WIDTH) + 0.5), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root of the mean square."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Block(nn.Module):
    """A feed-forward with a shift, a scale and a gate; ``norm`` may be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.up, self.down = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)
        self.modulation = nn.Linear(4, 3 * WIDTH)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Add what the feed-forward says."""
        shift, scale, gate = self.modulation(time)[:, None].chunk(3, -1)
        return x + gate * self.down(F.gelu(self.up(self.norm(x) * (1 + scale) + shift)))


class Plain(nn.Module):
    """A DiT in plain torch, of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.place = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.out = Rms(), nn.Linear(WIDTH, 3)

    def between(self, x: Tensor) -> Tensor:
        """Do something to the stream before the last norm."""
        return x

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the velocity of ``[B,S,3]``."""
        x = self.embed(x) + self.place
        for block in self.blocks:
            x = block(x, time)
        return self.out(self.norm(self.between(x)))


def plain(kind: type[Plain] = Plain) -> tuple[Plain, Call]:
    """Return a model and a call."""
    torch.manual_seed(0)
    return kind().eval(), Call((torch.randn(2, 4, 3), torch.randn(2, 4)), recorded=True)


def seen(module: nn.Module, *calls: Call) -> Structure:
    """Return the structure with the width."""
    return observe_width(module, calls, observe(module, calls[0]))


@pytest.mark.parametrize(
    ("side", "x", "kept", "bias"),
    [
        # The mean square of 3 and 4 is 12.5.
        ("rms", [3.0, 4.0, 9.0], [3 / 12.5**0.5, 4 / 12.5**0.5], None),
        # Mean 2 and variance 1; then a weight of 2 and a bias of 0.5.
        ("moments", [1.0, 3.0, 9.0], [-1.5, 2.5], 0.5),
    ],
)
def test_a_masked_norm_counts_the_kept_alone(side: str, x: list[float], kept: list[float], bias: float | None) -> None:
    """Worked by hand."""
    norm: nn.Module = nn.RMSNorm(3, eps=0.0, elementwise_affine=False)
    if bias is not None:
        norm = nn.LayerNorm(3, eps=0.0)
        nn.init.constant_(norm.weight, 2.0)
        nn.init.constant_(norm.bias, bias)
    point = MaskPoint("", side, torch.arange(3)[:, None].numpy())  # type: ignore[arg-type]
    axis, mask = Axis("width:x", "width", 3, "", masks=(point,)), torch.tensor([[1.0, 1.0, 0.0]])
    with masked(norm, [axis], {axis.name: mask}):
        found = norm(torch.tensor(x).reshape(1, 1, 3))
    assert found.flatten()[:2].tolist() == pytest.approx(kept, abs=1e-6)


def test_a_channel_owns_what_reads_and_writes_it() -> None:
    """Rows of modulation three by three, the table of places, norms; nothing of the feed-forward's inside."""
    module, call = plain()
    (width,) = seen(module, call).widths
    axis = width.axis("width")
    assert (axis.name, axis.units, axis.block, axis.everywhere) == ("width:blocks", WIDTH, None, True)
    owned = {(member.tensor, member.dim): member.indices[1].tolist() for member in axis.members}
    block = {"up.weight": (1, [1]), "down.weight": (0, [1]), "down.bias": (0, [1])}
    block |= dict.fromkeys(("modulation.weight", "modulation.bias"), (0, [1, 1 + WIDTH, 1 + 2 * WIDTH]))
    expected = {(f"blocks.{index}.{name}", dim): rows for index in (0, 1) for name, (dim, rows) in block.items()}
    own = ("embed.weight", 0), ("embed.bias", 0), ("place", 2), ("norm.weight", 0), ("out.weight", 1)
    assert owned == {**expected, **{key: [1] for key in own}}
    kept = (0, 2, 5)
    entry = compact_module(module, call, [axis], {axis.name: kept})
    assert module.blocks[0].norm.normalized_shape == (3,)
    assert module.place.shape == (1, 4, 3)
    assert module.out.in_features == 3
    assert entry["data"]["kept"][axis.name]["units"] == [[0, 1], [2, 3], [5, 6]]


class HandWritten(Plain):
    """A norm without a module."""

    def between(self, x: Tensor) -> Tensor:
        """Normalise here."""
        return x / x.square().mean(-1, keepdim=True).sqrt()


class Rotated(Plain):
    """RoPE over the stream."""

    def between(self, x: Tensor) -> Tensor:
        """Rotate neighbours."""
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        angle = torch.arange(x.shape[1])[:, None] * torch.ones(WIDTH // 2)
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)


class Peak(nn.Module):
    """A norm by the largest."""

    def forward(self, x: Tensor) -> Tensor:
        """Divide by a smooth maximum."""
        return x / x.logsumexp(-1, keepdim=True)


class Peaked(Plain):
    """A norm that no mask can make count the kept."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = Peak()

    def between(self, x: Tensor) -> Tensor:
        """Normalise by the largest."""
        return self.peak(x)


class Sinusoids(Plain):
    """A table of places that code makes anew for other sizes, of the width there is."""

    def between(self, x: Tensor) -> Tensor:
        """Add sinusoids where there are more tokens than the model was made for."""
        if x.shape[1] == 4:
            return x
        return x + torch.sin(torch.arange(x.shape[-1]) / x.shape[-1])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Take any number of tokens."""
        x = self.embed(x) + self.place[:, :1]
        for block in self.blocks:
            x = block(x, time)
        return self.out(self.norm(self.between(x)))


@pytest.mark.parametrize(
    ("kind", "path", "reason"),
    [
        (HandWritten, "norm", "a norm that is no module of its own"),
        (Rotated, "norm", "reads several channels"),
        (Peaked, "norm", "no mask counts the kept alone for peak"),
        (Sinusoids, "blocks", "at another size of the latent the model computes something else"),
    ],
)
def test_what_mixes_channels_is_refused_by_name(kind: type[Plain], path: str, reason: str) -> None:
    """The width has no axis then, and the rest is found as before."""
    module, call = plain(kind)
    calls = [call, Call((torch.randn(2, 6, 3), torch.randn(2, 4)), recorded=True)] if kind is Sinusoids else [call]
    found = seen(module, *calls)
    assert not found.widths
    assert found.refusals[0].path == path
    assert reason in found.refusals[0].reason
    assert len(found.feed_forwards) == 2
    if kind is HandWritten:
        with pytest.raises(UserError, match="level 'width' finds nothing to remove in this model .norm: the width can't"):
            dit_compress.prune(module, keep={"width": 0.5}, call=call)


@pytest.mark.parametrize(("levels", "params", "hidden"), [(["width"], 66_500, 24), (["width", "ffn"], 54_000, 16)])
def test_a_budget_prices_each_width(levels: list[str], params: int, hidden: int) -> None:
    """The other levels are shared out at the width that is tried; parameters are counted exactly."""
    module = dit_compress.prune(tiny_denoiser("video_dit"), params=params, levels=levels)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert 0.99 * params <= count <= params
    assert module.proj_in.out_features == hidden


def test_a_budget_of_widths_refuses_what_it_cannot_share() -> None:
    """Widths of each block, and budgets that a coarse width misses."""
    with pytest.raises(UserError, match="'heterogeneous' goes with blocks, heads and channels of feed-forwards"):
        dit_compress.prune(tiny_denoiser("video_dit"), params="50%", levels=["width"], heterogeneous=True)
    with pytest.raises(UserError, match=r"no width comes within 1% .* The nearest that can be met is 66,440"):
        dit_compress.prune(tiny_denoiser("video_dit"), params="60%", levels=["width"])


def test_a_folder_is_cut_on_disk_as_it_is_in_memory(tmp_path: object) -> None:
    """LTX, whose text is as wide as the stream by its code, so that both go together."""
    module = tiny_denoiser("ltx").module
    module.save_pretrained(f"{tmp_path}/whole")
    asked = {"keep": {"width": 0.5}, "remove": {"head": 1}}
    dit_compress.prune(f"{tmp_path}/whole", **asked, out=f"{tmp_path}/pruned")
    loaded = dit_compress.load(f"{tmp_path}/pruned")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = dit_compress.prune(module, **asked)
    assert loaded.proj_in.out_features == 24
    assert loaded.caption_projection.linear_2.out_features == 24
    for name, value in live.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
