"""Bundles: written whole, read back exactly, and refused where anything is not as it was written."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flips import silent_flips
from toy import tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.core.files import sealed, sha256_file
from dit_compress.core.version import SCHEMA
from dit_compress.model.bundle import WEIGHTS, Bundle, write_bundle
from dit_compress.model.cut import example_output
from dit_compress.model.flow import Flow
from dit_compress.testing.models import tiny_denoiser

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to copy."""
    return tiny_bundle(tmp_path_factory.mktemp("whole") / "bundle", flow=Flow(5.0, 4, 1.0)).path


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((bundle / "bundle.json").read_text())
    change(data)
    (bundle / "bundle.json").write_text(json.dumps(sealed(data)))


def message(use: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        use()
    return str(caught.value)


# ------------------------------------------------------------------ whole


def test_it_computes_what_was_written(whole: Path) -> None:
    found = Bundle.open(whole)
    torch.testing.assert_close(
        example_output(found.denoiser()), example_output(tiny_denoiser("video_dit")), rtol=0, atol=0
    )
    captions = ["a red circle"]
    encoder, again = words().requires_grad_(requires_grad=False).encoder.eval(), found.text()
    assert torch.equal(encoder(encoder.tokenize(captions))["embedding"], again(again.tokenize(captions))["embedding"])
    assert found.flow == Flow(5.0, 4, 1.0)
    assert not any(parameter.requires_grad for parameter in found.denoiser().parameters())


def test_it_holds_what_another_machine_needs(whole: Path) -> None:
    data = json.loads((whole / "bundle.json").read_text())
    assert data.keys() == {"schema", "components", "flow", "video", "lineage", "licence", "sha256"}
    assert data == sealed(data)
    assert data["schema"] == SCHEMA
    for name, component in data["components"].items():
        assert component.keys() == {"plugin", "config", "log", "files"}
        assert component["files"].keys() == {"config.json", WEIGHTS}
        for file, record in component["files"].items():
            path = whole / name / file
            assert record == {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def test_equal_weights_are_equal_bytes(whole: Path, tmp_path: Path) -> None:
    again = tiny_bundle(tmp_path / "again", flow=Flow(5.0, 4, 1.0))
    assert (again.path / "bundle.json").read_bytes() == (whole / "bundle.json").read_bytes()
    assert again.digest() == Bundle.open(whole).digest()
    assert tiny_bundle(tmp_path / "other", seed=1).digest("denoiser") != again.digest("denoiser")


def test_an_unchanged_component_is_linked(whole: Path, tmp_path: Path) -> None:
    base = Bundle.open(whole)
    made = write_bundle(
        tmp_path / "next", base.spec, {"denoiser": tiny_denoiser("video_dit", 1).module}, base=base, lineage=[]
    )
    assert (made.path / "text" / WEIGHTS).stat().st_ino == (whole / "text" / WEIGHTS).stat().st_ino
    assert (made.path / "denoiser" / WEIGHTS).stat().st_ino != (whole / "denoiser" / WEIGHTS).stat().st_ino
    assert made.digest("text") == base.digest("text")


def test_where_links_can_not_be_made_it_is_copied(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    base = Bundle.open(whole)
    made = write_bundle(tmp_path / "next", base.spec, {}, base=base, lineage=[])
    assert (made.path / "text" / WEIGHTS).stat().st_ino != (whole / "text" / WEIGHTS).stat().st_ino
    assert made.digest() == base.digest()


def test_an_existing_bundle_is_replaced_whole(bundle: Path) -> None:
    (bundle / "denoiser" / "stray.txt").write_text("old")
    made = tiny_bundle(bundle, seed=1)
    assert not (bundle / "denoiser" / "stray.txt").exists()
    assert made.digest("denoiser") == Bundle.open(bundle).digest("denoiser")
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_failure_leaves_the_old_bundle_and_nothing_else(bundle: Path) -> None:
    before = Bundle.open(bundle).digest()
    spec = replace(Bundle.open(bundle).spec, flow=Flow(1.0))
    with pytest.raises(KeyError, match="neither a module nor a base bundle"):
        write_bundle(bundle, spec, {"denoiser": tiny_denoiser("video_dit", 1).module}, base=None, lineage=[])
    assert Bundle.open(bundle).digest() == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


# ------------------------------------------------------------------ damaged


def test_a_bundle_of_the_first_version_opens(bundle: Path) -> None:
    """It had no checksum of its own, and its digest, which keys hold, is what it was."""
    before = Bundle.open(bundle).digest()
    data = json.loads((bundle / "bundle.json").read_text())
    del data["sha256"]
    (bundle / "bundle.json").write_text(json.dumps(data))
    assert Bundle.open(bundle).digest() == before


def test_every_flipped_bit_of_the_record_is_seen(bundle: Path) -> None:
    assert silent_flips(bundle / "bundle.json", lambda: Bundle.open(bundle).data) == []


def test_an_entry_that_was_changed(bundle: Path) -> None:
    data = json.loads((bundle / "bundle.json").read_text())
    data["flow"]["guidance"] = 2.0
    (bundle / "bundle.json").write_text(json.dumps(data))
    assert message(lambda: Bundle.open(bundle)) == (
        f"{bundle / 'bundle.json'}: the checksum of its entries differs from the one written. Copy the bundle again"
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"flow": {}}, "flow: 'shift' is a required property"),
        ({"video": [9, 64]}, "video: should have at least 3 items after validation, not 2"),
        ({"lineage": [{"step": "a"}]}, "lineage[0]: 'kind' is a required property"),
        ({"lineage": {}}, "lineage: should be a valid array, not {}"),
        ({"licence": 7}, "licence: should be a valid string, not 7"),
        ({"more": 1}, "$: 'more' is none of its keys"),
        ({"schema": 0}, "schema: should be 1, not 0"),
    ],
)
def test_an_entry_of_another_kind(bundle: Path, change: dict[str, Any], fault: str) -> None:
    edit(bundle, lambda data: data.update(change))
    assert message(lambda: Bundle.open(bundle)).splitlines()[0] == (
        f"{bundle / 'bundle.json'}: {fault}. Copy the bundle again"
    )


