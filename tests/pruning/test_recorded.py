"""Any module, by one recorded call: counts, budgets of every unit, saving and loading, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from fresh import run_fresh
from torch import Tensor, nn
from toy import tiny_bundle

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.figures import count_flops, count_parameters
from dit_compress.pruning.recorded import RecordedDenoiser, size_of
from dit_compress.search.importance import magnitude, top
from dit_compress.structure.compact import relative_error
from dit_compress.structure.copies import meta_copy
from dit_compress.structure.files.on_disk import Memory
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.structure.observe.discover import observe
from dit_compress.structure.record import Call
from dit_compress.testing.models import tiny_denoiser

WIDTH, HEADS, CHANNELS = 24, 4, 64


class Block(nn.Module):
    """A fused projection, reshaped; a plain MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.n = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, CHANNELS), nn.Linear(CHANNELS, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.qkv(F.layer_norm(x + t, (WIDTH,))).reshape(b, s, 3, self.n, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, -1))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (WIDTH,)))))


class Plain(nn.Module):
    """No config, no save_pretrained, no class that any plugin knows."""

    def __init__(self, block: type[nn.Module] = Block, depth: int = 4) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.clock = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, t = self.enter(x), self.clock(t[:, None])[:, None]
        for block in self.blocks:
            x = block(x, t)
        return self.leave(x)


def plain(block: type[nn.Module] = Block, dtype: torch.dtype = torch.float32) -> tuple[Plain, Call]:
    torch.manual_seed(0)
    module = Plain(block).to(dtype).eval()
    with dit_compress.record(module) as call:
        module(torch.randn(2, 6, 4, dtype=dtype), torch.rand(2, dtype=dtype))
    return module, call


# ------------------------------------------------------------------ counts and budgets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_module_of_no_plugin_is_pruned_in_place(dtype: torch.dtype) -> None:
    module, call = plain(dtype=dtype)
    assert dit_compress.prune(module, call=call, remove={"block": 1, "head": 1}, keep={"ffn": 0.5}) is module
    assert len(module.blocks) == 3
    assert module.blocks[0].n == 3
    assert module.blocks[0].qkv.weight.shape == (3 * 18, WIDTH)
    assert module.blocks[0].up.weight.shape == (32, WIDTH)
    assert {value.dtype for value in module.state_dict().values()} == {dtype}
    assert call.replay(module).shape == (2, 6, 4)


def test_the_result_is_the_masked_model() -> None:
    module, call = plain()
    axes = [part.axis("head") for part in observe(module, call).attentions]
    kept = {axis.name: top(magnitude(module, axis), 3) for axis in axes}
    with masked(module, axes, hard_masks(axes, kept, next(module.parameters()))):
        expected = call.replay(module)
    dit_compress.prune(module, call=call, remove={"head": 1})
    assert relative_error(call.replay(module), expected) < 1e-5


def test_without_a_call_such_a_module_is_refused() -> None:
    module, _ = plain()
    with pytest.raises(UserError, match="no model plugin knows Plain .*record one of its calls"):
        dit_compress.prune(module, remove={"head": 1})


def test_a_budget_of_parameters() -> None:
    module, call = plain()
    dit_compress.prune(module, call=call, params=15_800, search="random")
    assert 0.99 * 15_800 <= count_parameters(module) <= 15_800


def flops_of(module: nn.Module, call: Call) -> int:
    return count_flops(meta_copy(RecordedDenoiser(module, call)), (1, 1, 1))


def by_hand(heads: int, channels: int) -> int:
    """For two samples of six tokens: matrices at both ends and in four blocks, attention, the clock."""
    inner = heads * WIDTH // HEADS
    matrices = 2 * (4 * WIDTH + 4 * WIDTH + 4 * (4 * WIDTH * inner + 2 * WIDTH * channels))
    attention = 4 * 2 * 2 * 6 * 6 * inner
    return 2 * (6 * matrices + attention) + 2 * 2 * WIDTH


