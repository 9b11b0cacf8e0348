"""One table, three ways: a live module, a state dict and files on disk give the same, bit for bit, for every fixture."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_dits import CHANNELS, HEADS, TEXT, TOKENS, WIDTH, Across, Einsum, Fused, JointModel, Model, Table, Torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.structure import edits as table
from dit_compress.structure.apply import apply_edits, edit_state
from dit_compress.structure.compact import block_axis
from dit_compress.structure.edits import (
    COMPUTING,
    Edit,
    KeepBlocks,
    Scale,
    Take,
    compile_edits,
    edits_as_data,
    edits_from_data,
)
from dit_compress.structure.facts import Axis, Structure
from dit_compress.structure.files.disk import prune_weights
from dit_compress.structure.files.lora import prune_lora
from dit_compress.structure.files.pruned import shapes_of
from dit_compress.structure.observe.discover import observe
from dit_compress.testing.models import tiny_denoiser


class Slopes(nn.Module):
    """A slope per head, in a buffer that no state dict holds, and one channel order that every state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.n = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, CHANNELS), nn.Linear(CHANNELS, WIDTH)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, HEADS + 1)[:, None, None], persistent=False)
        self.register_buffer("gain", torch.linspace(0.5, 1.5, CHANNELS))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = F.layer_norm(x + t[:, None], (WIDTH,))
        b, s, _ = y.shape
        q, k, v = self.qkv(y).reshape(b, s, 3, self.n, -1).permute(2, 0, 3, 1, 4)
        away = (torch.arange(s)[:, None] - torch.arange(s)).abs()
        weights = (q @ k.transpose(-1, -2) - self.slopes * away).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, s, -1))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (WIDTH,)))) * self.gain)


PLAIN: dict[str, Any] = {
    "fused": lambda: Model(Fused),
    "einsum": lambda: Model(Einsum),
    "torch": lambda: Model(Torch),
    "table": lambda: Model(Table),
    "across": lambda: Model(Across),
    "slopes": lambda: Model(Slopes),
    "joint": JointModel,
}
FIXTURES = (*PLAIN, "video_dit", "ltx", "wan")


@dataclass(frozen=True)
class Fixture:
    """A model in float64 with the axes that were found in it."""

    module: nn.Module
    axes: tuple[Axis, ...]


@cache
def fixture(name: str) -> Fixture:
    torch.manual_seed(0)
    if name not in PLAIN:
        denoiser = tiny_denoiser(name)
        return Fixture(denoiser.module, axes_of(denoiser.structure()))
    module = PLAIN[name]().double().eval()
    x, t = torch.randn(2, TOKENS, 4).double(), torch.rand(2).double()
    text = (torch.randn(2, TEXT, 4).double(),) if name == "joint" else ()
    with dit_compress.record(module) as call:
        module(x, *text, t)
    return Fixture(module, axes_of(observe(module, call)))


def axes_of(structure: Structure) -> tuple[Axis, ...]:
    inner = [part.axis("head") for part in structure.attentions]
    inner += [part.axis("ffn") for part in structure.feed_forwards]
    return block_axis(structure.main), *inner


