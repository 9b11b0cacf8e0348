"""A recipe as a graph of nodes, each with a key: equal keys mean equal results. Imports no torch."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_data
from dit_compress.core.version import REVISION
from dit_compress.model.bundle import COMPONENTS, Bundle
from dit_compress.plugin.options import marked, slots_of
from dit_compress.plugin.registry import installed
from dit_compress.recipe.model import BASE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.data.clips import Split
    from dit_compress.plugin.options import Part
    from dit_compress.recipe.model import Recipe


@dataclass(frozen=True)
class Node:
    """One step of a run. inputs: slot → the name of an earlier node, or a path to a bundle."""

    name: str
    kind: str
    parts: Mapping[str, Part] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    line: int = 0

    @property
    def part(self) -> Part:
        """The step's own plugin and options; the first step has none."""
        return self.parts["step"]

    @property
    def title(self) -> str:
        """Kind and plugin, as a table shows them."""
        return f"{self.kind}: {self.part.name}" if "step" in self.parts else self.kind

    @property
    def together(self) -> list[Part]:
        """Everything of the step that trains on every process."""
        return [part for own in self.parts.values() for part in own.together]

    @property
    def needs(self) -> tuple[str, ...]:
        """Slots that the step's options can't do without."""
        return self.part.options.needs if "step" in self.parts else ()

    @property
    def inner(self) -> list[Part]:
        """The step's parts and the parts inside their options."""
        return [part for own in self.parts.values() for part in with_inner(own)]

    @property
    def reads_data(self) -> bool:
        """True where the data manifest belongs to the key."""
        return self.needs_data or any(part.options.reads_data == "if any" for part in self.inner)

    @property
    def needs_data(self) -> bool:
        """True where the step can't do without data."""
        return any(part.plugin.data or part.options.reads_data == "yes" for part in self.inner)

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits of the data that the step can't do without; what it reads of the other is its own to say."""
        if not self.reads_data:
            return ()
        if self.kind == "evaluate":
            return ("test",)
        return ("train", "test") if any(part.options.held_out for part in self.inner) else ("train",)

    def build(self) -> Any:
        """Construct the step with its options."""
        from dit_compress.run.base import BaseStep

        return self.part.build() if "step" in self.parts else BaseStep(self.parts)

    def describe(self, *, contents: bool = False) -> dict[str, Any]:
        """Return plugins, revisions and options, as lineage holds them; as the key does with ``contents`` of files."""
        return {
            name: {
                "plugin": part.name,
                "kind": part.kind,
                "options": part.as_data(contents=contents),
                "revisions": {f"{inner.kind}:{inner.name}": inner.plugin.revision for inner in with_inner(part)},
            }
            for name, part in self.parts.items()
        }


def with_inner(part: Part) -> list[Part]:
    """Return a part and the parts inside its options (a prune's search, its granularities)."""
    found = [part]
    values = dict(part.options)
    for name, slot in slots_of(type(part.options)).items():
        value = values[name]
        inner = list(value.values()) if slot.many and value else [value] if value is not None else []
        for item in inner:
            found += with_inner(item)
    return found


def nodes(recipe: Recipe) -> list[Node]:
    """Return the recipe's steps in order, the implicit first one included."""
    listed = []
    if recipe.model is not None:
        parts = {"model": recipe.model} | ({"text": recipe.text} if recipe.text else {})
        listed.append(Node(BASE, BASE, parts))
    listed += [
        Node(step.name, step.kind, {"step": step.part}, dict(step.inputs), step.line or 0) for step in recipe.steps
    ]
    return listed


def made_of(node: Node, input_keys: Mapping[str, str], recipe: Recipe, manifest: str) -> dict[str, Any]:
    """Return, as JSON, everything that decides a node's result: of files that options name, what is in them.

    A licence that the recipe states counts for exports alone: nothing is trained again for it.
    """
    stated = {"licence": recipe.licence} if node.kind == "export" and recipe.licence is not None else {}
    return {
        "engine": REVISION,
        "kind": node.kind,
        "parts": node.describe(contents=True),
        "inputs": dict(input_keys),
        "seed": recipe.seed,
        "video": recipe.video,
        "manifest": manifest if node.reads_data else None,
        "sampler": recipe.sampler.as_data() if recipe.sampler else None,
        **stated,
    }


def lineage_entry(
    node: Node, *, key: str, inputs: Mapping[str, str], sources: Mapping[str, str], seed: int, device: str = ""
) -> dict[str, Any]:
    """Say what a bundle's lineage holds of a step. inputs: the key of each; device: a GPU's name."""
    import torch

    return {
        "step": node.name,
        "kind": node.kind,
        "parts": node.describe(),
        "inputs": dict(inputs),
        "key": key,
        "sources": dict(sources),
        "engine": REVISION,
        "seed": seed,
        "torch": torch.__version__,
        "device": device or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def input_key(source: str, keys: Mapping[str, str]) -> str:
    """Return the key of an input: an earlier node's, or the digest of a bundle at a path and of what it refers to."""
    if source in keys:
        return keys[source]
    bundle = Bundle.open(source)
    outside = _outside(bundle)
    return sha256_data([bundle.digest(), outside]) if outside else bundle.digest()


def _outside(bundle: Bundle) -> dict[str, str]:
    """Return digests of what components of a bundle read where it lies, as a T5 encoder does its folder.

    A component's config names it under the options of its plugin that are marked as files. A plugin that is missing
    is reported by the step that loads it.
    """
    found: dict[str, str] = {}
    for name in COMPONENTS:
        component = getattr(bundle.spec, name)
        if component is not None:
            with suppress(UserError):
                marks = marked(installed().get(component.kind, component.plugin).options)
                values = {option: component.config.get(option) for option in marks}
                found |= {f"{name}.{key}": marks[key].content(value) for key, value in values.items() if value}
    return found