def test_a_budget_of_flops_is_that_of_the_recorded_call() -> None:
    module, call = plain()
    assert flops_of(module, call) == by_hand(HEADS, CHANNELS)
    budget = by_hand(3, 40)
    dit_compress.prune(module, call=call, flops=budget, levels=["head", "ffn"])
    assert 0.99 * budget <= flops_of(module, call) <= budget
    assert len(module.blocks) == 4, "not among the levels"


def test_a_budget_of_seconds_by_a_table(tmp_path: Path) -> None:
    """Blocks of 3 s (rest 1, heads 0.25 each, channels 1/64 each), 1 s outside: 13 s; 10 s is one block less."""
    module, call = plain()
    structure = observe(module, call)
    inner = [part.axis("head") for part in structure.attentions] + [
        part.axis("ffn") for part in structure.feed_forwards
    ]
    table = {
        "schema": 1, "machine": "a phone", "size": list(size_of(call)), "unit": "seconds", "fixed": 1.0,
        "axes": {"block:blocks": 4, **{axis.name: axis.units for axis in inner}},
        "blocks": {"block:blocks": [1.0] * 4},
        "units": {axis.name: 1.0 / axis.units for axis in inner},
    }  # fmt: skip
    (tmp_path / "phone.json").write_text(json.dumps(table))
    latency = {"seconds": 10.0, "table": str(tmp_path / "phone.json"), "machine": "a phone"}
    dit_compress.prune(module, call=call, latency=latency)
    left = seconds(table, module)
    assert 9.9 <= left <= 10.0
    with pytest.raises(UserError, match="the table was measured on 'a phone', the budget is for"):
        dit_compress.prune(plain()[0], call=call, latency={**latency, "machine": "another"})


def seconds(table: dict[str, Any], module: Any) -> float:
    return table["fixed"] + sum(1 + block.n / HEADS + block.up.out_features / CHANNELS for block in module.blocks)


def test_a_budget_of_seconds_that_are_measured() -> None:
    """Times differ from run to run; that a picosecond is out of reach does not."""
    module, call = plain()
    before = count_parameters(module)
    with pytest.raises(UserError, match="what can't be removed weighs .*. The nearest that can be met is") as caught:
        dit_compress.prune(module, call=call, latency=1e-12)
    nearest = float(str(caught.value).rsplit(" ", 1)[-1])
    assert 1e-6 < nearest < 10, "a matter of milliseconds"
    assert count_parameters(module) == before


def test_a_denoiser_in_memory_has_budgets_of_flops_too() -> None:
    denoiser, size = tiny_denoiser("wan"), (2, 4, 4)
    pruned = tiny_denoiser("wan")
    dit_compress.prune(pruned, remove={"block": 1, "head": 1})
    budget = count_flops(meta_copy(pruned), size)
    dit_compress.prune(denoiser, flops=budget, size=size)
    assert 0.99 * budget <= count_flops(meta_copy(denoiser), size) <= budget


# ------------------------------------------------------------------ diffusers by a call


@pytest.mark.parametrize("where", ["module", "folder"])
def test_a_class_of_diffusers_by_a_call_is_the_same_as_by_its_plugin(tmp_path: Path, where: str) -> None:
    module: Any = tiny_denoiser("ltx").module
    module.save_pretrained(tmp_path / "whole")
    denoiser = tiny_denoiser("ltx")
    with dit_compress.record(denoiser.module) as call, torch.no_grad():
        denoiser(*denoiser.example(1, denoiser.example_size))
    given = tmp_path / "whole" if where == "folder" else module
    counts: dict[str, Any] = {"remove": {"block": 1, "head": 1}, "keep": {"ffn": 0.75}}
    made = dit_compress.prune(given, call=call, **counts, out=tmp_path / "small")
    again = dit_compress.load(tmp_path / "small")
    expected = dit_compress.prune(tiny_denoiser("ltx").module, **counts).state_dict()
    for found in (made.state_dict(), again.state_dict()):
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_class_that_no_plugin_can_call(tmp_path: Path) -> None:
    """Its arguments have names that nobody knows; a recorded call needs no names."""

    class Odd(diffusers.ModelMixin, diffusers.ConfigMixin):
        config_name = "config.json"

        @diffusers.configuration_utils.register_to_config
        def __init__(self, depth: int = 3) -> None:
            super().__init__()
            self.inner = Plain(depth=depth)

        def forward(self, wobble: Tensor, when: Tensor) -> Tensor:
            return self.inner(wobble, when)

    torch.manual_seed(0)
    module = Odd().eval()
    with pytest.raises(UserError, match="no model plugin knows Odd"):
        dit_compress.prune(module, remove={"head": 1})
    with dit_compress.record(module) as call:
        module(torch.randn(1, 6, 4), torch.rand(1))
    dit_compress.prune(module, call=call, remove={"head": 1}, out=tmp_path / "small")
    record = json.loads((tmp_path / "small" / "pruning.json").read_text())
    assert record["class"] == "Odd"
    from dit_compress.structure.files.load_pruned import load

    again = load(tmp_path / "small", cls=Odd)
    assert torch.equal(call.replay(again), call.replay(module))


