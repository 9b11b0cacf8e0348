"""Clips decoded by workers: the right pixels, in any order, errors where they are met."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dit_compress.core.errors import UserError
from dit_compress.data.prefetch import ClipStream
from dit_compress.data.samples import Samples


@dataclass
class Clip:
    """Frame values are the clip's number."""

    number: int
    log: list[tuple[int, str]]
    caption: str = ""

    def pixels(self) -> np.ndarray:
        self.log.append((self.number, threading.current_thread().name))
        if self.number == 99:
            raise UserError("the video can't be decoded", where="99.mp4")
        return np.full((1, 2, 2, 3), self.number, np.uint8)


def stream(count: int = 10, workers: int = 2, numbers: list[int] | None = None) -> tuple[Any, list[tuple[int, str]]]:
    log: list[tuple[int, str]] = []
    clips: Any = [Clip(number, log) for number in numbers or range(count)]
    return ClipStream(clips, workers), log


def test_rows_are_those_asked_for_in_their_order() -> None:
    made, log = stream()
    assert made[[7, 2, 7]][:, 0, 0, 0, 0].tolist() == [7, 2, 7]
    assert sorted(number for number, _ in log) == [2, 7]
    assert len(made) == 10


def test_what_was_begun_is_not_decoded_again_and_not_kept() -> None:
    made, log = stream()
    made.prefetch([1, 2])
    made.prefetch([1, 2, 3])
    assert made[[1, 2]].shape == (2, 1, 2, 2, 3)
    assert made[[3]][0, 0, 0, 0, 0] == 3
    assert sorted(number for number, _ in log) == [1, 2, 3]
    assert made._begun == {}
    assert all(name.startswith("decode") for _, name in log)


def test_what_is_not_wanted_any_more_is_forgotten() -> None:
    made, _ = stream()
    made.prefetch([1, 2])
    made.prefetch([4])
    assert list(made._begun) == [4]
    assert made[[2]][0, 0, 0, 0, 0] == 2


def test_two_workers_decode_at_once() -> None:
    both = threading.Barrier(2, timeout=300)

    class Waiting(Clip):
        def pixels(self) -> np.ndarray:
            both.wait()  # passes only when two clips are being decoded
            return np.zeros((1, 2, 2, 3), np.uint8)

    clips: Any = [Waiting(0, []), Waiting(1, [])]
    assert ClipStream(clips, workers=2)[[0, 1]].shape == (2, 1, 2, 2, 3)


def test_a_broken_clip_is_an_error_when_it_is_asked_for() -> None:
    made, _ = stream(numbers=[1, 99])
    made.prefetch([0, 1])
    assert made[[0]][0, 0, 0, 0, 0] == 1
    with pytest.raises(UserError, match=r"99\.mp4"):
        made[[1]]


def test_samples_of_a_stream_are_those_of_an_array() -> None:
    made, _ = stream()
    array = np.stack([np.full((1, 2, 2, 3), i, np.uint8) for i in range(10)])
    captions = [str(i) for i in range(10)]
    one, two = (Samples(x0, captions, {}, pixels=True) for x0 in (made, array))
    assert (one.streamed, two.streamed) == (True, False)
    one.prefetch([4, 1])
    two.prefetch([4, 1])
    assert one.x0([4, 1]).equal(two.x0([4, 1]))
