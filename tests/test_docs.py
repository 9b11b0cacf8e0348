"""The documentation says what the code says: hooks and signatures, folders, recipes, examples, links."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import pytest
import torch

import dit_compress
from dit_compress import hooks
from dit_compress.plugin import kinds
from dit_compress.plugin.options import load_object
from dit_compress.plugin.registry import Registry, installed, use
from dit_compress.plugin.sources import Source
from dit_compress.recipe import load
from dit_compress.testing.models import tiny_denoiser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "plugins"
BUILT_IN = ROOT / "plugins" / "dit_compress_plugins"
FOLDERS = sorted(path.parent for path in BUILT_IN.glob("*/__init__.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLUGIN_READMES = sorted(BUILT_IN.glob("*/README.md"))
KINDS = (*kinds.STEP_KINDS, *kinds.PART_KINDS)
ENGINE = Path(dit_compress.__file__).parent


def classes_in(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)}


HOOKS = classes_in(Path(kinds.__file__))
PLACES = {name: found.__module__ for name, found in vars(hooks).items() if isinstance(found, type)}
"""Module of every class that the page for plugin authors imports."""
PROTOCOLS = {
    name: node
    for module in sorted(set(PLACES.values()))
    for name, node in classes_in(Path(importlib.import_module(module).__file__ or "")).items()
    if any(ast.unparse(base) == "Protocol" for base in node.bases)
}


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------ hooks and signatures


def hook_docstring(kind: str) -> str:
    functions = [item for name in ("StepHooks", "PartHooks", "KindHooks") for item in HOOKS[name].body]
    return next(ast.get_docstring(item) or "" for item in functions if getattr(item, "name", "") == kind)


def protocols(kind: str) -> list[str]:
    """The classes a plugin of a kind follows: those its hook names, and those that these name in turn."""
    waiting = re.findall(r":class:`(\w+)`", hook_docstring(kind)) + ["Step"] * (kind in kinds.STEP_KINDS)
    found: list[str] = []
    while waiting:
        name = waiting.pop(0)
        if name in PROTOCOLS and name not in found:
            found.append(name)
            waiting += re.findall(r":class:`(\w+)`", ast.unparse(PROTOCOLS[name]))
    return found


def signatures(name: str) -> list[str]:
    """``def f(self, x: int) -> str`` of every method a class adds."""
    methods = [item for item in (PROTOCOLS | HOOKS)[name].body if isinstance(item, ast.FunctionDef)]
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


# ------------------------------------------------------------------ the page for plugin authors


def members(name: str) -> tuple[list[str], list[str]]:
    """What a class of a protocol must have, and what the protocol has a default for; those of ``Step`` included."""
    inherited = [ast.unparse(base) for base in PROTOCOLS[name].bases if ast.unparse(base) in PROTOCOLS]
    needed, given = members(inherited[0]) if inherited else ([], [])
    for item in PROTOCOLS[name].body:
        if isinstance(item, ast.AnnAssign):
            (needed if item.value is None else given).append(ast.unparse(item.target))
        elif isinstance(item, ast.FunctionDef):
            (needed if len(item.body) == 1 else given).append(item.name)
    return list(dict.fromkeys(needed)), list(dict.fromkeys(given))


def first_line(node: ast.AST) -> str:
    """The first sentence of a docstring, without what a hook's says of its protocol."""
    text = (ast.get_docstring(node) or "").splitlines()[0]  # type: ignore[arg-type]
    return text.partition("; see")[0].partition(". ")[0].removesuffix(".")


def place_of(name: str) -> str:
    return PLACES[name].removeprefix("dit_compress.").replace(".", "/") + ".py"


def row_of_hook(item: ast.FunctionDef, protocol: str) -> str:
    signature = f"def {item.name}() -> {ast.unparse(item.returns)}"  # type: ignore[arg-type]
    return f"    {signature:<32}{first_line(item):<46}{protocol:<19}{place_of(protocol)}"


def rows_of_members(name: str) -> list[str]:
    needed, given = members(name)
    text = ", ".join(needed) + (f"; by default: {', '.join(given)}" if given else "")
    return textwrap.wrap(text, 120, initial_indent=8 * " ", subsequent_indent=8 * " ")


HOOK_ROWS = [item for name in HOOKS for item in HOOKS[name].body if isinstance(item, ast.FunctionDef)]


@pytest.mark.parametrize("item", HOOK_ROWS, ids=lambda item: item.name)
def test_the_page_has_every_hook_with_its_signature_its_line_and_its_protocol(item: ast.FunctionDef) -> None:
    page = (hooks.__doc__ or "").splitlines()
    if item.name not in KINDS:
        assert row_of_hook(item, "KindHooks") in page
        return
    own = re.findall(r":class:`(\w+)`", hook_docstring(item.name))
    row = row_of_hook(item, own[0] if own else "Step")
    assert row in page
    rows = rows_of_members(own[0] if own else "Step")
    assert page[page.index(row) + 1 :][: len(rows)] == rows


