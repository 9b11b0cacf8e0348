"""The engine asks a plugin for nothing that no type states, and names no plugin outside ``plugin/defaults.py``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from dit_compress.plugin import defaults
from dit_compress.plugin.registry import Registry

ENGINE = Path(__file__).parents[1] / "dit_compress"
SOURCES = {
    name: ast.parse(path.read_text("utf-8"))
    for path in ENGINE.rglob("*.py")
    if not (name := path.relative_to(ENGINE).as_posix()).startswith("scaffold/samples/")
}
"""Files of the engine; what ``new`` writes is a plugin author's code."""

UNTYPED = {
    "cli/app.py": "exceptions of typer, whose classes are private",
    "core/files.py": "errors of several libraries, with or without errno",
    "export/rewrite/nodes.py": "nodes of torch.fx",
    "export/rewrite/norms.py": "any norm of torch or of a stranger's model",
    "model/bundle.py": "fields of our own dataclass, by the names of components",
    "plugin/registry.py": "pluggy's callers by hook",
    "plugin/sources.py": "a mark on modules of local files",
    "pruning/folder.py": "modules of diffusers and transformers",
    "recipe/document.py": "errors of PyYAML",
    "recipe/model.py": "fields of our own dataclass, by kind",
    "report/lineage.py": "values of JSON, or models of pydantic",
    "run/keys.py": "fields of our own dataclass, by the names of components",
    "structure/": "any torch module, tensor or recorded value",
    "train/compiled.py": "exceptions of torch's compiler, with or without one inside",
    "train/parallel.py": "tensors that may be sharded",
}
"""Where an attribute is asked for by name, of what is no plugin's, with the reason."""


def untyped(tree: ast.AST) -> list[int]:
    """Lines that call ``getattr`` or ``hasattr``."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    return [call.lineno for call in calls if call.func.id in ("getattr", "hasattr")]


def reason(name: str) -> str | None:
    """The entry of the list that covers a file."""
    return next((entry for entry in UNTYPED if name == entry or (entry.endswith("/") and name.startswith(entry))), None)


def test_the_engine_asks_for_no_member_that_no_type_states() -> None:
    found = {name: lines for name, tree in SOURCES.items() if reason(name) is None and (lines := untyped(tree))}
    assert found == {}, "state the member in Plugin, in the options or in the protocol of its kind (decision 61)"


def test_the_list_of_exceptions_has_no_old_entries() -> None:
    used = {reason(name) for name, tree in SOURCES.items() if untyped(tree)}
    assert set(UNTYPED) - used == set()


# ------------------------------------------------------------------ names of plugins

DEFAULTS = "plugin/defaults.py"

ORDINARY = frozenset(
    [
        "adversarial",
        "affine",
        "attention",
        "block",
        "channels",
        "count",
        "decoder",
        "diffusers",
        "exhaustive",
        "experts",
        "flow",
        "given",
        "greedy",
        "head",
        "jsonl",
        "latency",
        "latents",
        "magnitude",
        "modulation",
        "nested",
        "random",
        "scaled",
        "shapes",
        "small",
        "text",
        "transformers",
        "videos",
        "width",
        "widths",
        "words",
    ]
)
"""Names that are words of the trade, too: in a sentence, or in the name of a file, they name no plugin."""

OTHERS = {
    "core/pipeline.py": {"diffusers": "a library, in an index of parts"},
    "train/options.py": {"ffn": "part of modules' names in models"},
    "run/fits.py": {"ffn": "a key of what a plan says"},
    "": {
        "metrics": "figures of a step",

        "small": "a size",
        "text": "a kind of part, a component, a condition in exported files",
        "width": "of a video, of a stream, of a model; an option",
        "widths": "several of them; an option of exports",
    },
    "cli/prune.py": {"latency": "a budget, beside params and flops", "modulation": "an option, beside them"},
    "pruning/": {"latency": "a budget, beside params and flops", "modulation": "an option, beside them"},
    "data/shard": {"count": "a key of the index of shards"},
    "data/video.py": {"videos": "the folder of a step's videos, and its entry among the files"},
    "measure/mixture.py": {"mixture": "what its clips were drawn from"},
    "model/bundle.py": {"flow": "a key of bundle.json", "latents": "another"},
    "report/data.py": {"flow": "a key of bundle.json", "videos": "an entry among the files of a step"},
    "model/figures.py": {"ffn": "a key of step.json: widths of feed-forwards"},
    "export/player.py": {"words": "a kind of tokenizer file, which the player reads"},
    "report/card.py": {"diffusers": "a library's name on the Hub"},
    "report/figures.py": {"ffn": "a module's name in models of diffusers", "block": "a label beside the rows"},
    "structure/": {
        "ffn": "part of attributes' names in models",
        "block": "the prefix of block axes in transform logs",
        "head": "part of attributes' names in models",
        "magnitude": "a parameter of DoRA",
        "nested": "the widths of a model, in its log",
    },
    "testing/models.py": {"ffn": "an option of the tiny model", "channels": "another"},
    "testing/steps.py": {"channels": "an option of the tiny VAE"},
    "train/codec/": {"adversarial": "a weight of the loss"},
}
"""Strings that equal a plugin's name and mean something else."""