@pytest.mark.parametrize("files", [[], {"config.json": 1}, {"config.json": {}}, {WEIGHTS: {"bytes": -1, "sha256": ""}}])
def test_files_that_are_no_records(bundle: Path, files: Any) -> None:
    edit(bundle, lambda data: data["components"]["text"].update(files=files))
    assert message(lambda: Bundle.open(bundle)).startswith(f"{bundle / 'bundle.json'}: component")


def test_truncated_weights(bundle: Path) -> None:
    path = bundle / "denoiser" / WEIGHTS
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    found = message(Bundle.open(bundle).denoiser)
    assert found == f"{path}: truncated or changed: {size - 100} bytes, {size} were written. Copy the bundle again"
    assert Bundle.open(bundle).text() is not None


def test_truncated_weights_that_nobody_could_tell_by_their_record(bundle: Path) -> None:
    path = bundle / "denoiser" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    record = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    edit(bundle, lambda data: data["components"]["denoiser"]["files"].update({WEIGHTS: record}))
    assert message(Bundle.open(bundle).denoiser).startswith(f"{path}: not a whole safetensors file: ")


def test_a_changed_byte(bundle: Path) -> None:
    path = bundle / "denoiser" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = message(Bundle.open(bundle).denoiser)
    assert found == f"{path}: the checksum differs from the one written. Copy the bundle again"


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("cut", [True, False], ids=["half as long", "one byte changed"])
def test_a_component_that_is_carried_along_is_compared(bundle: Path, tmp_path: Path, file: str, cut: bool) -> None:
    """A step that trains the denoiser alone would give a damaged text encoder a fresh, valid checksum."""
    base, path = Bundle.open(bundle), bundle / "text" / file
    content = bytearray(path.read_bytes())
    size = len(content)
    content[-1] ^= 1
    path.write_bytes(content[: size // 2] if cut else content)
    modules = {"denoiser": tiny_denoiser("video_dit", 1).module}
    found = message(lambda: write_bundle(tmp_path / "next", base.spec, modules, base=base, lineage=[]))
    changed = f"truncated or changed: {size // 2} bytes, {size} were written"
    assert found == (
        f"{path}: {changed if cut else 'the checksum differs from the one written'}. Copy the bundle again"
    )
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize("name", [".DS_Store", "model.pkl", "folder"])
def test_a_file_that_the_record_does_not_name(bundle: Path, tmp_path: Path, name: str) -> None:
    base, path = Bundle.open(bundle), bundle / "text" / name
    path.mkdir() if name == "folder" else path.write_bytes(b"x")
    kind = "folder" if name == "folder" else "file"
    expected = f"{path}: the bundle's record does not name this {kind}. Delete it"
    modules = {"denoiser": tiny_denoiser("video_dit", 1).module}
    assert message(lambda: write_bundle(tmp_path / "next", base.spec, modules, base=base, lineage=[])) == expected
    assert message(base.text) == expected


@pytest.mark.parametrize("name", [f"text/{WEIGHTS}", "text"])
def test_a_symbolic_link(bundle: Path, tmp_path: Path, name: str) -> None:
    base, path, elsewhere = Bundle.open(bundle), bundle / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    expected = f"{path}: a symbolic link: a bundle holds its files itself. Copy the bundle again"
    assert message(base.text) == expected
    assert message(lambda: write_bundle(tmp_path / "next", base.spec, {}, base=base, lineage=[])) == expected


@pytest.mark.parametrize("way", ["loaded and carried along", "loaded twice"])
def test_a_file_is_hashed_once(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    from dit_compress.core import files

    read: list[str] = []
    hashed = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: read.append(path.name) or hashed(path))
    base = Bundle.open(bundle)
    base.text()
    if way == "loaded twice":
        base.text()
    else:
        made = write_bundle(tmp_path / "next", replace(base.spec, denoiser=None), {}, base=base, lineage=[])
        assert made.digest("text") == base.digest("text")
    assert sorted(read) == ["config.json", WEIGHTS]


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_a_missing_file(bundle: Path, file: str) -> None:
    (bundle / "denoiser" / file).unlink()
    found = message(Bundle.open(bundle).denoiser)
    assert found == f"{bundle / 'denoiser' / file}: the file is missing. Copy the bundle again"


def test_weights_that_the_record_does_not_name(bundle: Path) -> None:
    edit(bundle, lambda data: data["components"]["denoiser"]["files"].pop(WEIGHTS))
    assert message(lambda: Bundle.open(bundle)) == (
        f"{bundle / 'bundle.json'}: component 'denoiser' has no {WEIGHTS}. Copy the bundle again"
    )


def test_no_bundle_at_all(tmp_path: Path) -> None:
    assert message(lambda: Bundle.open(tmp_path)) == f"{tmp_path}: no bundle here (bundle.json is missing)"


@pytest.mark.parametrize(
    "text", ["[1]", "{}", '{"schema": "1"}', "{", '{"schema": 1}', '{"schema": 1, "components": []}']
)
def test_a_file_of_something_else(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_text(text)
    assert message(lambda: Bundle.open(bundle)).startswith(f"{bundle / 'bundle.json'}: not ")


def test_a_newer_schema(bundle: Path) -> None:
    edit(bundle, lambda data: data.update(schema=SCHEMA + 1))
    found = message(lambda: Bundle.open(bundle))
    assert found.startswith(f"{bundle / 'bundle.json'}: written with schema {SCHEMA + 1}; this toolkit (")
    assert found.endswith(f") reads up to {SCHEMA}. Upgrade dit-compress")


def test_a_newer_schema_of_another_shape(bundle: Path) -> None:
    """What a later version may look like is not this version's to judge: it says upgrade."""
    (bundle / "bundle.json").write_text(json.dumps({"schema": SCHEMA + 1, "parts": {}}))
    assert message(lambda: Bundle.open(bundle)).endswith("Upgrade dit-compress")


@pytest.mark.parametrize("name", ["../denoiser", "/etc", "..", "denoiser/../../x", "vae"])
def test_a_component_outside_the_bundle(bundle: Path, name: str) -> None:
    edit(bundle, lambda data: data["components"].update({name: data["components"]["text"]}))
    assert message(lambda: Bundle.open(bundle)).startswith(f"{bundle / 'bundle.json'}: component {name!r} ")


@pytest.mark.parametrize("file", ["../../secret.safetensors", "/etc/passwd", "..", "a/b", ".hidden", ""])
def test_a_file_outside_its_component(bundle: Path, file: str) -> None:
    record = {"bytes": 1, "sha256": "0"}
    edit(bundle, lambda data: data["components"]["denoiser"]["files"].update({file: record}))
    assert message(lambda: Bundle.open(bundle)) == (
        f"{bundle / 'bundle.json'}: component 'denoiser' names a file outside its folder"
    )


def test_weights_of_another_shape_than_the_config_says(bundle: Path, tmp_path: Path) -> None:
    """As after a change of the plugin's code without a new revision: one message, no traceback."""
    edit(bundle, lambda data: data["components"]["denoiser"]["config"].update(ffn=32))
    found = message(Bundle.open(bundle).denoiser)
    assert found.startswith(f"{bundle / 'denoiser' / WEIGHTS}: the weights do not fit the model 'video_dit': ")
    assert "ff.net.0.proj.weight" in found
    assert "\n" not in found


def test_a_component_that_is_not_there(bundle: Path) -> None:
    assert message(Bundle.open(bundle).codec) == f"{bundle}: the bundle has no component 'latent'"


def test_a_plugin_that_is_not_installed(bundle: Path) -> None:
    edit(bundle, lambda data: data["components"]["denoiser"].update(plugin="sora"))
    found = message(Bundle.open(bundle).denoiser)
    assert "unknown model plugin 'sora'" in found
    assert "Known: " in found