def drawn_edits(data: st.DataObject, name: str) -> list[Edit]:
    """A plan of any shape for the fixture, compiled, and through JSON."""
    found = fixture(name)
    kept = {
        axis.name: tuple(sorted(data.draw(st.sets(st.integers(0, axis.units - 1), min_size=1), label=axis.name)))
        for axis in found.axes
    }
    edits = compile_edits(found.module, found.axes, kept)
    again = edits_from_data(json.loads(json.dumps(edits_as_data(edits))))
    assert again == edits
    return again


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FIXTURES)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_live_state_and_disk_are_the_same(
    name: str, dtype: torch.dtype, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("table")
    edits = drawn_edits(data, name)
    module = copy.deepcopy(fixture(name).module).to(dtype)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    whole, small = folder / "whole", folder / "small"
    whole.mkdir()
    small.mkdir()
    shards = data.draw(st.sampled_from([1, 3]), label="shards")
    write(state, whole, shards)
    written = prune_weights(whole, small, edits, shard_bytes=10**9 if shards == 1 else 1000)
    assert (len(written) == 1) == (shards == 1)
    apply_edits(module, edits)
    expected = module.state_dict()
    same(edit_state(state, edits), expected)
    same({key: value for file in written for key, value in load_file(small / file).items()}, expected)


def write(state: dict[str, Tensor], folder: Path, shards: int) -> None:
    """One file, or shards with an index."""
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return
    places = {key: f"model-{place % shards}.safetensors" for place, key in enumerate(state)}
    for file in set(places.values()):
        save_file({key: value for key, value in state.items() if places[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_every_kind_of_edit_is_met_by_some_fixture() -> None:
    """Or the property above would say nothing about it."""
    met = set()
    for name in FIXTURES:
        found = fixture(name)
        kept = {axis.name: tuple(range(1, axis.units)) for axis in found.axes if axis.units > 1}
        met |= {type(edit).__name__ for edit in compile_edits(found.module, found.axes, kept)}
    # Those that make tensors anew come from no plan of units: test_modulation.py meets them.
    assert met == set(table._KINDS) - {kind.__name__ for kind in table.MAKING}


def test_a_table_that_no_file_holds_is_cut_in_the_module_alone() -> None:
    found = fixture("slopes")
    heads = next(axis for axis in found.axes if axis.level == "head")
    takes = {
        edit.tensor: edit
        for edit in compile_edits(found.module, found.axes, {heads.name: (0, 2)})
        if isinstance(edit, Take)
    }
    assert takes["blocks.0.slopes"] == Take("blocks.0.slopes", 0, (0, 2), stored=False)
    assert takes["blocks.0.proj.weight"].stored
    module = copy.deepcopy(found.module)
    apply_edits(module, takes.values())
    assert module.blocks[0].slopes.flatten().tolist() == [0.5, 0.125]
    assert edits_as_data([takes["blocks.0.slopes"]])[0]["stored"] is False


# ------------------------------------------------------------------ a kind that nobody knows


@dataclass(frozen=True)
class Rotate:
    """A kind of edit that is not in the table."""

    tensor: str


def test_an_unknown_kind_is_refused_everywhere(tmp_path: Path) -> None:
    edits: Any = [Rotate("leave.weight")]
    module = copy.deepcopy(fixture("fused").module)
    state = module.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    save_file({"leave.lora_B.weight": torch.ones(4, 2)}, tmp_path / "lora.safetensors")
    (tmp_path / "out").mkdir()
    for attempt in (
        lambda: apply_edits(module, edits),
        lambda: edit_state(state, edits),
        lambda: prune_weights(tmp_path / "model.safetensors", tmp_path / "out", edits),
        lambda: prune_lora(tmp_path / "lora.safetensors", tmp_path / "out" / "l.safetensors", edits, shapes_of(module)),
    ):
        with pytest.raises(TypeError, match="Rotate is no edit that can be applied here"):
            attempt()
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(UserError, match=r"an edit of the kind 'Rotate'; known are Take, .*Upgrade dit-compress"):
        edits_from_data([{"edit": "Rotate", "tensor": "x"}])


def test_edits_of_tensors_and_edits_of_code_are_all_there_are() -> None:
    assert {Take, Scale, KeepBlocks, *COMPUTING, *table.MAKING} == set(table._KINDS.values())


# ------------------------------------------------------------------ a LoRA of any of them


@pytest.mark.parametrize("name", FIXTURES)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_a_lora_follows_every_edit(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """``prune(W + B·A) = prune(W) + prune(B)·prune(A)`` for the weight of every linear and 1×1 convolution."""
    folder = tmp_path_factory.mktemp("lora")
    edits = drawn_edits(data, name)
    found = fixture(name)
    base = shapes_of(found.module)
    state = {key: value.double() for key, value in found.module.state_dict().items()}
    factors = {}
    for path, owner in found.module.named_modules():
        if isinstance(owner, nn.Linear) and f"{path}.weight" in base:
            rows, columns = base[f"{path}.weight"]
            factors[f"{path}.lora_A.weight"] = torch.randn(2, columns).double()
            factors[f"{path}.lora_B.weight"] = torch.randn(rows, 2).double()
    save_file(factors, folder / "lora.safetensors")
    prune_lora(folder / "lora.safetensors", folder / "small.safetensors", edits, base)
    merged = edit_state(added(state, factors), edits)
    same_to_rounding(added(edit_state(state, edits), load_file(folder / "small.safetensors")), merged)


def added(state: dict[str, Tensor], factors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = dict(state)
    for name, up in factors.items():
        if name.endswith(".lora_B.weight"):
            path = name.removesuffix(".lora_B.weight")
            found[f"{path}.weight"] = found[f"{path}.weight"] + up @ factors[f"{path}.lora_A.weight"]
    return found


def same_to_rounding(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
