"""Shards: encoded once, gone on with after a kill, never taken for another encoder's."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from warm import forkserver

from dit_compress.core.errors import UserError
from dit_compress.data import shard_writer as sharding
from dit_compress.data import shards
from dit_compress.data.clips import Clip
from dit_compress.data.encode import pixel_cache
from dit_compress.data.shard_writer import Writing, write_shards, write_together
from dit_compress.data.shards import Shards

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MADE_BY = {"vae": "a" * 64}


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder without siblings: shards of equal keys are taken over from those."""
    alone = tmp_path / "alone"
    alone.mkdir()
    return alone


def writing(folder: Path, count: int = 22, factor: float = 1.0, **changes: Any) -> Writing:
    """Sample i is ``[i·factor, i·factor]`` and a mask; 8 samples to a shard, in batches of 4."""

    def encode(first: int, last: int) -> dict[str, torch.Tensor]:
        rows = torch.arange(first, last, dtype=torch.float32)[:, None]
        return {"latent": (rows * factor).repeat(1, 2), "mask": torch.ones_like(rows)}

    given: dict[str, Any] = {
        "folder": folder,
        "made_by": MADE_BY,
        "samples": [{"file": f"{i}.mp4", "caption": f"clip {i}"} for i in range(count)],
        "identities": [[f"{i}.mp4", 100 + i] for i in range(count)],
        "encode": encode,
        "batch": 4,
        "bytes_per_sample": sharding.SHARD_BYTES // 9,
    }
    return Writing(**{**given, **changes})


def nothing() -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ------------------------------------------------------------------ writing and reading


def test_rows_come_back_by_index(tmp_path: Path) -> None:
    steps: list[int] = []
    assert write_shards(writing(tmp_path), lambda: steps.append(1))
    assert len(steps) == 22
    opened = Shards(tmp_path)
    assert (len(opened), opened.names(), opened.made_by) == (22, ["latent", "mask"], MADE_BY)
    assert [entry["count"] for entry in opened.index["shards"]] == [8, 8, 6]
    assert opened.column("latent")[[21, 0, 8]].tolist() == [[21, 21], [0, 0], [8, 8]]
    assert opened.column("latent", [5, 16])[np.array([1, 0])].tolist() == [[16, 16], [5, 5]]
    assert opened.samples()[7] == {"file": "7.mp4", "caption": "clip 7"}
    opened.verify()


def test_what_the_disk_does_not_hold_is_refused_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=2**27)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError) as caught:
        write_shards(writing(tmp_path), nothing)
    assert str(caught.value) == (
        f"{tmp_path}: for 22 encoded samples (156 MiB) there is no space left on the disk. "
        "Free some space (128 MiB are left) or take fewer or smaller clips"
    )
    assert not list(tmp_path.iterdir())
    free.free = 2**28
    assert write_shards(writing(tmp_path), nothing)
    free.free = 0  # what is there, or can be linked, needs no room
    assert write_shards(writing(tmp_path), nothing)
    assert write_shards(writing(tmp_path.parent / "other"), nothing)


def test_pixels_that_the_disk_does_not_hold_are_refused_before_the_first_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    clips = [Clip(tmp_path / f"{index}.mp4", "a clip") for index in range(1000)]  # 17 × 96 × 96 pixels each
    with pytest.raises(UserError) as caught:
        pixel_cache(tmp_path / "pixels.npy", clips, nothing)
    assert str(caught.value) == (
        f"{tmp_path / 'pixels.npy'}: for the pixels of 1000 clips (448 MiB) there is no space left on the disk. "
        "Free some space (1 MiB are left) or take fewer or smaller clips"
    )
    assert not list(tmp_path.iterdir())


def test_records_that_are_no_json_are_named(tmp_path: Path) -> None:
    write_shards(writing(tmp_path), nothing)
    for text in (b"[" * 100_000, b"\xff", b""):
        (tmp_path / "samples.jsonl").write_bytes(text)
        with pytest.raises(UserError, match=r"samples\.jsonl: not the records the index was written with"):
            Shards(tmp_path).samples()


def test_captions_with_other_separators_come_back(tmp_path: Path) -> None:
    samples = [{"caption": f"{index}\u2028and\u0085more"} for index in range(22)]
    write_shards(writing(tmp_path, samples=samples), nothing)
    assert Shards(tmp_path).samples() == samples


def test_a_column_too_large_for_memory_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(writing(tmp_path), nothing)
    monkeypatch.setattr(shards, "IN_MEMORY_BYTES", 0)
    column = Shards(tmp_path).column("latent", range(3, 22))
    assert column._rows is None
    assert column[[0, 18, 5]].tolist() == [[3, 3], [21, 21], [8, 8]]
    assert len(column) == 19


def test_a_shard_holds_whole_batches_of_some_sixty_mebibytes(tmp_path: Path) -> None:
    assert writing(tmp_path, bytes_per_sample=2**20, count=200).ranges() == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert writing(tmp_path, bytes_per_sample=2**30, count=6).ranges() == [(0, 4), (4, 6)]


