"""Discovery: installed distributions, local files, kinds of one's own, and everything that can be broken."""

from __future__ import annotations

import sys
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from dit_compress.core.errors import UserError
from dit_compress.plugin.kinds import RESERVED
from dit_compress.plugin.options import Options, Plugin, load_object
from dit_compress.plugin.registry import Registry, closest, installed, use
from dit_compress.plugin.sources import LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Install = Callable[..., None]

PLUGIN = """\
from dit_compress.hooks import Options, Plugin, hookimpl

class MyOptions(Options):
    seed: int = 0

@hookimpl
def {kind}() -> Plugin:
    return Plugin(name="{name}", options=MyOptions, load="{module}:Made")

class Made:
    def __init__(self, options):
        self.options = options
"""


@pytest.fixture(autouse=True)
def _modules_as_they_were() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("fake_", "my_")):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a fake distribution: its name, and its entry points as name → source text of the module."""
    monkeypatch.syspath_prepend(tmp_path)

    def install_it(distribution: str, **modules: str | None) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        lines = [f"{entry} = fake_{entry}" for entry in modules]
        (info / "entry_points.txt").write_text("[dit_compress.plugins]\n" + "\n".join(lines) + "\n")
        for entry, text in modules.items():
            if text is not None:
                package = tmp_path / f"fake_{entry}"
                package.mkdir(exist_ok=True)
                (package / "__init__.py").write_text(dedent(text))

    return install_it


def _broken(registry: Registry, name: str) -> tuple[str, str, str]:
    found = [broken for broken in registry.broken if broken.name == name]
    assert len(found) == 1
    return found[0].distribution, found[0].reason, found[0].mend


def test_a_strangers_plugin_is_found_with_its_origin(install: Install, tmp_path: Path) -> None:
    """Distribution, version, and a digest that follows the package's sources."""
    install("dit-extra", search_mine=PLUGIN.format(kind="search", name="mine", module="fake_search_mine"))
    registry = Registry.discover()
    entry = registry.entry("search", "mine")
    assert (entry.kind, entry.distribution, entry.version) == ("search", "dit-extra", "1.5")
    assert load_object(entry.plugin.load)(MyOptionsLike()).options == MyOptionsLike()
    before = registry.source_digest("search", "mine")
    (tmp_path / "fake_search_mine" / "deep").mkdir()
    (tmp_path / "fake_search_mine" / "deep" / "code.py").write_text("x = 1\n")
    assert registry.source_digest("search", "mine") != before


class MyOptionsLike(Options):
    """Options of no plugin."""


def test_a_module_may_implement_several_hooks(install: Install) -> None:
    """One entry point, two plugins."""
    both = PLUGIN.format(kind="search", name="mine", module="m") + dedent("""
        @hookimpl
        def export() -> Plugin:
            return Plugin(name="mine", options=MyOptions, load="m:Made")
    """)
    install("dit-extra", both=both)
    registry = Registry.discover()
    assert registry.get("search", "mine").name == registry.get("export", "mine").name == "mine"


