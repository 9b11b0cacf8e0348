"""The edit table on safetensors: equal to the edited state dict bit for bit, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from dit_compress.core.errors import UserError
from dit_compress.structure.apply import edit_state
from dit_compress.structure.edits import KeepBlocks, Scale, SetAttribute, Take
from dit_compress.structure.files import disk, slices
from dit_compress.structure.files.disk import prune_weights, write_file
from dit_compress.structure.files.tensor_files import open_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

STEM = "diffusion_pytorch_model"


def random_state(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {
        "proj.weight": (6, 10),
        "conv.weight": (8, 6, 2, 3),
        "blocks.0.up.weight": (24, 10),
        "blocks.0.up.bias": (24,),
        "blocks.1.up.weight": (24, 10),
        "blocks.1.norm.weight": (10,),
        "blocks.2.down.weight": (10, 24),
        "scalar": (),
        "none": (0, 3),
    }
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


EDITS = [
    Take("blocks.0.up.weight", 0, (0, 1, 2, 3, 8, 9, 10, 11)),
    Take("blocks.0.up.bias", 0, (0, 1, 2, 3, 8, 9, 10, 11)),
    Take("blocks.1.up.weight", 0, (0, 5, 23)),
    Take("blocks.1.up.weight", 1, (2, 3, 6, 7)),
    Take("blocks.2.down.weight", 1, tuple(range(1, 24, 2))),
    Take("conv.weight", 0, (1, 2, 7)),
    Take("conv.weight", 1, (0, 3)),
    Take("conv.weight", 3, (0, 2)),
    Scale("blocks.1.norm.weight", 1.1),
    SetAttribute("blocks.0", "heads", 3),
    KeepBlocks("blocks", (0, 2)),
    Take("blocks.1.down.weight", 1, (0, 4, 5)),
    Take("blocks.0.up.weight", 0, (1, 2, 6)),
]


def shard(state: Mapping[str, Tensor], folder: Path, count: int) -> None:
    """What diffusers' sharded checkpoints look like."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: f"{STEM}-{1 + n % count:05}-of-{count:05}.safetensors" for n, name in enumerate(state)}
    for file in set(places.values()):
        part = {name: value for name, value in state.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def read(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [8, 64, 1 << 20])
def test_files_are_cut_as_a_state_dict_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int
) -> None:
    monkeypatch.setattr(slices, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(slices, "SHORT_BYTES", 16)
    state = random_state(dtype)
    shard(state, tmp_path / "in", 3)
    (tmp_path / "out").mkdir()
    prune_weights(tmp_path / "in", tmp_path / "out", EDITS)
    same(read(tmp_path / "out"), edit_state(state, EDITS))


def test_a_file_is_byte_for_byte_what_safetensors_writes(tmp_path: Path) -> None:
    state = random_state() | {"steps": torch.arange(3), "mask": torch.ones(2, dtype=torch.bool)}
    state |= {"wide": torch.ones(2, dtype=torch.float64), "plain": torch.ones(3)}
    save_file(state, tmp_path / "in.safetensors", metadata={"format": "pt", "licence": "Apache-2.0 ©"})
    weights = open_weights(tmp_path / "in.safetensors")
    pieces = disk.pieces(weights, ())
    record = write_file(pieces, tmp_path / "out.safetensors", {"format": "pt"})
    data = (tmp_path / "out.safetensors").read_bytes()
    assert data == save(state, metadata={"format": "pt"})
    assert record == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert weights.metadata == {"format": "pt", "licence": "Apache-2.0 ©"}


def test_shards_are_balanced_and_indexed(tmp_path: Path) -> None:
    state = {f"t{n}": torch.randn(10, 10) for n in range(10)}
    shard(state, tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    records = prune_weights(tmp_path / "in", tmp_path / "out", [Take("t3", 0, (1, 2))], shard_bytes=1600)
    index = json.loads((tmp_path / "out" / f"{STEM}.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 9 * 400 + 80
    assert sorted(records) == [f"{STEM}-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    sizes = [sum(index["weight_map"][name] == file for name in state) for file in sorted(records)]
    assert sizes == [4, 4, 2]
    for file, record in records.items():
        assert hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest() == record["sha256"]
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            assert set(opened.keys()) == {name for name, place in index["weight_map"].items() if place == file}
            assert opened.metadata() == {"format": "pt"}
    same(read(tmp_path / "out"), edit_state(state, [Take("t3", 0, (1, 2))]))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_take_of_any_axis(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("take")
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    state = {"x": torch.arange(int(np.prod(shape)), dtype=torch.int32).view(torch.float32).reshape(shape)}
    edits = [
        Take("x", dim, tuple(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))))
        for dim, size in enumerate(shape)
        if data.draw(st.booleans())
    ]
    save_file(state, folder / "x.safetensors")
    (folder / "out").mkdir()
    chunk = data.draw(st.sampled_from([4, 40, 400]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "CHUNK_BYTES", chunk)
        patch.setattr(slices, "SHORT_BYTES", data.draw(st.sampled_from([0, 8, 1000])))
        prune_weights(folder / "x.safetensors", folder / "out", edits)
    found, wanted = (value["x"].view(torch.int32) for value in (read(folder / "out"), edit_state(state, edits)))
    assert torch.equal(found, wanted)


# ------------------------------------------------------------------ refused, with nothing written


def _missing_shard(folder: Path) -> None:
    next(folder.glob("*00002*")).unlink()


def _truncated(folder: Path) -> None:
    file = next(folder.glob("*00001*"))
    file.write_bytes(file.read_bytes()[:-7])


def _garbled(folder: Path) -> None:
    file = next(folder.glob("*00001*"))
    file.write_bytes(file.read_bytes()[:8] + b"{not json" + file.read_bytes()[17:])


def _empty(folder: Path) -> None:
    next(folder.glob("*00001*")).write_bytes(b"")


def _index_lies(folder: Path) -> None:
    path = next(folder.glob("*.index.json"))
    data = json.loads(path.read_text())
    data["weight_map"]["nowhere"] = data["weight_map"]["scalar"]
    path.write_text(json.dumps(data))


def _names(file: str) -> Callable[[Path], None]:
    """Let an index name some file."""

    def damage(folder: Path) -> None:
        path = next(folder.glob("*.index.json"))
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "weight_map": {**data["weight_map"], "scalar": file}}))

    return damage


def _no_weights(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def _two_sets(folder: Path) -> None:
    next(folder.glob("*.index.json")).unlink()


def _quantised(folder: Path) -> None:
    state = random_state()
    shard(state | {"blocks.0.up.weight": state["blocks.0.up.weight"].to(torch.int8)}, folder, 3)


DAMAGE = {
    "missing shard": (_missing_shard, "the shard .*-00002-of-00003.safetensors is missing"),
    "truncated": (_truncated, "truncated or changed"),
    "header broken": (_garbled, "not a safetensors header"),
    "empty file": (_empty, "not a whole safetensors file"),
    "index of another model": (_index_lies, "index and shards disagree about 'nowhere'"),
    "index out of the folder": (_names("../x.safetensors"), "not an index of shards"),
    "index of a long name": (_names(f"{'x' * 300}.safetensors"), "not an index of shards"),
    "index of no name": (_names(""), "not an index of shards"),
    "pickles only": (_no_weights, "no safetensors here"),
    "two sets of weights": (_two_sets, "several sets of weights"),
    "quantised": (_quantised, "dtype I8: quantised weights can't be cut"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_bad_files_are_refused(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    shard(random_state(), tmp_path / "in", 3)
    damage(tmp_path / "in")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=message):
        prune_weights(tmp_path / "in", tmp_path / "out", EDITS)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Take("nowhere.weight", 0, (0,)), "the plan edits the tensor 'nowhere.weight', which is not here"),
        (Take("proj.weight", 0, (0, 6)), r"'proj.weight' is \[6, 10\]; the plan takes entry 6 of axis 0"),
        (Take("proj.weight", 2, (0,)), r"'proj.weight' is \[6, 10\]; the plan takes entry 0 of axis 2"),
        (Take("proj.weight", 0, (3, 1)), "do not ascend"),
    ],
)
def test_edits_of_another_model_are_refused(tmp_path: Path, edit: Any, message: str) -> None:
    shard(random_state(), tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=message):
        prune_weights(tmp_path / "in", tmp_path / "out", [edit])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(random_state(), tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    calls: list[int] = []

    def full(handle: int, data: Any, write: Any = os.write) -> int:
        calls.append(len(data))
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr("dit_compress.structure.files.tensor_files.os.write", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        prune_weights(tmp_path / "in", tmp_path / "out", EDITS)
    assert list((tmp_path / "out").iterdir()) == []