def strings(tree: ast.AST) -> list[tuple[int, str]]:
    """Every string constant that is no docstring, with its line."""
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documents)
    return [(node.lineno, node.value) for node in constants if isinstance(node.value, str)]


def mentioned(text: str, names: set[str]) -> set[str]:
    """Plugins that a string names.

    It is the name; or says ``use: NAME``; or has a name in it that is no word of the trade (``trilevel``).
    """
    used = set(re.findall(r"\buse:? ?[\"']?([\w-]+)", text)) & names
    special = {word for word in re.findall(r"[\w-]+", text) if word in names - ORDINARY}
    return ({text} & names) | used | special


def built_in(*fields: str) -> set[str]:
    """What the plugins of dit-compress state in some fields."""
    ours = [entry.plugin for entry in Registry.discover().entries() if entry.distribution == "dit-compress"]
    return {value for plugin in ours for name in fields if (value := vars(plugin)[name]) is not None}


def allowed(name: str) -> set[str]:
    return {word for place, words in OTHERS.items() if name.startswith(place) for word in words}


def test_the_engine_names_no_plugin() -> None:
    names = built_in("name")
    found = {
        f"{name}:{line}": said
        for name, tree in SOURCES.items()
        if name != DEFAULTS
        for line, text in strings(tree)
        if (said := mentioned(text, names) - allowed(name))
    }
    assert found == {}, "ask the plugin, or take the name from dit_compress.plugin.defaults"


def test_the_engine_names_no_plugins_metric_or_file() -> None:
    stated = built_in("quality", "curves")
    assert stated == {"attribute_accuracy", "curves.jsonl", "clip_score", "explained", "vbench_total"}
    assert [f"{name}:{line}" for name, tree in SOURCES.items() for line, text in strings(tree) if text in stated] == []


def test_words_with_another_meaning_are_still_there() -> None:
    names = built_in("name")
    assert names >= ORDINARY
    for place, words in OTHERS.items():
        trees = [tree for name, tree in SOURCES.items() if name.startswith(place)]
        said = set().union(*(mentioned(text, names) for tree in trees for _, text in strings(tree)))
        assert set(words) <= said, place


def test_what_counts_as_a_mention() -> None:
    names = {"flow", "trilevel", "magnitude"}
    assert mentioned("flow", names) == {"flow"}
    assert mentioned("its control flow depends on values", names) == set()
    assert mentioned("- distill: {use: flow}", names) == {"flow"}
    assert mentioned("prune with trilevel", names) == {"trilevel"}
    assert mentioned("a DoRA magnitude", names) == set()


def test_every_default_is_a_built_in_plugin() -> None:
    kinds = {"MODEL": "model", "TINY_MODEL": "model", "TINY_TEXT": "text", "TINY_LATENT": "latent", "PRUNE": "prune",
             "SEARCH": "search", "SAMPLER": "sampler", "TRACKER": "tracker", "ENCODED": "data", "DISTILL": "distill"}  # fmt: skip
    registry = Registry.discover()
    for name, kind in kinds.items():
        assert registry.get(kind, vars(defaults)[name]).name == vars(defaults)[name]
    for level in defaults.LEVELS:
        assert registry.get("granularity", level).units
