"""The documentation says what the code says: hooks and signatures, folders, recipes, examples, links."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import pytest

from dit_compress import hooks
from dit_compress.plugin.registry import Registry, Source, installed, use
from dit_compress.recipe import load

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "plugins"
BUILT_IN = ROOT / "plugins" / "dit_compress_plugins"
FOLDERS = sorted(path.parent for path in BUILT_IN.glob("*/__init__.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLUGIN_READMES = sorted(BUILT_IN.glob("*/README.md"))
KINDS = (*hooks.STEP_KINDS, *hooks.PART_KINDS)

_TREE = ast.parse(Path(hooks.__file__).read_text("utf-8"))
CLASSES = {node.name: node for node in _TREE.body if isinstance(node, ast.ClassDef)}


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------ hooks and signatures


def hook_docstring(kind: str) -> str:
    functions = [item for name in ("StepHooks", "PartHooks") for item in CLASSES[name].body]
    return next(ast.get_docstring(item) or "" for item in functions if getattr(item, "name", "") == kind)


def protocols(kind: str) -> list[str]:
    """The classes a plugin of a kind follows: those its hook names, and those that these name in turn."""
    waiting = re.findall(r":class:`(\w+)`", hook_docstring(kind)) + ["Step"] * (kind in hooks.STEP_KINDS)
    found: list[str] = []
    while waiting:
        name = waiting.pop(0)
        if name in CLASSES and name not in found:
            found.append(name)
            waiting += re.findall(r":class:`(\w+)`", ast.unparse(CLASSES[name]))
    return found


def signatures(name: str) -> list[str]:
    """``def f(self, x: int) -> str`` of every method a class adds."""
    methods = [item for item in CLASSES[name].body if isinstance(item, ast.FunctionDef)]
    return [
        f"def {item.name}({ast.unparse(item.args)}) -> {ast.unparse(item.returns or ast.Constant(None))}"
        for item in methods
    ]


def squeezed(text: str) -> str:
    """Without white space and trailing commas, in one kind of quotes."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", text)).replace('"', "'")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_page_with_its_protocols_signatures(kind: str) -> None:
    page = PAGES / f"{kind}.md"
    assert page.is_file(), f"write docs/plugins/{kind}.md"
    assert protocols(kind), f"the hook {kind!r} names no protocol"
    text = squeezed(page.read_text("utf-8"))
    for name in protocols(kind):
        for signature in signatures(name):
            assert squeezed(signature) in text, f"{label(page)} lacks '{signature}' of {name}"


def test_the_page_about_new_kinds_has_its_hooks() -> None:
    text = squeezed((PAGES / "new-kinds.md").read_text("utf-8"))
    assert all(squeezed(signature) in text for signature in signatures("KindHooks"))


def test_every_page_is_in_the_index() -> None:
    index = (PAGES / "README.md").read_text("utf-8")
    assert all(f"({page.name})" in index for page in PAGES.glob("*.md") if page.name != "README.md")


# ------------------------------------------------------------------ built-in plugins


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_built_in_plugin_has_a_readme(folder: Path) -> None:
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kinds_page_names_its_built_in_plugins(kind: str) -> None:
    use()
    text = (PAGES / f"{kind}.md").read_text("utf-8")
    ours = [entry for entry in installed().entries(kind) if entry.distribution == "dit-compress"]
    assert [entry.plugin.name for entry in ours if f"`{entry.plugin.name}`" not in text] == []


# ------------------------------------------------------------------ examples


@pytest.fixture
def _clean_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples are importable from ``tmp_path``, and gone afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def examples(path: Path) -> dict[str, str]:
    """Python blocks whose first line is ``# file.py``."""
    found = {}
    for block in fences(path, "python"):
        if named := re.match(r"# ([\w/]+\.py)\n", block):
            found[named[1]] = block
    return found


def classes_of(source: str) -> set[str]:
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("page", [PAGES / "new-kinds.md", *(PAGES / f"{kind}.md" for kind in KINDS)], ids=label)
@pytest.mark.usefixtures("_clean_modules")
def test_the_examples_of_a_page_are_plugins(page: Path, tmp_path: Path) -> None:
    """They are found under the page's kind, without torch at the top, and what ``load`` names is there."""
    files = examples(page)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    modules = [name.removesuffix(".py").removesuffix("/__init__") for name in files if "@hookimpl" in files[name]]
    registry = Registry()
    registry.add([Source(name, "docs", "", lambda name=name: importlib.import_module(name)) for name in modules])
    assert registry.broken == []
    assert registry.entries(page.stem) or page.stem == "new-kinds"
    for entry in registry.entries():
        module, _, wanted = entry.plugin.load.partition(":")
        assert wanted in classes_of(files[f"{module.replace('.', '/')}.py"])
    for name, text in files.items():
        if "@hookimpl" in text:
            assert not re.search(r"^(import|from) torch", text, re.MULTILINE), f"{name} imports torch at the top"


def test_the_example_of_the_readme_loads_as_a_local_file(tmp_path: Path) -> None:
    files = examples(ROOT / "README.md")
    assert files
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    registry = Registry.discover([tmp_path / name for name in files])
    local = [entry for entry in registry.entries() if entry.distribution == "local file"]
    assert len(local) == len(files)
    for entry in local:
        assert hasattr(entry.module, entry.plugin.load.partition(":")[2])
        del sys.modules[entry.module.__name__]


# ------------------------------------------------------------------ recipes


def whole_recipes() -> list[tuple[str, str]]:
    return [
        (f"{label(path)}-{place}", text)
        for path in (*DOCUMENTS, *PLUGIN_READMES)
        for place, text in enumerate(fences(path, "yaml"))
        if text.startswith("name:")
    ]


def step_snippets() -> list[tuple[str, str]]:
    return [
        (f"{label(path)}-{place}", text)
        for path in (*DOCUMENTS, *PLUGIN_READMES)
        for place, text in enumerate(fences(path, "yaml"))
        if text.startswith("- ")
    ]


def check(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "require", staticmethod(lambda _plugin: None))
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    load(path, use())


@pytest.mark.parametrize(("where", "text"), whole_recipes(), ids=lambda value: value if "\n" not in value else "")
def test_recipes_pass_the_check(where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(text, tmp_path, monkeypatch)


@pytest.mark.parametrize(("where", "text"), step_snippets(), ids=lambda value: value if "\n" not in value else "")
def test_steps_pass_the_check(where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snippet of steps, under ``steps:``."""
    check(f"name: snippet\nsteps:\n{indent(text, '  ')}", tmp_path, monkeypatch)


def test_there_are_recipes_to_check() -> None:
    assert any(where.startswith("README.md") for where, _ in whole_recipes())


# ------------------------------------------------------------------ links


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, *PLUGIN_READMES], ids=label)
def test_relative_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), f"{label(path)} links to {target}"
        if anchor:
            assert anchor in anchors(place), f"{label(path)} links to {target}"


def test_placeholders_stand_in_the_results_only() -> None:
    marker = "<!-- figure:"
    for path in DOCUMENTS[1:]:
        assert marker not in path.read_text("utf-8")
    before, _, rest = (ROOT / "README.md").read_text("utf-8").partition("\n## Results\n")
    _, _, after = rest.partition("\n## ")
    assert marker not in before + after