def test_ranks_share_the_shards_and_the_last_writes_the_index(tmp_path: Path) -> None:
    write_shards(writing(tmp_path / "alone"), nothing)
    steps: list[int] = []
    assert not write_shards(writing(tmp_path / "shared"), lambda: steps.append(1), rank=1, world=2)
    assert len(steps) == 8
    with pytest.raises(UserError, match=r"index\.json is missing"):
        Shards(tmp_path / "shared")
    assert write_shards(writing(tmp_path / "shared"), nothing, rank=0, world=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")


def test_processes_of_one_training_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        """While rank 1 waits, rank 0 does its share."""
        waits.append(seconds)
        write_shards(writing(tmp_path), nothing, rank=0, world=2)

    monkeypatch.setattr("time.sleep", sleep)
    steps: list[int] = []
    opened = write_together(writing(tmp_path), lambda: steps.append(1), rank=1, world=2, wait_s=0.5)
    assert (waits, len(steps), len(opened)) == ([0.5], 8, 22)


# ------------------------------------------------------------------ what is reused, and what is not


def calls_of(made: Writing) -> tuple[Writing, list[tuple[int, int]]]:
    calls: list[tuple[int, int]] = []

    def encode(first: int, last: int) -> Any:
        calls.append((first, last))
        return made.encode(first, last)

    return Writing(**{**vars(made), "encode": encode}), calls


def test_only_shards_whose_samples_changed_are_encoded_again(tmp_path: Path) -> None:
    write_shards(writing(tmp_path / "a"), nothing)
    one_more, calls = calls_of(writing(tmp_path / "b", count=23))
    write_shards(one_more, nothing)
    assert calls == [(16, 20), (20, 23)]  # the other two are linked from the folder beside
    assert len(Shards(tmp_path / "b")) == 23
    changed = writing(tmp_path / "c")
    again, calls = calls_of(Writing(**{**vars(changed), "identities": [["0.mp4", 999], *changed.identities[1:]]}))
    write_shards(again, nothing)
    assert calls == [(0, 4), (4, 8)]


def test_another_encoder_shares_nothing_and_is_refused(tmp_path: Path) -> None:
    write_shards(writing(tmp_path / "a"), nothing)
    other, calls = calls_of(writing(tmp_path / "b", made_by={"vae": "b" * 64}, factor=2.0))
    write_shards(other, nothing)
    assert len(calls) == 6
    assert not contents(tmp_path / "a").keys() & contents(tmp_path / "b").keys() - {"index.json", "samples.jsonl"}
    with pytest.raises(
        UserError, match=r"b: encoded by another VAE than the bundle's \(bbbbbbbbbbbb…, not aaaaaaaaaaaa…\)"
    ):
        Shards(tmp_path / "b").need(MADE_BY)


def test_other_captions_change_the_records_and_no_shard(tmp_path: Path) -> None:
    write_shards(writing(tmp_path), nothing)
    again, calls = calls_of(writing(tmp_path, samples=[{"caption": "x"}] * 22))
    write_shards(again, nothing)
    assert calls == []
    assert Shards(tmp_path).samples() == [{"caption": "x"}] * 22


# ------------------------------------------------------------------ kills


def write_slowly(folder: Path, begun: Connection) -> None:
    """In a process of its own: say which rows are begun."""
    made = writing(folder)

    def slow(first: int, last: int) -> dict[str, torch.Tensor]:
        time.sleep(0.05)
        begun.send(first)
        return made.encode(first, last)

    write_shards(Writing(**{**vars(made), "encode": slow}), nothing)


@pytest.mark.parametrize("last", [0, 8, 12, 16])
def test_killed_in_the_middle_it_goes_on_to_equal_bytes(tmp_path: Path, last: int) -> None:
    folder = tmp_path / "killed"
    seen, begun = forkserver().Pipe(duplex=False)
    process = forkserver().Process(target=write_slowly, args=(folder, begun))
    process.start()
    begun.close()
    while seen.recv() < last:
        pass
    process.kill()
    process.join()
    assert not (folder / "index.json").exists()
    there = len(list(folder.glob("*.safetensors")))
    assert there == last // 8  # only whole shards have their name
    going_on, calls = calls_of(writing(folder))
    assert write_shards(going_on, nothing)
    assert calls[0] == (there * 8, there * 8 + 4)
    write_shards(writing(tmp_path / "alone"), nothing)
    left = {name for name in contents(folder) if name.endswith(".partial")}
    assert {name: data for name, data in contents(folder).items() if name not in left} == contents(tmp_path / "alone")


# ------------------------------------------------------------------ bad input


def test_a_value_that_is_not_finite_is_named_before_it_is_written(tmp_path: Path) -> None:
    def encode(first: int, last: int) -> dict[str, torch.Tensor]:
        rows = torch.zeros(last - first, 2)
        rows[torch.arange(first, last) == 13] = torch.nan
        return {"latent": rows}

    with pytest.raises(UserError, match=r"13\.mp4: the latent is not finite"):
        write_shards(writing(tmp_path, encode=encode), nothing)
    assert len(list(tmp_path.iterdir())) == 1  # the whole shard before


def test_a_value_that_is_not_finite_is_named_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_need_finite", lambda *_: None)
    write_shards(writing(tmp_path, factor=float("inf")), nothing)  # sample 0 is nan, the others inf
    for limit in (0, 2**30):
        monkeypatch.setattr(shards, "IN_MEMORY_BYTES", limit)
        with pytest.raises(UserError, match="the latent of sample 9 is not finite"):
            Shards(tmp_path).column("latent", [9, 10])[[0, 1]]


def test_damage_is_named(tmp_path: Path) -> None:
    write_shards(writing(tmp_path), nothing)
    path = tmp_path / Shards(tmp_path).index["shards"][1]["file"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{path.name}: the checksum differs"):
        Shards(tmp_path).verify()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{path.name}: the shard is missing or truncated"):
        Shards(tmp_path)
    path.write_bytes(whole)
    records = (tmp_path / "samples.jsonl").read_text()
    (tmp_path / "samples.jsonl").write_text(records.replace("clip 3", "clip 4"))
    with pytest.raises(UserError, match=r"samples\.jsonl: not the records"):
        Shards(tmp_path).samples()
    (tmp_path / "index.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(UserError, match="no index of schema 1"):
        Shards(tmp_path)
