"""The Swift listing of the docs decodes today's manifest: each field by its name, its type, and whether it may be missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dit_compress.core.version import SCHEMA
from dit_compress.export import player
from dit_compress.export.manifest import manifest_schema
from dit_compress.testing.exporters import dit

PAGE = (Path(__file__).parents[2] / "docs" / "phone-package.md").read_text("utf-8")
SWIFT = "\n".join(re.findall(r"^```swift\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
WHOLE: dict[str, Any] = manifest_schema()
SCALARS = {
    "Int": ("integer",),
    "Float": ("number",),
    "Double": ("number",),
    "Bool": ("boolean",),
    "String": ("string",),
}


def structs(source: str) -> dict[str, dict[str, str]]:
    """Swift structs: name → field → type. ``let a, b: T`` are two fields; those of inner structs are theirs alone."""
    source = re.sub(r"//.*", "", source)
    found: dict[str, dict[str, str]] = {}
    while match := re.search(r"struct (\w+): Decodable \{([^{}]*)\}", source):
        fields = re.findall(r"let ((?:`?\w+`?(?:,\s*)?)+): ([^;\n]+)", match[2])
        found[match[1]] = {name.strip(" `"): kind.strip() for names, kind in fields for name in names.split(",")}
        source = source.replace(match[0], "")
    return found


STRUCTS = structs(SWIFT)


def snake(name: str) -> str:
    """``loadOrder`` → ``load_order``, as Swift's decoder has it."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: "_" + found[1].lower(), name)


def faults(kind: str, schema: dict[str, Any], where: str) -> list[str]:
    """What a value of the schema would fail with, decoded as a Swift type."""
    if "$ref" in schema:
        schema = WHOLE["$defs"][schema["$ref"].rpartition("/")[2]]
    told = schema.get("type", {str: "string", bool: "boolean", int: "integer"}.get(type(schema.get("const"))))
    types = {"string"} if "enum" in schema else set(told if isinstance(told, list) else [told])
    if kind.endswith("?"):
        return faults(kind[:-1], {**schema, "type": [each for each in types if each != "null"]}, where)
    if kind in SCALARS:
        return [] if types == set(SCALARS[kind]) else [f"{where}: {kind} in Swift, {types} in the schema"]
    if pair := re.fullmatch(r"\[String: (.+)\]", kind):
        inner = schema.get("additionalProperties")
        return faults(pair[1], inner, f"{where}[]") if types == {"object"} and inner else [f"{where} is no dictionary"]
    if element := re.fullmatch(r"\[(.+)\]", kind):
        inner = schema.get("items")
        return faults(element[1], inner, f"{where}[]") if types == {"array"} and inner else [f"{where} is no array"]
    if types != {"object"}:
        return [f"{where}: {kind} in Swift, {types} in the schema"]
    found = []
    for field, inner_kind in STRUCTS[kind].items():
        name, inner = snake(field), schema.get("properties", {}).get(snake(field))
        if inner is None:
            found.append(f"{where}.{name} is not in the schema")
            continue
        if name not in schema.get("required", []) and not inner_kind.endswith("?"):
            found.append(f"{where}.{name} may be missing, and {inner_kind} is not optional")
        found += faults(inner_kind, inner, f"{where}.{name}")
    return found


def test_every_field_is_in_the_schema_with_its_type() -> None:
    assert sum(map(len, STRUCTS.values())) >= 30
    assert set(STRUCTS) == {"Manifest", "FrameRule", "Video", "Size", "Text", "Tensor", "File", "Artifact"}
    assert faults("Manifest", WHOLE, "manifest") == []


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("let licence: String?", "let licence: String", ["manifest.licence: String in Swift,"]),
        ("let sigmas: [Float]", "let sigma: [Float]", ["manifest.sigma is not in the schema"]),
        ("let guidance: Float", "let guidance: [Float]", ["manifest.guidance is no array"]),
        ("let lead, step: Int", "let lead, step: String", ["manifest.frame_rule.lead: String", "manifest.frame_rule.step"]),
        ("let passed: Bool", "let passed: Bool\n    let stamp: String", ["manifest.stamp may be missing, and String is not"]),
    ],
)  # fmt: skip
def test_a_listing_that_is_wrong_is_noticed(
    right: str, wrong: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert right in SWIFT
    monkeypatch.setattr(f"{__name__}.STRUCTS", structs(SWIFT.replace(right, wrong)))
    found = faults("Manifest", WHOLE, "manifest")
    assert len(found) == len(told)
    assert all(each.startswith(start) for each, start in zip(found, told, strict=True)), found


def test_the_loop_uses_the_names_of_the_files() -> None:
    component = dit()
    assert re.findall(r'predict\("(\w+)"', SWIFT) == ["dit_walk", "dit_step", "dit_step", "vae_decoder"]
    given = re.search(r"let at: Tensors = \[(.*?)\]\n", SWIFT)
    assert given is not None
    assert re.findall(r'"(\w+)":', given[1]) == list(component.inputs)[:2] == ["latent", "sigma"]
    assert re.findall(r'\["(\w+)"\]!', SWIFT) == ["latent", *component.outputs, *component.outputs, "video"]
    assert f"manifest.schema <= {SCHEMA}, " in SWIFT


def test_it_decodes_whatever_the_numpy_loop_reads() -> None:
    """What ``Player.sample`` and ``Player.noise`` take from the manifest, an app takes, too."""
    read = set(re.findall(r'manifest\["(\w+)"\]', Path(player.__file__).read_text("utf-8")))
    golden = {"sample", "noise"}  # of the golden sample alone, and what sizes[0] says too
    assert read - golden <= {snake(name) for name in STRUCTS["Manifest"]}


def test_the_table_of_the_page_has_every_key() -> None:
    rows = re.findall(r"^\| (`.+?) \|", PAGE, re.MULTILINE)
    told = set(re.findall(r"`(\w+)(?:\[\])?`", "\n".join(rows)))
    assert set(WHOLE["properties"]) - told == set()
