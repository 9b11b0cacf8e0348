"""Scripts in processes that know torch and diffusers and nothing of this package: forks of one that imported both once.

As good as a new interpreter, and seconds cheaper: nothing of ``dit_compress`` was ever imported there.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SERVER = """\
import json, os, runpy, sys, traceback
import diffusers, numpy, safetensors.torch, torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel

torch.set_num_threads(1)
assert not [name for name in sys.modules if name.startswith("dit_compress")]


def work(job):
    os.chdir(job["folder"])
    log = os.open(job["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv, sys.path[:0] = job["argv"], job["path"]
    try:
        runpy.run_path(job["argv"][0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        status = work(json.loads(line))
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """Exit status and everything printed."""

    status: int
    printed: str


def run_fresh(script: str, *arguments: Any, folder: Path, path: Sequence[Path] = ()) -> Ran:
    """Run the text of a script in ``folder``, with arguments; ``path`` comes first on the module path."""
    file, log = folder / "fresh_script.py", folder / "fresh_script.log"
    file.write_text(script, "utf-8")
    argv, before = [str(file), *map(str, arguments)], [str(each) for each in (folder, *path)]
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps({"argv": argv, "path": before, "folder": str(folder), "log": str(log)}) + "\n")
    server.stdin.flush()
    return Ran(int(server.stdout.readline()), log.read_text("utf-8"))


@cache
def _server() -> subprocess.Popen[str]:
    """The process that forks; it ends with this one."""
    command = [sys.executable, "-c", SERVER]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    atexit.register(started.kill)
    return started