def test_one_broken_plugin_hinders_no_other(install: Install) -> None:
    """Each way to fail is told by name, with reason and mend; the good one works."""
    good = PLUGIN.format(kind="search", name="good", module="m")
    install(
        "dit-extra",
        search_good=good,
        search_raises="raise RuntimeError('no\\n  licence')",
        search_exits="import sys; sys.exit(3)",
        search_needs="import no_such_module",
        search_gone=None,
        search_empty="x = 1",
        search_wrong=good.replace("def search() -> Plugin:\n    return", "def search():\n    return 5 or"),
        search_late=good.replace("    return", "    raise KeyError('late')\n    return"),
        search_args=good.replace("def search()", "def search(more)"),
        search_typo=good.replace("def search()", "def serach()").replace("good", "typo"),
        search_use=good.replace("seed", "use"),
        search_load=good.replace("m:Made", "m.Made").replace("good", "load"),
    )
    registry = Registry.discover()
    assert registry.get("search", "good").name == "good"
    reasons = {
        "search_raises": "RuntimeError: no licence",
        "search_exits": "SystemExit: 3",
        "search_needs": "No module named 'no_such_module'",
        "search_gone": "No module named 'fake_search_gone'",
        "search_empty": "it implements no hook",
        "search_wrong": "its hook 'search' returns int, not a Plugin",
        "search_late": "its hook 'search' fails with KeyError: 'late'",
        "search_typo": "there is no hook 'serach'",
        "search_use": "its hook 'search' has an option 'use', the word by which recipes name plugins",
        "search_load": "its hook 'search' has load='m.Made', not 'package.module:Class'",
    }
    for name, reason in reasons.items():
        assert _broken(registry, name)[:2] == ("dit-extra", reason)
    assert "not in" in _broken(registry, "search_args")[1] or "Argument" in _broken(registry, "search_args")[1]
    assert _broken(registry, "search_typo")[2] == "Did you mean 'search'?"
    assert _broken(registry, "search_needs")[2] == "Install 'no_such_module', or uninstall 'dit-extra'"


def test_a_broken_plugin_is_an_error_where_it_is_used(install: Install) -> None:
    """With its reason and mend."""
    install("dit-extra", search_mine="import no_such_module")
    with pytest.raises(UserError, match=r"^the search plugin 'mine' \(dit-extra\) is broken: No module .* Install"):
        Registry.discover().get("search", "mine")


def test_an_unknown_plugin_is_told_with_the_known_ones() -> None:
    """And with the one that was probably meant."""
    with pytest.raises(UserError, match=r"unknown granularity plugin 'hed'. Did you mean 'head'\? Known: block"):
        Registry.discover().get("granularity", "hed")
    with pytest.raises(UserError, match=r"unknown search plugin 'x'. None is installed"):
        Registry().get("search", "x")


def test_of_two_with_one_name_the_later_is_broken(install: Install) -> None:
    """Both distributions are named, and nobody can displace a built-in one."""
    install("a-dit", granularity_block=PLUGIN.format(kind="granularity", name="block", module="m"))
    registry = Registry.discover()
    assert registry.entry("granularity", "block").distribution == "dit-compress"
    distribution, reason, _ = _broken(registry, "granularity_block")
    assert distribution == "a-dit"
    assert reason == (
        "'a-dit' and 'dit-compress' both bring a granularity plugin 'block'; the one of 'dit-compress' is used"
    )


def test_of_two_entry_points_to_one_module_the_later_is_broken(install: Install) -> None:
    """Told in one line."""
    text = PLUGIN.format(kind="search", name="mine", module="m")
    twin = "import sys, fake_search_mine; sys.modules[__name__] = fake_search_mine"
    install("a-dit", search_mine=text, search_twin=twin)
    registry = Registry.discover()
    assert registry.get("search", "mine").name == "mine"
    assert _broken(registry, "search_twin")[1] == "ImportError: fake_search_mine is the module of another entry point"


def test_a_plugin_adds_a_kind_that_another_one_implements(install: Install) -> None:
    """Nobody edits hooks.py for it; the order of discovery does not matter."""
    kinds = """\
        from dit_compress.hooks import Plugin, hookimpl, hookspec

        class Kinds:
            @hookspec
            def aligner(self) -> Plugin:
                '''Maps features.'''

        class Steps:
            @hookspec
            def quantise(self) -> Plugin:
                '''Fewer bits.'''

        @hookimpl
        def part_kinds():
            return Kinds

        @hookimpl
        def step_kinds():
            return Steps
    """
    bad_kinds = "from dit_compress.hooks import hookimpl\n@hookimpl\ndef part_kinds(): return int\n"
    install("z-kinds", kinds=kinds, bad_kinds=bad_kinds)
    install("a-affine", aligner_affine=PLUGIN.format(kind="aligner", name="affine", module="m"))
    registry = Registry.discover()
    assert registry.get("aligner", "affine").name == "affine"
    assert "aligner" in registry.part_kinds
    assert "quantise" in registry.step_kinds
    assert "its part_kinds fail" in _broken(registry, "bad_kinds")[1]
    assert "quantise" not in Registry().step_kinds


