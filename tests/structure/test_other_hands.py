"""Styles of other hands: each is seen, or refused by name with the mend; what is cut is exact, and is cut again."""

from __future__ import annotations

import copy
import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import other_hands
import pytest
import torch
from fresh import run_fresh
from other_hands import DIM, HEAD_DIM, MLP, NHEAD
from rich.console import Console
from torch import Tensor, nn

import dit_compress
from dit_compress.cli.inspect import axes_table
from dit_compress.core.errors import UserError
from dit_compress.model.figures import count_parameters
from dit_compress.pruning.recorded import RecordedDenoiser
from dit_compress.search.budget import parameter_price
from dit_compress.structure.apply import rename
from dit_compress.structure.compact import block_axes, compact_module, disagreement, kept_blocks
from dit_compress.structure.edits import KeepBlocks, edits_as_data, edits_from_data
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.structure.observe.discover import observe
from dit_compress.structure.record import Call
from dit_compress.structure.tombstone import Tombstone


def make(kind: Any) -> tuple[Any, Call]:
    torch.manual_seed(0)
    module = kind().double().eval()
    return module, call_of(module)


def call_of(module: nn.Module) -> Call:
    if isinstance(module, other_hands.Wrapped):
        with dit_compress.record(module) as call:
            module(other_hands.Batch(torch.randn(2, 6, 3).double(), torch.rand(2).double()))
        return call
    text = (torch.randn(2, 3, 5).double(),) if isinstance(module, other_hands.DualModel) else ()
    return Call((torch.randn(2, 6, 3).double(), *text, torch.rand(2).double()), {}, recorded=True)


def every_axis(module: nn.Module, call: Call) -> list[Any]:
    structure = observe(module, call)
    heads = [part.axis("head") for part in structure.attentions]
    return [*block_axes(structure), *heads, *(part.axis("ffn") for part in structure.feed_forwards)]


SEEN = {
    "Named": ({"layers": 3}, 3, 3),
    "Holes": ({"layers": 3}, 3, 3),
    "Stages": ({"layers": 3}, 3, 3),
    "Hourglass": ({"in_blocks": 2, "mid_block": 1, "out_blocks": 2}, 5, 5),
    "Video": ({"blocks": 3, "temporal_blocks": 3}, 6, 6),
    "Refined": ({"layers": 4, "refiner": 2}, 6, 6),
    "StateModel": ({"double_blocks": 3}, 3, 6),
    "TupleModel": ({"double_blocks": 3}, 3, 6),
    "OutputModel": ({"double_blocks": 3}, 3, 6),
    "BagModel": ({"double_blocks": 3}, 3, 6),
    "TurnedModel": ({"double_blocks": 3}, 3, 6),
    "Wrapped": ({"layers": 4}, 4, 4),
    "Pairs": ({"layers.*.0": 3, "layers.*.1": 3}, 3, 3),
}
"""Model → stacks with their lengths, attentions, feed-forwards."""


@pytest.mark.parametrize("name", SEEN)
def test_it_is_seen(name: str) -> None:
    structure = observe(*make(getattr(other_hands, name)))
    stacks, heads, channels = SEEN[name]
    assert {stack.path: stack.length for stack in structure.stacks} == stacks
    assert [part.heads for part in structure.attentions if part.count > 1][: heads - 1] == [NHEAD] * (heads - 1)
    assert [part.width for part in structure.feed_forwards][: channels - 1] == [MLP] * (channels - 1)


@pytest.mark.parametrize("name", SEEN)
def test_what_is_cut_is_what_the_masks_say_twice(name: str) -> None:
    """Blocks of every stack, heads and channels at once; then again what is left."""
    module, call = make(getattr(other_hands, name))
    for _ in range(2):
        axes = every_axis(module, call)
        kept = {axis.name: tuple(range(1, axis.units)) for axis in axes if axis.units > 1}
        with masked(module, axes, hard_masks(axes, kept, torch.zeros(1).double())):
            reference = call.replay(module)
        before = sum(p.numel() for p in module.parameters())
        compact_module(module, call, axes, kept)
        assert disagreement(call.replay(module), reference) < 1e-12
        assert sum(p.numel() for p in module.parameters()) < before


