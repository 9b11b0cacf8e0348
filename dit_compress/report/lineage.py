"""The origin of each step: plugin, revision, and the options that were chosen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_compress.report.data import Run, Step


@dataclass(frozen=True)
class Origin:
    """One plugin of one step.

    chosen: options that differ from their defaults, as YAML; None where the plugin is not installed here.
    """

    step: str
    bundle: str | None
    inputs: dict[str, str]
    kind: str
    plugin: str
    revision: int
    inner: dict[str, int]
    chosen: str | None
    options: str


def lineage(run: Run) -> list[Origin]:
    """List every plugin of every step, in order."""
    return [_origin(step, part) for step in run.steps for part in step.parts.values()]


def _origin(step: Step, part: dict[str, Any]) -> Origin:
    options = {key: value for key, value in part.get("options", {}).items() if key != "use"}
    defaults = default_options(part["kind"], part["plugin"])
    chosen = None
    if defaults is not None:
        same = {key for key, value in defaults.items() if _canonical(value) == _canonical(options.get(key))}
        chosen = as_yaml({key: value for key, value in options.items() if key not in same})
    return Origin(
        step=step.name,
        bundle=step.bundle,
        inputs=step.inputs,
        kind=part["kind"],
        plugin=part["plugin"],
        revision=part.get("revision", 1),
        inner=part.get("parts") or {},
        chosen=chosen,
        options=as_yaml(options),
    )


def default_options(kind: str, plugin: str) -> dict[str, Any] | None:
    """Return the defaults of an installed plugin's options; None where it is not installed."""
    from dit_compress.core.errors import UserError
    from dit_compress.plugin.registry import installed

    try:
        fields = installed().get(kind, plugin).options.model_fields
    except UserError:
        return None
    return {
        name: _plain(field.get_default(call_default_factory=True))
        for name, field in fields.items()
        if not field.is_required()
    }


def as_yaml(data: dict[str, Any]) -> str:
    """Write options as a recipe would, one a line."""
    import yaml

    def written(value: Any) -> str:
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=92)
        return text.removesuffix("...\n").strip().replace("\n", "\n  ")

    return "\n".join(f"{key}: {written(value)}" for key, value in data.items())


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump else value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
