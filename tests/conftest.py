"""Makes ``toy`` and ``command`` importable from every folder of tests, and runs the smoke recipe once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


# Tiny tensors gain nothing from a second thread, and lose much where the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: one that begins last keeps one core busy and the other waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole, uninterrupted run of ``tests/recipes/smoke.yaml``. Read it, don't change it."""
    from command import SMOKE, finish, start

    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = finish(start("run", SMOKE, "--out", folder, "--threads", "1", log=folder.with_name("smoke.log")))
    assert done.status == 0, done.printed
    return folder