# ------------------------------------------------------------------ refused by name, with the mend


REFUSED = {
    "Overridden": ("layers", r"CallsItself has a __call__ of its own \(.*other_hands.py:\d+\).*name it forward"),
    "SilentModel": ("double_blocks", "its blocks give no tensor back: let forward return what it writes"),
    "Pairs": ("layers.*.0", "its items are lists, .* give each a forward"),
    "Hourglass": ("mid_block", "the only block of its stack: one must stay"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_seen_is_refused_by_name(name: str) -> None:
    refusals = {item.path: item.reason for item in observe(*make(getattr(other_hands, name))).refusals}
    path, reason = REFUSED[name]
    assert re.fullmatch(reason, refusals[path])


def test_lists_in_a_list_are_not_what_block_means() -> None:
    structure = observe(*make(other_hands.Resampled))
    assert (structure.main.path, structure.main.length) == ("layers", 4)
    assert {part.stack for part in structure.attentions} == {"layers", "resampler.*.0"}


def test_no_structure_without_a_reason() -> None:
    structure = observe(nn.Linear(3, 3), Call((torch.zeros(1, 3),), {}, recorded=True))
    assert structure.stacks == ()
    assert [item.reason for item in structure.refusals] == ["no list of blocks was found through which a stream runs"]


def test_a_refusal_is_in_the_error_that_a_user_sees() -> None:
    module, call = make(other_hands.SilentModel)
    with pytest.raises(UserError, match="no list of blocks .*double_blocks: its blocks give no tensor back"):
        dit_compress.prune(module, call=call, remove={"block": 1})


# ------------------------------------------------------------------ pruned, and pruned again


def tombstones(module: Any) -> list[bool]:
    return [isinstance(layer, Tombstone) for layer in module.layers]


@pytest.mark.parametrize("kind", [other_hands.Counted, other_hands.CountedPost, other_hands.Refined])
def test_places_of_removed_blocks_are_kept_over_three_prunings(kind: Any, tmp_path: Any) -> None:
    """Alive, saved, loaded: the same stack, down to its last block; every plan counts the blocks that are left."""
    module, call = make(kind)
    whole = copy.deepcopy(module)
    gone: list[list[bool]] = []
    for left in (3, 2, 1):
        (axis,) = [axis for axis in every_axis(module, call) if axis.name == "block:layers"]
        assert axis.units == left + 1
        dit_compress.prune(module, call=call, remove={"block": 1})
        gone.append(tombstones(module))
        structure = observe(module, call)
        assert (structure.main.path, structure.main.length, structure.main.removed) == ("layers", left, 4 - left)
        assert [stack.path for stack in structure.stacks] == [stack.path for stack in observe(whole, call).stacks]
        places = [place for place, away in enumerate(gone[-1]) if not away]
        mine = [part.path for part in structure.attentions if part.stack == "layers"]
        assert mine == [f"layers.{place}.attn" for place in places]
        dit_compress.save(module, tmp_path / str(left))
        loaded = dit_compress.load(tmp_path / str(left), module=copy.deepcopy(whole))
        assert tombstones(loaded) == gone[-1]
        assert torch.equal(call.replay(loaded), call.replay(module))
        module = loaded if left == 3 else module
    assert all(sum(row) == count for count, row in enumerate(gone, 1))
    assert all(
        a <= b for before, after in zip(gone, gone[1:], strict=False) for a, b in zip(before, after, strict=True)
    )
    assert kept_blocks(module.dit_compress_pruning["record"]["log"], "layers") == (gone[-1].index(False),)


@pytest.mark.parametrize("kind", [other_hands.Named, other_hands.Holes])
def test_blocks_with_names_go_and_come_back_from_disk(kind: Any, tmp_path: Any) -> None:
    module, call = make(kind)
    whole = copy.deepcopy(module)
    for _ in range(2):
        dit_compress.prune(module, call=call, remove={"block": 1})
    assert observe(module, call).main.length == 1
    dit_compress.save(module, tmp_path / "small")
    loaded = dit_compress.load(tmp_path / "small", module=whole)
    assert torch.equal(call.replay(loaded), call.replay(module))
    assert len(loaded.layers) == len(module.layers)


def test_a_budget_counts_what_tombstones_left() -> None:
    module, call = make(other_hands.Counted)
    dit_compress.prune(module, call=call, remove={"block": 1})
    axes = [axis for axis in every_axis(module, call) if axis.blocks]
    price = parameter_price(module, axes)
    size = count_parameters(module.layers[next(i for i, away in enumerate(tombstones(module)) if not away)])
    assert price.blocks["block:layers"] == (size, size, size)
    assert price.of(axes, {}) == count_parameters(module)


def test_a_class_with_a_call_of_its_own_says_why_nothing_was_recorded() -> None:
    layer = other_hands.CallsItself()
    with pytest.raises(UserError, match="CallsItself: .*__call__ of its own"), dit_compress.record(layer):
        layer(torch.zeros(1, 2, other_hands.DIM), torch.zeros(1, other_hands.DIM))


# ------------------------------------------------------------------ checks on dtype, and whose line raised


@pytest.mark.parametrize(("kind", "dtype"), [("StrictModel", torch.float32), ("HalfModel", torch.bfloat16)])
def test_checks_of_dtypes_pass_on_the_copy_and_in_the_proof(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dit_compress.structure.compact.SINGLE", 0)
    module, call = make(getattr(other_hands, kind))
    module, call = module.to(dtype), call.map(lambda x: x.to(dtype))
    structure = observe(module, call)
    assert structure.main.path == "layers"
    assert {part.heads for part in structure.attentions} == {NHEAD}
    assert {part.width for part in structure.feed_forwards} == {MLP}
    size = count_parameters(module)
    dit_compress.prune(module, call=call, remove={"block": 1, "head": 1})
    assert count_parameters(module) < size
    assert call.replay(module).dtype == dtype


def line(code: str) -> int:
    lines = Path(other_hands.__file__).read_text("utf-8").splitlines()
    return next(number for number, text in enumerate(lines, 1) if text.strip() == code)


def test_a_check_that_no_dtype_passes_is_named() -> None:
    module, call = make(other_hands.Both16And32)
    module, call = module.bfloat16(), call.map(Tensor.bfloat16)
    code = "assert self.temb(emb[:, :1]).float().dtype == torch.float32"
    where = rf"AssertionError: assert .*, at .*other_hands.py:{line(code)}\. "
    with pytest.raises(UserError, match=where + "Take the check of dtypes on that line out"):
        observe(module, call)


def test_the_line_that_raised_is_named() -> None:
    module, call = make(other_hands.Grumpy)
    code = 'raise ValueError("I do not like these numbers")'
    where = rf"ValueError: I do not like these numbers, at .*other_hands.py:{line(code)}\. "
    with pytest.raises(UserError, match="on a copy without weights: " + where + "Record a call"):
        observe(module, call)
    with pytest.raises(UserError, match="Trunk|Grumpy: the recorded call fails: " + where):
        call.replay(module)


# ------------------------------------------------------------------ every stack is an axis


def lengths(module: nn.Module, call: Call) -> dict[str, int]:
    return {stack.path: stack.length for stack in observe(module, call).stacks}


@pytest.mark.parametrize(
    ("kind", "remove", "left"),
    [
        ("Refined", {"block": 2}, {"layers": 2, "refiner": 2}),
        ("Refined", {"block.refiner": 1}, {"layers": 4, "refiner": 1}),
        ("Refined", {"block": 1, "block.refiner": 1}, {"layers": 3, "refiner": 1}),
        ("Video", {"block.blocks": 2, "block.temporal_blocks": 1}, {"blocks": 1, "temporal_blocks": 2}),
        ("Video", {"block": 1}, {"blocks": 3, "temporal_blocks": 2}),
        ("Hourglass", {"block.in_blocks": 1}, {"mid_block": 1, "in_blocks": 1, "out_blocks": 2}),
        ("StateModel", {"block.double_blocks": 2}, {"double_blocks": 1}),
    ],
)
def test_blocks_of_the_stack_that_is_named_go(kind: str, remove: dict[str, int], left: dict[str, int]) -> None:
    module, call = make(getattr(other_hands, kind))
    dit_compress.prune(module, call=call, remove=remove)
    assert lengths(module, call) == left


def test_heads_of_one_stack_and_of_the_rest() -> None:
    module, call = make(other_hands.Video)
    dit_compress.prune(module, call=call, remove={"head": 1, "head.temporal_blocks": 3}, keep={"ffn.blocks": 0.5})
    structure = observe(module, call)
    assert {part.stack: part.heads for part in structure.attentions} == {"blocks": 3, "temporal_blocks": 1}
    assert {part.stack: part.width for part in structure.feed_forwards} == {"blocks": MLP // 2, "temporal_blocks": MLP}


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ({"block.middle": 1}, "'middle' names no stack; there are mid_block, in_blocks, out_blocks. Name one"),
        ({"block.blocks": 1}, "'blocks' names no stack"),
        ({"blok.in_blocks": 1}, "unknown granularity plugin 'blok'. Did you mean 'block'"),
        ({"block.mid_block": 1}, "block:mid_block has 1 units and would keep 0"),
        ({"block": 1, "block.out_blocks": 1}, "level 'block' finds nothing to remove"),
    ],
)
def test_a_stack_that_can_not_be_meant_is_refused(remove: dict[str, int], message: str) -> None:
    module, call = make(other_hands.Hourglass)
    with pytest.raises(UserError, match=message):
        dit_compress.prune(module, call=call, remove=remove)


@pytest.mark.parametrize("name", ["Overridden", "SilentModel"])
def test_a_named_list_that_is_no_stack_is_refused_with_its_reason(name: str) -> None:
    module, call = make(getattr(other_hands, name))
    path, reason = REFUSED[name]
    with pytest.raises(UserError, match=f"the blocks of {path!r} can't be removed: {reason}"):
        dit_compress.prune(module, call=call, remove={f"block.{path}": 1})


def test_a_budget_takes_the_stacks_that_it_names() -> None:
    module, call = make(other_hands.Refined)
    size = count_parameters(module)
    block = count_parameters(module.layers[0])
    dit_compress.prune(module, call=call, params=size - 3 * block, levels=["block", "block.refiner"])
    assert count_parameters(module) == size - 3 * block
    assert lengths(module, call) == {"layers": 2, "refiner": 1}


def test_inspect_lists_every_stack_and_what_stays() -> None:
    module, call = make(other_hands.Hourglass)
    console = Console(width=200, file=StringIO())
    console.print(axes_table(RecordedDenoiser(module, call)))
    rows = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    blocks = {row[0]: row[2] for row in rows if row[1:2] == ["block"]}
    assert blocks == {"in_blocks": "2", "out_blocks": "2"}
    assert any(row[0] == "mid_block" and " ".join(row).endswith("one must stay") for row in rows if row)


# ------------------------------------------------------------------ heads that the code counts otherwise


@pytest.mark.parametrize("kind", ["LastModel", "LastByHeadsModel", "TimmModel", "FatModel"])
def test_heads_go_with_what_nothing_reads_and_with_what_a_reshape_infers(kind: str, tmp_path: Any) -> None:
    module, call = make(getattr(other_hands, kind))
    whole = copy.deepcopy(module)
    structure = observe(module, call)
    assert {item.reason for item in structure.refusals} <= {"the recorded call does not use it"}
    count = len(structure.attentions)
    assert [part.heads for part in structure.attentions] == [NHEAD] * count
    assert count == {"TimmModel": 4}.get(kind, 3)
    for left in (3, 2):
        dit_compress.prune(module, call=call, remove={"head": 1})
        assert {part.heads for part in observe(module, call).attentions} == {left}
    dit_compress.save(module, tmp_path / "small")
    loaded = dit_compress.load(tmp_path / "small", module=whole)
    assert torch.equal(call.replay(loaded), call.replay(module))
    copied = copy.deepcopy(loaded)
    assert torch.equal(call.replay(copied), call.replay(module))
    assert type(module).__name__ == kind


@pytest.mark.parametrize("kind", ["LastModel", "LastByHeadsModel"])
def test_the_dead_third_is_cut_head_by_head(kind: str) -> None:
    structure = observe(*make(getattr(other_hands, kind)))
    part = structure.attentions[-1]
    (rows,) = [m.indices for m in part.members if m.tensor.endswith("txt_qkv.weight") and m.dim == 0]
    apart, first = (HEAD_DIM, 3 * HEAD_DIM) if kind == "LastByHeadsModel" else (DIM, HEAD_DIM)
    for head in range(NHEAD):
        expected = [head * first + third * apart + entry for third in range(3) for entry in range(HEAD_DIM)]
        assert rows[head].tolist() == expected


FRESH = """
import sys
import torch, other_hands
from load_pruned import load
assert not any(name.startswith("dit_compress") for name in sys.modules)
torch.manual_seed(0)
module = load(sys.argv[1], module=other_hands.TimmModel().double())
assert module.layers[0].attn.num_heads == 3
torch.save(module(torch.ones(2, 6, 3).double(), torch.ones(2).double()), sys.argv[2])
"""


def test_a_stand_in_is_made_again_without_the_package(tmp_path: Path) -> None:
    module, call = make(other_hands.TimmModel)
    dit_compress.prune(module, call=call, remove={"head": 1, "block": 1})
    dit_compress.save(module, tmp_path / "small")
    out, paths = tmp_path / "out.pt", (Path(other_hands.__file__).parent, tmp_path / "small")
    done = run_fresh(FRESH, tmp_path / "small", out, folder=tmp_path, path=paths)
    assert done.status == 0, done.printed
    assert torch.equal(torch.load(out), module(torch.ones(2, 6, 3).double(), torch.ones(2).double()))


def test_the_line_to_change_is_named() -> None:
    structure = observe(*make(other_hands.ScaledModel))
    assert structure.attentions == ()
    code = "q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, width).permute(2, 0, 3, 1, 4)"
    (reason,) = {item.reason for item in structure.refusals}
    where = f"other_hands.py:{line(code)}, which fails with fewer: {code}"
    assert reason.startswith("4 heads: no set of attributes makes compact equal masked; change ")
    assert reason.endswith(where)


# ------------------------------------------------------------------ the edit of blocks with names


def test_blocks_with_names_are_edited_in_files_too() -> None:
    edit = KeepBlocks("net", (0, 2), True, 0, None, (), ("net.b.clock",), ("net.a", "net.b", "net.ba"))
    names = ["net.a.w", "net.b.w", "net.b.clock.w", "net.ba.w", "other.w"]
    assert [rename(name, edit) for name in names] == ["net.a.w", None, "net.b.clock.w", "net.ba.w", "other.w"]
    assert edits_from_data(json.loads(json.dumps(edits_as_data([edit])))) == [edit]
    assert "names" not in edits_as_data([KeepBlocks("net", (0,))])[0]