@pytest.mark.parametrize("name", ["Codec", "FirstFrameCodec", "TextEncoder", "Objective", "Runner"])
def test_the_page_has_the_protocols_of_what_plugins_make(name: str) -> None:
    page = (hooks.__doc__ or "").splitlines()
    row = f"    {name:<32}{first_line(PROTOCOLS[name]):<65}{place_of(name)}"
    assert row in page
    rows = rows_of_members(name)
    assert page[page.index(row) + 1 :][: len(rows)] == rows


def test_the_page_names_every_protocol_of_the_engine() -> None:
    every = {
        name
        for path in ENGINE.rglob("*.py")
        for name, node in classes_in(path).items()
        if any(ast.unparse(base) == "Protocol" for base in node.bases)
    }
    # Pruning: of the one plugin that a call without a recipe uses. Weightless: inside observation.
    assert every - set(PLACES) == {"Pruning", "Rows", "Weightless"}, (
        "add it to dit_compress/hooks.py, or to what is no plugin's business here"
    )


def test_what_the_page_says_a_plugin_meets_is_there() -> None:
    """Each name with the file it stands in, and ``from dit_compress.hooks import`` gives it."""
    for name, module in hooks.MET.items():
        path = module.replace(".", "/") + ".py"
        assert name in classes_in(ENGINE / path)
        assert re.search(rf"^    {name} .* {path}$", hooks.__doc__ or "", re.MULTILINE), name
        assert getattr(hooks, name).__module__ == f"dit_compress.{module}"
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = hooks.Nothing


def test_all_that_the_page_gives_is_listed() -> None:
    assert set(hooks.MET) < set(hooks.__all__)
    assert [name for name in hooks.__all__ if getattr(hooks, name, None) is None] == []
    assert len(set(hooks.__all__)) == len(hooks.__all__)


def test_the_page_is_a_page() -> None:
    """Of a size that is read at once, and it imports no torch."""
    assert len(Path(hooks.__file__).read_text("utf-8").splitlines()) < 200
    code = "import sys, dit_compress.hooks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
        _, given = members(protocols(entry.kind)[0]) if entry.kind in KINDS else ([], [])
        made = load_object(entry.plugin.load)
        assert [name for name in given if not hasattr(made, name)] == [], "the engine asks for them"
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


@pytest.mark.usefixtures("_clean_modules")
def test_the_example_of_the_readme_searches(tmp_path: Path) -> None:
    """Of four heads two, evenly spaced: the first and the third."""
    ((name, text),) = examples(ROOT / "README.md").items()
    (tmp_path / name).write_text(text, "utf-8")
    denoiser = tiny_denoiser("video_dit")
    first = denoiser.structure().attentions[0]
    before = denoiser.module.get_submodule(first.path).to_q.weight.detach().unflatten(0, (4, -1))
    use([str(tmp_path / name)])
    try:
        dit_compress.prune(denoiser, remove={"head": 2}, search="evenly")
    finally:
        use()
    after = denoiser.module.get_submodule(first.path).to_q.weight.unflatten(0, (2, -1))
    assert torch.equal(after, before[[0, 2]])


@pytest.mark.usefixtures("_clean_modules")
def test_the_example_of_a_model_is_pruned_and_exports(tmp_path: Path) -> None:
    """Its recipe passes the check; its network is understood, and what the file computes is compared."""
    pytest.importorskip("onnxruntime")
    from dit_compress.export import export_components
    from dit_compress.export.components import dit_step
    from dit_compress.export.profiles import profile_named
    from dit_compress_plugins.export_onnx import ONNXOptions
    from dit_compress_plugins.export_onnx.exporter import ONNXExport

    page = PAGES / "model.md"
    (recipe,) = [text for text in fences(page, "yaml") if text.startswith("# recipe.yaml")]
    for name, text in {**examples(page), "recipe.yaml": recipe}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    registry = use()
    registry.add([Source("plain_dit", "docs", "", lambda: importlib.import_module("plain_dit"))])
    try:
        load(tmp_path / "recipe.yaml", registry)
    finally:
        use()
    adapter = importlib.import_module("plain_dit.adapter")
    denoiser = adapter.PlainDenoiser(adapter.PlainDiT(32, 2, 32, 16).eval())
    dit_compress.prune(denoiser, remove={"head": 1}, keep={"ffn": 0.5})
    assert [part.heads for part in denoiser.structure().attentions] == [3, 3]
    assert [part.width for part in denoiser.structure().feed_forwards] == [64, 64]
    latent, _, cond = denoiser.example(1, (2, 2, 2))
    component = dit_step(denoiser, latent, dict(cond))
    exporter = ONNXExport(ONNXOptions())
    report = export_components(exporter, [component], profile_named("cpu"), tmp_path / "out")
    assert report["passed"], report["rows"]


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