# ------------------------------------------------------------------ saved, loaded, pruned again


def test_a_plain_module_is_saved_loaded_and_pruned_again(tmp_path: Path) -> None:
    module, call = plain()
    dit_compress.prune(module, call=call, remove={"block": 1, "head": 1}, out=tmp_path / "once")
    assert sorted(item.name for item in (tmp_path / "once").iterdir()) == [
        "load_pruned.py", "model.safetensors", "pruning.json",
    ]  # fmt: skip
    again = dit_compress.load(tmp_path / "once", module=Plain())
    assert type(again) is Plain
    assert torch.equal(call.replay(again), call.replay(module))
    dit_compress.prune(again, call=call, keep={"ffn": 0.5}, out=tmp_path / "twice")
    record = json.loads((tmp_path / "twice" / "pruning.json").read_text())
    assert [entry["name"] for entry in record["log"]] == ["prune", "prune"]
    twice = dit_compress.load(tmp_path / "twice", module=Plain())
    assert twice.blocks[0].up.out_features == 32
    with torch.no_grad():
        twice.leave.weight += 1
    dit_compress.save(twice, tmp_path / "tuned")
    assert torch.equal(dit_compress.load(tmp_path / "tuned", module=Plain()).leave.weight, twice.leave.weight)


def test_a_plain_module_loads_without_this_package(tmp_path: Path) -> None:
    module, call = plain()
    dit_compress.prune(module, call=call, remove={"block": 1, "head": 1}, out=tmp_path / "small")
    torch.save({"args": call.args, "output": call.replay(module)}, tmp_path / "call.pt")
    script = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dit_compress", "dit_compress_plugins"):
            raise ImportError(f"{{name}} is not here")
sys.meta_path.insert(0, Block())
sys.path[:0] = [{str(tmp_path / "small")!r}, {str(tmp_path)!r}]
import torch
from load_pruned import load
from plain_model import Plain
module = load({str(tmp_path / "small")!r}, module=Plain())
call = torch.load({str(tmp_path / "call.pt")!r}, weights_only=True)
with torch.no_grad():
    assert (module(*call["args"]) - call["output"]).abs().max() < 1e-6 * call["output"].abs().max()
assert "dit_compress" not in sys.modules
print(len(module.blocks), module.blocks[0].n)
"""
    source = Path(__file__).read_text("utf-8")
    body = source[source.index("WIDTH, HEADS") : source.index("def plain(")]
    head = "import torch\nimport torch.nn.functional as F\nfrom torch import Tensor, nn\n\n"
    (tmp_path / "plain_model.py").write_text(head + body)
    done = run_fresh(script, folder=tmp_path)
    assert done.status == 0, done.printed
    assert done.printed.split() == ["3", "3"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"'.*Plain' is no class of diffusers. Give a whole one as 'module'"),
        (lambda: Plain(depth=3), r"'blocks.3.*' is None, was \["),
        (lambda: nn.Linear(2, 2), "is not the whole model that was pruned"),
    ],
)
def test_another_module_is_not_filled(tmp_path: Path, given: Any, message: str) -> None:
    module, call = plain()
    dit_compress.prune(module, call=call, remove={"head": 1}, out=tmp_path / "small")
    with pytest.raises(UserError, match=message):
        dit_compress.load(tmp_path / "small", module=given and given())


def test_a_module_that_was_never_pruned_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Plain was not pruned here"):
        dit_compress.save(Plain(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ refused, with nothing changed or written


class ByValue(Block):
    """Which way it goes depends on numbers, not on shapes."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if float(self.up(x).detach().sum()) > 0:
            return super().forward(x, t)
        return x + self.down(self.up(x).relu())


