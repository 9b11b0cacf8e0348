"""The tutorials do what they say: their blocks are executed in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command import finish, here, torchrun

from dit_compress.plugin.registry import use

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(python|yaml|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
FAILS = "# fails"


class Reader:
    """Someone who types a page in a folder."""

    def __init__(self, folder: Path, capsys: Any, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.patch, self.names = folder, capsys, patch, {"__name__": "tutorial"}

    def follow(self, page: Path) -> None:
        for language, text in BLOCK.findall(page.read_text("utf-8")):
            if name := FILE.match(text):
                (self.folder / name[1]).write_text(text, "utf-8")
            elif language == "console":
                for line in text.splitlines():
                    self.type(line.removeprefix("$ "))
            else:
                exec(compile(text, f"{page.name}: {text.partition(chr(10))[0]}", "exec"), self.names)

    def type(self, line: str) -> None:
        program, *words = shlex.split(line, comments=True)
        if program == "torchrun":
            place = words.index("dit_compress") + 1
            given = [self.folder / word if re.search(r"[/.]", word) else word for word in words[place:]]
            done = finish(torchrun(*given, log=self.folder / "log"))
            assert done.status == 0, done.printed
        elif program == "pip":
            self.install(self.folder / words[-1])
        elif program != "export":
            assert program == "dit-compress", f"no test for {program}"
            status, *printed = here(self.capsys, self.patch, *words)
            assert status in ((1, 2) if line.endswith(FAILS) else (0, None)), (line, printed)

    def install(self, package: Path) -> None:
        """What an editable installation leaves."""
        project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]
        about = package / f"{project['name'].replace('-', '_')}-0.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n", "utf-8")
        rows = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in found.items()) for group, found in project["entry-points"].items()]
        (about / "entry_points.txt").write_text("\n".join(rows), "utf-8")
        self.patch.syspath_prepend(package)
        use()


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, steps_here: None) -> Iterator[Reader]:
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield Reader(tmp_path, capsys, monkeypatch)
    monkeypatch.undo()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    use()


@pytest.mark.slow(8)
@pytest.mark.parametrize("page", sorted(PAGES.glob("[!R]*.md")), ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(page: Path, reader: Reader) -> None:
    reader.follow(page)


def test_the_list_has_every_tutorial() -> None:
    listed = re.findall(r"\]\((\S+)\)", (PAGES / "README.md").read_text("utf-8"))
    assert sorted(listed) == sorted(page.name for page in PAGES.glob("[!R]*.md"))
