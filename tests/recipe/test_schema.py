"""The JSON Schema: complete, self-contained, and of one mind with ``check``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from dit_compress.recipe.document import parse
from dit_compress.recipe.schema import recipe_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dit_compress.plugin.registry import Registry

GOOD = """\
model: {use: dit, preset: 2b}
data: {use: clips, path: a, frames: 9, size: [8, 8]}
text: words
trackers: jsonl
steps:
  - distill: {use: flow, steps: 100_000, lr: 5.0e-5}
    name: server
  - prune: {use: trilevel, levels: {block: {remove: 8}, head: }, search: {use: learned, objective: {use: affine}}}
  - distill: affine
    teacher: server
"""
BAD = [
    "step: []",
    "steps: []",
    "steps: [{distill: {use: flow, stepss: 1}}]",
    "steps: [{distill: {use: flow, steps: abc}}]",
    "steps: [{distill: flow, prune: trilevel}]",
    "steps: [{name: a}]",
    "steps: [{distill: flow, lr: 1}]",
    "steps: [{distill: flaw}]",
    "steps: [{prune: {use: trilevel, levels: {blok: {}}}}]",
    "steps: [{prune: {use: trilevel, search: {use: learned}}}]",
    "{data: clips, steps: [{distill: flow}]}",
    "{model: {from: a, use: dit}, steps: [{distill: flow}]}",
]


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from _refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _refs(inner)


def test_every_reference_is_defined(registry: Registry) -> None:
    """Nested options and parts of parts included; it is JSON."""
    schema = json.loads(json.dumps(recipe_schema(registry)))
    assert {ref.removeprefix("#/$defs/") for ref in _refs(schema)} <= set(schema["$defs"])
    assert "#/$defs/latent.vae.Weights" in set(_refs(schema))
    assert not any("Part" in name or "Plugin" in name for name in schema["$defs"])


def test_every_plugin_is_there_with_its_options(registry: Registry) -> None:
    """``use`` is the discriminator; an option with a slot refers to the slot's kind."""
    definitions = recipe_schema(registry)["$defs"]
    for entry in registry.entries():
        properties = definitions[f"{entry.kind}.{entry.plugin.name}"]["properties"]
        assert properties["use"] == {"const": entry.plugin.name}
        assert set(entry.plugin.options.model_fields) <= set(properties)
    assert definitions["search.learned"]["properties"]["objective"] == {"$ref": "#/$defs/distill"}
    assert definitions["data"]["then"] == {"enum": []}
    assert definitions["evaluate"]["then"] == {"enum": ["psnr"]}


def test_a_grouped_number_is_a_number(registry: Registry) -> None:
    """Editors read ``100_000`` as text."""
    steps = recipe_schema(registry)["$defs"]["distill.flow"]["properties"]["steps"]
    assert steps["type"] == ["integer", "string"]
    assert steps["minimum"] == 1


def test_an_editor_accepts_good_recipes_and_marks_bad_ones(registry: Registry) -> None:
    """As yaml-language-server would, with YAML 1.2's scalars or ours."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = recipe_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors(parse(GOOD, "x").data))
    assert not list(validator.iter_errors(yaml.safe_load(GOOD)))
    for text in BAD:
        assert list(validator.iter_errors(parse(text, "x").data)), text