class ByWeight(Block):
    """Its weights decide how often it runs."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for _ in range(int(self.proj.weight.abs().sum()) % 3):
            x = super().forward(x, t)
        return x


@pytest.mark.parametrize("block", [ByValue, ByWeight])
@pytest.mark.parametrize("counts", [{"remove": {"head": 1}}, {"keep": {"ffn": 0.5}}, {"params": 15_000}])
def test_data_dependent_control_flow_is_refused(tmp_path: Path, block: Any, counts: dict[str, Any]) -> None:
    module, call = plain(block)
    whole = copy.deepcopy(module)
    with pytest.raises(UserError, match="level '(head|ffn)' finds nothing to remove in this model"):
        dit_compress.prune(module, call=call, **counts, out=tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), whole.parameters(), strict=True))


def test_a_call_that_fails_is_told_and_changes_nothing(tmp_path: Path) -> None:
    module, call = plain()
    before = copy.deepcopy(module.state_dict())
    broken = Call((torch.randn(2, 6, 5), torch.rand(2)), recorded=True)
    with pytest.raises(UserError, match="the recorded call fails.*Record a call that the model accepts"):
        dit_compress.prune(module, call=broken, remove={"head": 1}, out=tmp_path / "small")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert list(tmp_path.iterdir()) == []
    assert call.recorded


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"remove": {"head": 1}, "call": Call()}, "nothing was recorded.*Run 'with dit_compress.record"),
    ({"flops": 1e6, "size": (2, 4, 4)}, "a recorded call has a size of its own"),
    ({"params": 1e4, "flops": 1e6}, "give one of 'params', 'flops', 'latency', not params and flops"),
    ({"flops": 1e6, "remove": {"head": 1}}, "a budget and counts at once"),
    ({"remove": {"head": 1}, "levels": ["head"]}, "'size' and 'levels' go with a budget"),
    ({"params": 1e4, "levels": ["hed"]}, "names the level 'hed'.*Did you mean 'head'"),
    ({"params": 1e4, "size": (1, 2, 2)}, "'size' goes with 'flops' or 'latency'"),
    ({"latency": -1.0}, "expected a number above 0 for .budget.latency.seconds."),
    ({"params": 1_000}, "what can't be removed weighs [0-9,]+. The nearest that can be met is"),
    ({"flops": 10.0}, "what can't be removed weighs .*The nearest that can be met is"),
    ({"remove": {"head": 1}, "search": "taylor"}, "the search 'taylor' looks at data"),
    ({"remove": {"head": 4}}, "has 4 units and would keep 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_can_not_be_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    module, call = plain()
    before = count_parameters(module)
    with pytest.raises(UserError, match=message):
        dit_compress.prune(module, **{"call": call, **options}, out=tmp_path / "small")
    assert count_parameters(module) == before
    assert list(tmp_path.iterdir()) == []


def test_a_level_that_finds_nothing_is_named(tmp_path: Path) -> None:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, CHANNELS), nn.Linear(CHANNELS, WIDTH)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x + self.down(F.gelu(self.up(x + t)))

    module, call = plain(Mlp)
    with pytest.raises(UserError, match="level 'head' finds nothing to remove in this model"):
        dit_compress.prune(module, call=call, remove={"head": 1}, out=tmp_path / "small")
    with pytest.raises(UserError, match="level 'head' finds nothing.*Leave it out of 'levels'"):
        dit_compress.prune(module, call=call, params=8_600, out=tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
    dit_compress.prune(module, call=call, params=8_600, levels=["block", "ffn"])
    assert 8_514 <= count_parameters(module) <= 8_600


def test_a_bundle_says_itself_how_its_model_is_called(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match="a bundle says itself how its model is called"):
        dit_compress.prune(tmp_path / "bundle", call=plain()[1], remove={"head": 1}, out=tmp_path / "small")
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_does_not_know_its_video_size(tmp_path: Path) -> None:
    module: Any = tiny_denoiser("ltx").module
    module.save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="for one size of the latent, and no VAE tells it.*Give 'size'"):
        dit_compress.prune(tmp_path / "whole", flops=1e6, out=tmp_path / "small")
    with pytest.raises(UserError, match=r"latent \[2, 3, 4\] can't be divided by the patch"):
        dit_compress.prune(tiny_denoiser("wan"), flops=1e6, size=(2, 3, 4))
    assert [item.name for item in tmp_path.iterdir()] == ["whole"]


# ------------------------------------------------------------------ memory


def test_a_live_module_is_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search and proof see the module's own weights, whatever their dtype."""
    from dit_compress.pruning import prune as module

    seen: list[Any] = []
    monkeypatch.setattr(module, "find", lambda denoiser, *_: seen.append(denoiser) or [])
    for dtype in (torch.float32, torch.bfloat16):
        made, call = plain(dtype=dtype)
        dit_compress.prune(made, call=call, remove={"head": 1})
        given = seen.pop().module
        assert given is not made
        assert [p.data_ptr() for p in given.parameters()] == [p.data_ptr() for p in made.parameters()]


