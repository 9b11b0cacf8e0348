"""JSON Schema of recipes, installed plugins included, so that an editor completes and checks them.

What it can't express (a name of an earlier step, two options that exclude each other) ``check`` finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema

from dit_compress.core.limits import MAX_SEED
from dit_compress.plugin.options import Part, slots_of
from dit_compress.recipe.model import SHARED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema

    from dit_compress.plugin.options import Slot
    from dit_compress.plugin.registry import Entry, Registry

_GROUPED = "^[-+]?[0-9]+(_[0-9]+)+$"
"""``100_000``, which a YAML 1.2 editor takes for text."""


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """Return the schema of a recipe, with one definition per plugin and one per kind."""
    definitions: dict[str, Any] = {}
    for entry in registry.entries():
        definitions |= _plugin_definitions(entry, registry)
    for kind in (*registry.step_kinds, *registry.part_kinds):
        definitions[kind] = _kind(kind, registry)
    properties: dict[str, Any] = {
        "name": {"type": "string", "description": "Names the run's folder; the file's name if absent."},
        "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": 0},
        "licence": {"type": "string", "minLength": 1, "description": "Of the weights that go in; carried along."},
        **{kind: _ref(kind) for kind in SHARED},
        "trackers": {"anyOf": [_ref("tracker"), {"type": "array", "items": _ref("tracker")}]},
        "steps": {"type": "array", "minItems": 1, "items": _step(registry)},
    }
    source = {
        "type": "object",
        "properties": {"from": {"type": "string"}},
        "required": ["from"],
        "additionalProperties": False,
    }
    properties["model"] = {"if": {"type": "object", "required": ["from"]}, "then": source, "else": _ref("model")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dit-compress recipe",
        "type": "object",
        "properties": properties,
        "required": ["steps"],
        "additionalProperties": False,
        "$defs": definitions,
    }


class _Generator(GenerateJsonSchema):
    """Leaves out the options that hold parts: the slot describes them."""

    def json_or_python_schema(self, schema: core_schema.JsonOrPythonSchema) -> JsonSchemaValue:
        """Hide :class:`Part`, which is made from a mapping before pydantic sees it."""
        inner = schema["python_schema"]
        if inner["type"] == "is-instance" and inner["cls"] is Part:
            return {}
        return super().json_or_python_schema(schema)


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _step(registry: Registry) -> dict[str, Any]:
    kinds = registry.step_kinds
    slots = {slot for kind in kinds for entry in registry.entries(kind) for slot in entry.plugin.slots}
    reads = {"type": "string", "description": "An earlier step's name, or the path of a bundle."}
    return {
        "type": "object",
        "properties": {
            **{kind: _ref(kind) for kind in kinds},
            "name": {"type": "string", "description": "The plugin's name if absent."},
            **dict.fromkeys(["input", *sorted(slots)], reads),
        },
        "oneOf": [{"required": [kind]} for kind in kinds],
        "additionalProperties": False,
    }


def _kind(kind: str, registry: Registry) -> dict[str, Any]:
    """Describe a part: a name alone, where nothing is required, or ``use`` with the options of that plugin."""
    entries = registry.entries(kind)
    bare = [entry.plugin.name for entry in entries if not _has_required(entry)]
    if not entries:
        return {"not": {}, "description": f"No {kind} plugin is installed."}
    return {
        "if": {"type": "string"},
        "then": {"enum": bare},
        "else": {
            "type": "object",
            "required": ["use"],
            "properties": {"use": {"enum": [entry.plugin.name for entry in entries]}},
            "allOf": [
                {
                    "if": {"properties": {"use": {"const": entry.plugin.name}}, "required": ["use"]},
                    "then": _ref(f"{kind}.{entry.plugin.name}"),
                }
                for entry in entries
            ],
        },
    }


def _has_required(entry: Entry) -> bool:
    return any(field.is_required() for field in entry.plugin.options.model_fields.values())


def _plugin_definitions(entry: Entry, registry: Registry) -> dict[str, Any]:
    """Describe the options of a plugin, once with ``use`` and once without, and what they refer to."""
    key = f"{entry.kind}.{entry.plugin.name}"
    options = entry.plugin.options
    schema = options.model_json_schema(schema_generator=_Generator, ref_template=f"#/$defs/{key}.{{model}}")
    nested = {f"{key}.{name}": _grouped_numbers(inner) for name, inner in schema.pop("$defs", {}).items()}
    schema.setdefault("properties", {})
    for name, slot in slots_of(options).items():
        field = options.model_fields[name]
        described = {"description": field.description} if field.description else {}
        holder = _slot(slot, registry)
        schema["properties"][field.alias or name] = (
            {**holder, **described} if field.is_required() else {"anyOf": [holder, {"type": "null"}], **described}
        )
    schema = _grouped_numbers(schema)
    named = {**schema, "properties": {"use": {"const": entry.plugin.name}, **schema["properties"]}}
    if entry.plugin.summary:
        named["description"] = entry.plugin.summary
    return {**nested, f"{key}.options": schema, key: named}


def _slot(slot: Slot, registry: Registry) -> dict[str, Any]:
    if not slot.many:
        return _ref(slot.kind)
    options: Mapping[str, Any] = {
        entry.plugin.name: (
            _ref(f"{slot.kind}.{entry.plugin.name}.options")
            if _has_required(entry)
            else {"anyOf": [_ref(f"{slot.kind}.{entry.plugin.name}.options"), {"type": "null"}]}
        )
        for entry in registry.entries(slot.kind)
    }
    for_some = {rf"^{name}\..": option for name, option in options.items()}
    return {
        "type": "object",
        "properties": dict(options),
        "patternProperties": for_some,
        "additionalProperties": False,
    }


def _grouped_numbers(schema: Any) -> Any:
    """Let ``100_000`` into the schema wherever a number is."""
    if isinstance(schema, list):
        return [_grouped_numbers(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    grouped = {key: _grouped_numbers(value) for key, value in schema.items() if key not in ("default", "examples")}
    grouped |= {key: schema[key] for key in ("default", "examples") if key in schema}
    if schema.get("type") in ("integer", "number"):
        grouped |= {"type": [schema["type"], "string"], "pattern": _GROUPED}
    return grouped
