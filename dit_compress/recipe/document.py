"""YAML as plain data, with the line of every key; what a recipe has no use for is refused.

Scalars follow YAML 1.2, with two kindnesses: ``1e-4`` and ``5e5`` are numbers (PyYAML reads text), and so is
``100_000``. ``no``, ``010`` and dates stay what they look like: text, ten, text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

Place = tuple[str | int, ...]
"""Keys and indices from the top of a document to a value."""

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
"""Values after aliases are expanded; an alias bomb has billions."""

_TAG = "tag:yaml.org,2002:"
_WRITTEN = "written:"
"""Begins the tag of a node that has one in the text."""
_PLAIN = {
    "null": (re.compile(r"~|null|Null|NULL|"), "~nN"),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "int": (re.compile(r"[-+]?\d+(_\d+)*"), "-+0123456789"),
    "float": (
        re.compile(r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Only composes: scalars get their tags from ``_PLAIN``, nothing is constructed."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Note the tag that stands in the text; PyYAML gives one to every node."""
        tag = getattr(self.peek_event(), "tag", None)
        node = super().compose_node(parent, index)
        if tag is not None and node is not None:
            node.tag = f"{_WRITTEN}{tag}"
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what ``_Loader`` would not read back as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write equal values out each time."""
        return True


for _name, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _letters = [*_first, ""] if _name == "null" else list(_first)
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), _letters)


@dataclass(frozen=True)
class Document:
    """A mapping read from a file.

    lines: 1-based line of every key and list entry, by place.
    errors: what was refused, by place; the data is there without it, so that the rest can be checked in one go.
    """

    path: str
    data: dict[str, Any]
    lines: dict[Place, int]
    errors: dict[Place, UserError] = field(default_factory=dict)

    def line(self, place: Place) -> int:
        """Return the line of a value, or of the nearest thing around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def where(self, place: Place) -> str:
        """Return ``file:line`` of a value."""
        return f"{self.path}:{self.line(place)}" if self.lines else self.path


def read(path: Path) -> Document:
    """Read a document from a file; raise a UserError where it can't be read or is no mapping."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise UserError(f"larger than {MAX_BYTES} bytes", where=str(path), mend="Give a recipe, a short YAML file")
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path), mend="Give the path of a recipe") from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=str(path), mend="Give the path of a recipe, a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", where=str(path), mend="Give a YAML file") from None
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=str(path)) from None
    return parse(text, str(path))


def parse(text: str, path: str) -> Document:
    """Parse a document from text; ``path`` is what messages call it."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise UserError("the file is empty", where=path, mend="Write at least 'steps:'")
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                "expected 'key: value' lines at the top",
                where=f"{path}:{_line(node)}",
                mend="Begin with 'name:' and 'steps:'",
            )
        reader = _Reader(path)
        data = reader.value(node, ())
    except yaml.YAMLError as error:
        raise _syntax_error(error, path) from None
    except RecursionError:
        raise UserError("nested too deeply", where=path, mend="Write it flat") from None
    return Document(path, data, reader.lines, reader.errors)


def dump(data: dict[str, Any]) -> str:
    """Write data as YAML that :func:`parse` reads back as equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


class _Reader:
    """Turns nodes into data; collects what it refuses."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: dict[Place, int] = {}
        self.errors: dict[Place, UserError] = {}
        self._num_nodes = 0
        self._open: set[int] = set()
        self._refused: set[int] = set()

    def value(self, node: yaml.Node, place: Place) -> Any:
        """Return the data of a node at a place."""
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise UserError(
                f"aliases expand to more than {MAX_NODES} values", where=self.path, mend="Write the values out"
            )
        if id(node) in self._open:
            raise UserError("an alias contains itself", where=f"{self.path}:{_line(node)}", mend="Write the values out")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        self._open.add(id(node))
        data = self._mapping(node, place) if isinstance(node, yaml.MappingNode) else self._sequence(node, place)
        self._open.discard(id(node))
        return data

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        self._check_tag(node, "map", place)
        data: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) and _encodable(key_node.value) else ""
            at = (*place, key)
            if key_node.tag != f"{_TAG}str" or (key_node.value and not key):
                self._refuse(
                    key_node, at, f"a key must be a word, got {_show(key_node)}", "Put it in quotes if it is one"
                )
            elif key == "<<":
                self._refuse(key_node, at, "merge keys ('<<') are not supported", "Write the values out")
            elif key in data:
                self._refuse(key_node, at, f"duplicate key {key!r}, first on line {first_lines[key]}", "Remove one")
            else:
                first_lines[key] = self.lines[at] = _line(key_node)
                data[key] = self.value(value_node, at)
        return data

    def _sequence(self, node: yaml.Node, place: Place) -> list[Any]:
        self._check_tag(node, "seq", place)
        data = []
        for index, item in enumerate(node.value):
            self.lines[(*place, index)] = _line(item)
            data.append(self.value(item, (*place, index)))
        return data

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self._refuse(node, place, f"can't read {text[:40]!r} as a number", "Write it in digits")
        if kind in ("null", "bool"):
            return None if kind == "null" else text.lower() == "true"
        self._check_tag(node, "str", place)
        if not _encodable(text):
            self._refuse(node, place, f"{text!r} holds half a character", "Write the character itself")
        if "${" in text:
            self._refuse(node, place, f"{text!r} asks for a variable, and recipes have none", "Write the value out")
        return text

    def _check_tag(self, node: yaml.Node, kind: str, place: Place) -> None:
        if node.tag != _TAG + kind:
            shown = node.tag.removeprefix(_WRITTEN).replace(_TAG, "!!")
            self._refuse(node, place, f"the tag {shown!r} is not supported", "Remove the tag")

    def _refuse(self, node: yaml.Node, place: Place, what: str, mend: str) -> None:
        if id(node) not in self._refused:
            self._refused.add(id(node))
            self.errors[place] = UserError(what, where=f"{self.path}:{_line(node)}", mend=mend)


def _encodable(text: str) -> bool:
    """Tell whether UTF-8 can hold a text: the first half of a surrogate pair alone is no character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _show(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"


def _syntax_error(error: yaml.YAMLError, path: str) -> UserError:
    if isinstance(error, yaml.reader.ReaderError):
        return UserError(
            f"not text: character {error.character!r} at position {error.position}", where=path, mend="Give a YAML file"
        )
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    if context := getattr(error, "context", None):
        what = f"{what} ({context})"
    mend = "Indent with spaces" if "\\t" in what else "Mend the YAML: check indentation, brackets and quotes"
    return UserError(f"not YAML: {what}", where=f"{path}:{mark.line + 1}" if mark else path, mend=mend)
