"""Makes ``toy`` and ``command`` importable from every folder of tests, and runs the smoke recipe once for all workers."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import network
import pytest
from filelock import FileLock
from warm import share_structures

if TYPE_CHECKING:
    from collections.abc import Iterator


# Tiny tensors gain nothing from a second thread, and lose much where the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test needs the network: what would reach another machine is refused, here and in the commands that tests start.
network.shut()
# No test reads what somebody's earlier runs observed; see ``structures``.
os.environ["DIT_COMPRESS_CACHE"] = "off"
# Libraries and rewritten assertions make millions of objects that stay; ``pytest_collection_finish`` turns it on again.
gc.disable()
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
    if "torch" in sys.modules:
        from tracing import gather_once, share_sources, translate_once, validate_once

        gather_once()
        share_sources()
        translate_once()
        if "coremltools" in sys.modules:
            validate_once()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture
def steps_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps run in this process: a new one imports torch again. Its threads and signals are put back.

    No report is drawn: ``test_report`` holds what it shows, and who asks for this reads the figures of steps.
    """
    import torch

    from dit_compress import report
    from dit_compress.run import pipeline, worker

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    threads = torch.get_num_threads()
    monkeypatch.setattr(pipeline, "spawn", lambda command, _threads: worker.main(Path(command[-1])))
    monkeypatch.setattr(report, "write_report", lambda _folder: None)
    yield
    torch.set_num_threads(threads)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of pytest; workers of xdist share it. Write under a ``FileLock``, or whole."""
    place = tmp_path_factory.getbasetemp()
    folder = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    os.environ["DIT_COMPRESS_CACHE"] = str(folder / "structures")  # commands that are forked have it from here
    return folder


@pytest.fixture(scope="module", autouse=True)
def structures(request: pytest.FixtureRequest, shared: Path) -> Iterator[None]:
    """What one test or command observed of a class, all others of this run know; ``structure/`` observes anew."""
    assert os.environ["DIT_COMPRESS_CACHE"] == str(shared / "structures")
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name == "structure":
            patch.setenv("DIT_COMPRESS_CACHE", "off")
        else:
            share_structures(patch.setattr)
        yield


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    """What a file leaves in memory is not looked through again: each conversion by coremltools collects garbage."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smoke(shared: Path) -> Path:
    """The folder of one whole, uninterrupted run of ``tests/recipes/smoke.yaml``. Read it, don't change it.

    Workers of xdist share it: whoever asks first runs it, the others wait.
    """
    from command import SMOKE, finish, start

    folder = shared / "smoke" / "run"
    folder.parent.mkdir(exist_ok=True)
    whole = folder.with_name("whole")
    with FileLock(folder.with_name("lock")):
        if not whole.exists():
            done = finish(start("run", SMOKE, "--out", folder, "--threads", "1", log=folder.with_name("smoke.log")))
            assert done.status == 0, done.printed
            whole.touch()
    return folder