COUNTS: dict[str, Any] = {"remove": {"block": 1, "head": 1}, "keep": {"ffn": 0.5}}


def test_the_weights_of_a_folder_stay_in_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search and proof read them there, one at a time: in bfloat16, float32, squared, and in float64."""
    module: Any = tiny_denoiser("wan").module.to(torch.bfloat16)
    module.save_pretrained(tmp_path / "whole", max_shard_size="60KB")
    lent: list[int] = []
    empty = Memory.empty

    def counted(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        made = empty(memory, shape, dtype)
        lent.append(sum(len(block) for block, _ in memory._blocks))
        return made

    monkeypatch.setattr(Memory, "empty", counted)
    monkeypatch.setattr(type(module), "from_pretrained", None)
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    largest, whole = (of(value.numel() for value in module.parameters()) for of in (max, sum))
    assert 0 < max(lent) <= largest * (2 + 4 + 4 + 8) < 4 * whole


@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "FluxTransformer2DModel"])
def test_a_folder_gives_the_plan_of_the_live_module(tmp_path: Path, name: str) -> None:
    """With a table in its files (PixArt), and with two stacks (Flux)."""
    configs: dict[str, dict[str, Any]] = {
        "PixArtTransformer2DModel": {
            "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 3, "in_channels": 4, "out_channels": 8,
            "cross_attention_dim": 32, "caption_channels": 16, "sample_size": 8, "norm_num_groups": 4,
        },
        "FluxTransformer2DModel": {
            "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "num_single_layers": 3,
            "in_channels": 16, "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4),
        },
    }  # fmt: skip
    torch.manual_seed(0)
    module: Any = getattr(diffusers, name)(**configs[name])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) / 20)
    module.save_pretrained(tmp_path / "whole", max_shard_size="40KB")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 1
    folder: Any = dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    without: Any = dit_compress.prune(tmp_path / "whole", **COUNTS)
    live: Any = dit_compress.prune(module, **COUNTS)
    kept = [each.dit_compress_pruning["record"]["log"] for each in (folder, without, live)]
    assert kept[0] == kept[1] == kept[2]
    for each in (folder, without):
        state = each.state_dict()
        assert state.keys() == live.state_dict().keys()
        assert all(torch.equal(value, live.state_dict()[key]) for key, value in state.items())


def test_half_precision_is_widened_where_the_proof_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    from dit_compress.structure import compact

    def none() -> Any:
        raise RuntimeError("no float64 kernel")

    monkeypatch.setattr(compact, "in_double", none)
    module, call = plain(dtype=torch.bfloat16)
    dit_compress.prune(module, call=call, remove={"head": 1})
    assert module.blocks[0].n == 3
    assert module.enter.weight.dtype == torch.bfloat16
