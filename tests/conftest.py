"""Makes ``toy`` and ``command`` importable from every folder of tests, and runs the smoke recipe once for all workers."""

from __future__ import annotations

import gc
import logging
import os
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from pathlib import Path


# Tiny tensors gain nothing from a second thread, and lose much where the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test reads what somebody's earlier runs observed.
os.environ["DIT_COMPRESS_CACHE"] = "off"
# A library that is imported while a test is captured logs into that test's closed stream for ever after.
logging.raiseExceptions = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: one that begins last keeps one core busy and the other waiting."""
    seconds: dict[Path, int] = {}
    for item in items:
        for marker in item.iter_markers("slow"):
            seconds[item.path] = max(seconds.get(item.path, 0), *marker.args)
    items.sort(key=lambda item: -seconds.get(item.path, 0))


def pytest_collection_finish() -> None:
    """What is imported stays: it need not be looked through for garbage."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole, uninterrupted run of ``tests/recipes/smoke.yaml``. Read it, don't change it.

    Workers of xdist share it: whoever asks first runs it, the others wait.
    """
    from command import SMOKE, finish, start

    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "smoke" / "run"
    folder.parent.mkdir(exist_ok=True)
    whole = folder.with_name("whole")
    with FileLock(folder.with_name("lock")):
        if not whole.exists():
            done = finish(start("run", SMOKE, "--out", folder, "--threads", "1", log=folder.with_name("smoke.log")))
            assert done.status == 0, done.printed
            whole.touch()
    return folder