def test_no_transform_may_have_the_name_of_the_engines_edit_tables(install: Install) -> None:
    """A log entry named ``prune`` is an edit table: a transform of that name could never be replayed."""
    from dit_compress.structure.compact import LOG_NAME

    assert RESERVED == {"transform": (LOG_NAME,)}
    install("their-lib", transform_prune=PLUGIN.format(kind="transform", name="prune", module="fake_transform_prune"))
    install("our-lib", prune_mine=PLUGIN.format(kind="prune", name="prune", module="fake_prune_mine"))
    registry = Registry.discover()
    assert _broken(registry, "transform_prune") == (
        "their-lib", "no transform plugin may be named 'prune': the engine uses it", "Rename it",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"the transform plugin 'prune' \(their-lib\) is broken: .*Rename it"):
        registry.get("transform", "prune")
    assert registry.get("prune", "prune").load == "fake_prune_mine:Made"


@pytest.mark.parametrize("file", ["my_search.py", "my_search/__init__.py"])
def test_a_local_file_is_a_plugin(file: str, tmp_path: Path) -> None:
    """Its ``load`` resolves by the file's stem, a package's by its folder; ``use`` makes it known to the process."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(PLUGIN.format(kind="search", name="mine", module="my_search"))
    try:
        registry = use([path])
        entry = installed().entry("search", "mine")
        assert entry.distribution == LOCAL
        assert load_object(entry.plugin.load)(MyOptionsLike()).options == MyOptionsLike()
        before = registry.source_digest("search", "mine")
        path.write_text(path.read_text() + "\n# changed\n")
        assert use([str(path)]).source_digest("search", "mine") != before
    finally:
        use()


def test_a_local_file_that_can_not_be_one(tmp_path: Path) -> None:
    """Missing: an error at once. Named like a module, or failing: broken."""
    with pytest.raises(UserError, match=r"none.py: not a Python file. Give --plugin the .py file"):
        Registry.discover([tmp_path / "none.py"])
    for name, text in {"json": "x = 1", "my_bad": "1 / 0"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    registry = Registry.discover([tmp_path / "json.py", tmp_path / "my_bad.py"])
    assert _broken(registry, "json")[1] == "ImportError: a module named 'json' exists already; rename it"
    assert _broken(registry, "my_bad")[1] == "ZeroDivisionError: division by zero"
    assert "my_bad" not in sys.modules


def test_what_a_plugin_needs_is_told_with_the_pip_line() -> None:
    """A dotted name under a missing package included."""
    plugin = Plugin(name="phone", options=Options, load="m:P", requires=("json", "no_such.module"), extra="coreml")
    with pytest.raises(UserError, match=r'needs no_such.module, .* Run: pip install "dit-compress\[coreml\]"'):
        Registry.require(plugin)
    Registry.require(Plugin(name="phone", options=Options, load="m:P", requires=("json",)))


def test_built_in_plugins_are_whole() -> None:
    """Every built-in plugin is found, and is called as its folder and entry point are."""
    registry = Registry.discover()
    assert [broken for broken in registry.broken if broken.distribution == "dit-compress"] == []
    for entry in registry.entries():
        # The judge of rewards and the counter are the reader of an evaluation: one folder has all, since plugins don't
        # import each other.
        name = f"{entry.kind}_{entry.plugin.name}"
        name = {"reward_reader": "evaluate_shapes", "counter_shapes": "evaluate_shapes"}.get(name, name)
        assert entry.module.__name__.endswith(f".{name}")


@pytest.mark.parametrize(("word", "meant"), [("magnitud", "magnitude"), ("Random", "random"), ("zzz", None)])
def test_closest(word: str, meant: str | None) -> None:
    """A slip of the keyboard is recognised, another word is not."""
    assert closest(word, ["magnitude", "random"]) == meant
