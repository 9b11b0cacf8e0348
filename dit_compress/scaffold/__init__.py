"""``dit-compress new KIND NAME``: a small package with a working plugin, and the contract of its kind as tests.

Imports no torch. What is written is a plugin that stands in ``samples/<kind>``, under another name; ``project`` has
what all packages share, as texts for ``str.format``.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.core.files import whole_folder
from dit_compress.plugin.defaults import DISTILL, PRUNE, SEARCH
from dit_compress.plugin.kinds import PART_KINDS, RESERVED, STEP_KINDS
from dit_compress.plugin.registry import closest

if TYPE_CHECKING:
    from dit_compress.plugin.registry import Registry

SAMPLES, PROJECT = Path(__file__).parent / "samples", Path(__file__).parent / "project"
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


@dataclass(frozen=True)
class Template:
    """A kind that can be begun. module: of the code. recipe: how a recipe names the plugin."""

    kind: str
    module: str
    recipe: str


KINDS = {
    "exporter": Template("export", "exporter", "- export: {use: NAME}"),
    "granularity": Template(
        "granularity", "axes", f"- prune: {{use: {PRUNE}, levels: {{NAME: {{remove: 1}}}}, search: {SEARCH}}}"
    ),
    "distiller": Template("distill", "distiller", "- distill: {use: NAME, steps: 1000}"),
    "latent": Template("latent", "codec", "- latent: {use: NAME}"),
    "search": Template(
        "search", "search", f"- prune: {{use: {PRUNE}, levels: {{block: {{remove: 1}}}}, search: {{use: NAME}}}}"
    ),
    "discriminator": Template(
        "discriminator", "discriminator", f"- distill: {{use: {DISTILL}, discriminator: {{use: NAME}}}}"
    ),
}
"""The word that ``new`` takes → the plugin that it writes."""


def new_package(word: str, name: str, out: Path | None, registry: Registry) -> Path:
    """Write the package, whole or not at all, and return its folder.

    Args:
        word: one of :data:`KINDS`, or the kind itself (``export``).
        name: of the plugin; lower case letters, digits, ``-`` and ``_``.
        out: the folder; ``dit-<kind>-<name>`` here if absent.
        registry: the plugins that there are.

    Raises:
        UserError: an unknown kind, a name that is none or is taken, a folder that exists: all of them together.
    """
    template = _template(word)
    errors = [_bad_name(name)] if not _NAME.fullmatch(name) else _taken(template.kind, name, registry)
    folder = out if out is not None else Path(f"dit-{template.kind}-{name.replace('_', '-')}")
    errors += _occupied(folder)
    if errors:
        raise UserError.join(errors)
    with whole_folder(folder) as partial:
        for path, text in rendered(template, name).items():
            place = partial / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, "utf-8")
    return folder


def rendered(template: Template, name: str) -> dict[str, str]:
    """Return the package's files: path → text."""
    plugin, package = name.replace("-", "_"), package_of(template.kind, name)
    words = {
        f"{__name__}.samples.{template.kind}": package,
        "Example": "".join(word.capitalize() for word in plugin.split("_")),
        "example": plugin,
    }
    found = {}
    for path in sorted((SAMPLES / template.kind).glob("*.py")):
        text = path.read_text("utf-8")
        for marked, word in words.items():
            text = text.replace(marked, word)
        found[f"tests/test_{package}.py" if path.name == "test.py" else f"{package}/{path.name}"] = text
    values = {
        "kind": template.kind,
        "name": plugin,
        "package": package,
        "distribution": package.replace("_", "-"),
        "module": template.module,
        "recipe": template.recipe.replace("NAME", plugin),
    }
    for path in sorted(PROJECT.iterdir()):
        found[path.name] = path.read_text("utf-8").format(**values)
    return found


def package_of(kind: str, name: str) -> str:
    """Return the import name of the package: ``dit_export_my_npu``."""
    return f"dit_{kind}_{name.replace('-', '_')}"


def _template(word: str) -> Template:
    """Return the template that a word names."""
    if word in KINDS:
        return KINDS[word]
    for template in KINDS.values():
        if word == template.kind:
            return template
    if word in (*STEP_KINDS, *PART_KINDS):
        what = f"there is no template for {word!r}"
        raise UserError(what, mend=f"Begin with the example in docs/plugins/{word}.md. Templates: {', '.join(KINDS)}")
    guess = closest(word, KINDS)
    listing = f"The kinds are {', '.join(KINDS)}"
    raise UserError(f"unknown kind {word!r}", mend=f"Did you mean {guess!r}? {listing}" if guess else listing)


def _bad_name(name: str) -> UserError:
    """Make the error of a bad name; it proposes a good one where the name has letters."""
    better = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789").rstrip("-")
    mend = f"Take {better!r}" if _NAME.fullmatch(better) else "Begin with a lower case letter: my-npu"
    return UserError(
        f"{name!r} is no name for a plugin: lower case letters, digits and single '-' or '_' between them", mend=mend
    )


def _taken(kind: str, name: str, registry: Registry) -> list[UserError]:
    """Return an error if something has the name already."""
    plugin, package = name.replace("-", "_"), package_of(kind, name)
    mend = "Choose another name"
    if plugin in RESERVED.get(kind, ()):
        return [UserError(f"no {kind} plugin may be named {plugin!r}: the engine uses it", mend=mend)]
    for entry in registry.entries(kind):
        if entry.plugin.name.replace("-", "_") == plugin:
            what = f"the {kind} plugin {entry.plugin.name!r} exists already, in {entry.distribution}"
            return [UserError(what, mend=mend)]
    for broken in registry.broken:
        if broken.name == f"{kind}_{plugin}":
            what = f"the {kind} plugin {plugin!r} exists already, in {broken.distribution}, and is broken"
            return [UserError(what, mend=f"{broken.mend}, or choose another name")]
    if importlib.util.find_spec(package) is not None:
        return [UserError(f"a module named {package!r} can be imported already", mend=mend)]
    return []


def _occupied(folder: Path) -> list[UserError]:
    """Return an error if something stands where the folder should."""
    if os.path.lexists(folder):
        return [UserError("it exists already", where=str(folder), mend="Give another folder with --out, or remove it")]
    above = next(path for path in folder.absolute().parents if path.exists())
    if not above.is_dir():
        return [UserError("not a folder", where=str(above), mend="Give another folder with --out")]
    return []
