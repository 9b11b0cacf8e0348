"""``captions.jsonl`` under random records and random damage; ``benchmarks/fuzz.py`` has thousands of further cases."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dit_compress.core.errors import UserError
from dit_compress.data.clips import CAPTIONS, read_folder, write_captions

NAMES = [f"{number}.mp4" for number in range(5)]
text = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
truths = st.dictionaries(text, st.recursive(st.none() | st.booleans() | numbers | text, st.lists, max_leaves=5))
captions = text.filter(str.strip)
records = st.lists(
    st.builds(
        lambda file, caption, truth: {"file": file, "caption": caption} | ({} if truth is None else {"truth": truth}),
        st.sampled_from(NAMES),
        captions,
        st.none() | truths,
    ),
    min_size=1,
    unique_by=lambda record: record["file"],
)


def read(content: list[dict[str, Any]] | bytes) -> list[dict[str, Any]]:
    """What a folder of five videos and these captions gives."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in NAMES:
            (folder / each).touch()
        if isinstance(content, bytes):
            (folder / CAPTIONS).write_bytes(content)
        else:
            write_captions(folder, content)
        return [clip.record() for clip in read_folder(folder, frames=4, size=(32, 32))]


def written(content: list[dict[str, Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        write_captions(Path(name), content)
        return (Path(name) / CAPTIONS).read_bytes()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(records)
def test_any_records_come_back(content: list[dict[str, Any]]) -> None:
    assert read(content) == content


@settings(max_examples=100, deadline=None, derandomize=True)
@given(records, st.data())
def test_any_damage_is_refused_or_read(content: list[dict[str, Any]], data: st.DataObject) -> None:
    damaged = bytearray(written(content))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged)))
        piece = st.binary(max_size=4) | st.sampled_from(
            [b"{", b"[" * 5000, b'"', b"\\ud800", b"9" * 5000, b"\n", b"../"]
        )
        damaged[place : place + data.draw(st.integers(0, 4))] = data.draw(piece)
    problems: list[tuple[str, str, str]] = []
    found: list[dict[str, Any]] = []
    try:
        found = read(bytes(damaged))
    except UserError as error:
        problems = error.problems[:10]  # the eleventh says how many more there are
    assert all(all(problem) for problem in problems)
    assert problems or read(found) == found
