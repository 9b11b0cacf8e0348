"""What a step's key is made of: files and folders that options name count by what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field
from toy import tiny_bundle

from dit_compress.core import files
from dit_compress.core.files import sealed, sha256_content, sha256_data, sha256_file
from dit_compress.plugin.options import File, Keyed, Options, files_of, options_as_data
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load, make_part
from dit_compress.run.keys import Node, input_key, made_of, nodes


def key(tmp_path: Path, budget: dict[str, Any]) -> tuple[str, Node]:
    recipe = {
        "model": {"use": "video_dit", "preset": "tiny"},
        "steps": [{"prune": {"use": "trilevel", "search": "magnitude", "budget": budget}}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    loaded = load(path, installed())
    node = nodes(loaded)[-1]
    return sha256_data(made_of(node, {"input": "0"}, loaded, "")), node


BUDGETS: dict[str, Any] = {
    "table": lambda path: {"latency": {"seconds": 1.0, "table": path}},
    "curves": lambda path: {"params": 1000, "curves": path},
}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_file_counts_by_its_content(tmp_path: Path, name: str) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("{}")
    second.write_text("{}")
    before, node = key(tmp_path, BUDGETS[name](str(first)))
    assert key(tmp_path, BUDGETS[name](str(second)))[0] == before, "another name, the same content"
    first.write_text('{"unit": "seconds"}')
    assert key(tmp_path, BUDGETS[name](str(first)))[0] != before, "the same name, another content"
    assert str(first) in str(node.describe()), "lineage says which file it was"
    first.unlink()
    gone = key(tmp_path, BUDGETS[name](str(first)))[0]
    assert gone not in (before, key(tmp_path, BUDGETS[name](str(second)))[0])


def test_words_are_no_files(tmp_path: Path) -> None:
    assert key(tmp_path, {"params": 1000})[0] == key(tmp_path, {"params": 1000, "curves": None})[0]
    assert key(tmp_path, {"params": 1000})[0] != key(tmp_path, {"params": 1000, "curves": "measured"})[0]


@pytest.mark.parametrize(
    ("budget", "reads", "needs", "splits"),
    [
        ({}, True, False, ("train",)),
        ({"curves": "default"}, False, False, ()),
        ({"curves": "measured"}, True, True, ("train",)),
        ({"curves": "recovered"}, True, True, ("train", "test")),
        ({"curves": "default", "trials": {}}, True, True, ("train", "test")),
    ],
)
def test_what_measures_has_the_data_in_its_key(
    tmp_path: Path, budget: dict[str, Any], reads: bool, needs: bool, splits: tuple[str, ...]
) -> None:
    node = key(tmp_path, {"params": 1000, **budget})[1]
    assert (node.reads_data, node.needs_data, node.splits) == (reads, needs, splits)


class Inner(Options):
    table: Annotated[str | None, File()] = None


class Outer(Options):
    inner: Inner = Inner()
    notes: Annotated[str, File()] = "none"
    title: str = "x"


def test_a_plugins_own_options_may_name_files(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("[]")
    options = Outer(inner=Inner(table=str(path)), title=str(path))
    assert files_of(options) == {"inner.table": (File(), str(path)), "notes": (File(), "none")}
    assert options_as_data(options, contents=True) == {
        "inner": {"table": sha256_file(path)}, "notes": "none", "title": str(path),
    }  # fmt: skip
    assert options_as_data(options)["inner"] == {"table": str(path)}


class Later(Options):
    old: int = 1
    machine: Annotated[int | None, Keyed()] = None
    new: Annotated[float, Keyed("new")] = 0.5
    meaning: Annotated[bool, Keyed("meaning", "old")] = False


class Holding(Options):
    inner: Later = Later()


class Renamed(Options):
    """What a recipe writes otherwise than the class does, and options in a list and a mapping."""

    table: Annotated[str | None, File()] = Field(None, alias="from")
    late: Annotated[int, Keyed("late")] = Field(1, alias="lambda")
    several: tuple[Later, ...] = (Later(), Later(new=0.25))
    named: dict[str, Later] = {"first": Later(machine=3)}  # noqa: RUF012 - pydantic copies it


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ({}, {"old": 1}),
        ({"machine": 8}, {"old": 1}),
        ({"new": 0.5}, {"old": 1}),
        ({"new": 0.25}, {"old": 1, "new": 0.25}),
        ({"old": 2}, {"old": 2, "meaning": False}),
        ({"meaning": True}, {"old": 1, "meaning": True}),
    ],
)
def test_an_option_that_came_later_counts_where_it_changes_something(
    given: dict[str, Any], counted: dict[str, Any]
) -> None:
    whole = {"old": 1, "machine": None, "new": 0.5, "meaning": False, **given}
    assert options_as_data(Later(**given), contents=True) == counted
    assert options_as_data(Holding(inner=Later(**given)), contents=True) == {"inner": counted}
    assert options_as_data(Later(**given)) == whole


def test_an_option_counts_alike_under_another_name_and_in_containers(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"1")
    made, path = Renamed.model_validate({"from": str(tmp_path / "t")}), tmp_path / "t"
    counted = {"several": [{"old": 1}, {"old": 1, "new": 0.25}], "named": {"first": {"old": 1}}}
    assert options_as_data(made, contents=True) == {"from": sha256_content(path), **counted}
    assert options_as_data(Renamed.model_validate({"lambda": 2}), contents=True) == {
        "from": None,
        "lambda": 2,
        **counted,
    }


def test_how_a_training_is_computed_changes_no_key() -> None:
    def counted(**given: Any) -> dict[str, Any]:
        part = make_part("distill", {"use": "flow", "steps": 200, "watch": {}, **given}, installed())
        return part.as_data(contents=True)

    plain = counted()
    assert not plain.keys() & {"compile", "deterministic", "shard", "bf16_gather", "betas", "clip", "images"}
    assert plain["watch"] == {"every": 100, "captions": 4, "sampling_steps": None, "stop": False}
    assert counted(compile=True, deterministic=False, shard=2, watch={"sheets": 3}) == plain
    assert counted(betas=[0.9, 0.999], clip=1.0, images=0.0) == plain
    assert counted(images=0.25) == {**plain, "images": 0.25}
    assert counted(clip=None) == {**plain, "clip": None}
    assert counted(weight_decay=0.1) == {**plain, "weight_decay": 0.1, "decay_norms": False}


# ------------------------------------------------------------------ folders


def folder(path: Path, **files: bytes) -> Path:
    for name, content in files.items():
        place = path / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return path


def test_a_folder_counts_by_names_and_contents_below_it(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", config=b"{}", deep__weights=b"12")
    assert sha256_content(folder(tmp_path / "two", config=b"{}", deep__weights=b"12")) == sha256_content(one)
    before = sha256_content(one)
    folder(one, deep__weights=b"13")
    assert sha256_content(one) != before
    folder(one, deep__weights=b"12")
    assert sha256_content(one) == before
    folder(one, more=b"")
    assert sha256_content(one) != before
    (one / "more").rename(one / ".more")
    assert sha256_content(one) == before, "hidden files are the business of whoever fetched the folder"


def test_of_a_pipelines_folder_the_named_parts_count(tmp_path: Path) -> None:
    pipeline = folder(tmp_path / "p", vae__config=b"{}", transformer__weights=b"1", model_index=b"{}")
    before = File(("vae",)).content(str(pipeline))
    folder(pipeline, transformer__weights=b"2", model_index=b"{ }")
    assert File(("vae",)).content(str(pipeline)) == before
    assert File().content(str(pipeline)) != before
    folder(pipeline, vae__config=b"{ }")
    assert File(("vae",)).content(str(pipeline)) != before
    assert File(("unet",)).content(str(pipeline)) == File().content(str(pipeline)), "a folder of its own, as it is"


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(files, "sha256_file", lambda path: (read.append(path), sha256_file(path))[1])
    path = folder(tmp_path / "f", weights=b"1") / "weights"
    digests = [sha256_content(tmp_path / "f") for _ in range(3)]
    assert read == [path]
    path.write_bytes(b"2")
    assert sha256_content(tmp_path / "f") not in digests
    assert read == [path, path]


def part_key(kind: str, use: str, **options: Any) -> str:
    node = Node("x", kind, {"step": make_part(kind, {"use": use, **options}, installed())})
    return sha256_data(node.describe(contents=True))


@pytest.mark.parametrize(
    ("kind", "use", "changed", "same"),
    [
        ("text", "transformers", "model.safetensors", None),
        ("latent", "diffusers_vae", "vae/model.safetensors", "transformer/model.safetensors"),
        ("model", "diffusers", "transformer/model.safetensors", "vae/model.safetensors"),
        ("model", "diffusers", "scheduler/scheduler_config.json", "text_encoder/model.safetensors"),
    ],
)
def test_folders_of_models_count_by_content(
    tmp_path: Path, kind: str, use: str, changed: str, same: str | None
) -> None:
    """A byte of a file that is read makes another key; one of a part of the pipeline that is not, does not."""
    for name in (changed, *([same] if same else [])):
        folder(tmp_path, **{name.replace("/", "__"): b"1"})
    before = part_key(kind, use, path=str(tmp_path))
    assert part_key(kind, use, path=str(tmp_path)) == before
    if same:
        (tmp_path / same).write_bytes(b"2")
        assert part_key(kind, use, path=str(tmp_path)) == before
    (tmp_path / changed).write_bytes(b"2")
    assert part_key(kind, use, path=str(tmp_path)) != before


@pytest.mark.parametrize("use", ["coreml", "coreai", "onnx", "executorch"])
def test_a_device_of_ones_own_counts_by_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    """An edited profile exports again; a folder that happens to be called as a profile is none."""
    path = tmp_path / "my-phone.json"
    path.write_text('{"name": "mine", "max_rank": 5}')
    before, named = part_key("export", use, device=str(path)), part_key("export", use, device="cpu")
    folder(tmp_path / "cpu", anything=b"1")
    monkeypatch.chdir(tmp_path)
    assert part_key("export", use, device="cpu") == named != part_key("export", use, device="generic-android")
    assert part_key("export", use, device="my-phone.json") == before
    path.write_text('{"name": "mine", "max_rank": 4}')
    assert part_key("export", use, device=str(path)) != before


def test_a_bundle_counts_with_the_folder_it_refers_to(tmp_path: Path) -> None:
    """A bundle holds where its T5 encoder lies, not the weights."""
    plain = tiny_bundle(tmp_path / "plain")
    assert input_key(str(plain.path), {}) == plain.digest()
    place = folder(tmp_path / "t5", weights=b"1")
    bundle = tiny_bundle(tmp_path / "bundle")
    data = json.loads((bundle.path / "bundle.json").read_text())
    data["components"]["text"] |= {"plugin": "transformers", "config": {"path": str(place), "width": 8, "length": 4}}
    (bundle.path / "bundle.json").write_text(json.dumps(sealed(data)))
    before = input_key(str(bundle.path), {})
    assert before == input_key(str(bundle.path), {}) != bundle.digest()
    folder(place, weights=b"2")
    assert input_key(str(bundle.path), {}) != before
