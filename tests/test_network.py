"""The quickstart's commands with the network off; ``command`` shuts it for every command that the tests start.

The chain itself is the fixture ``smoke``; here are the quickstart's own recipe, and the commands on the result. Its exports are
those of ``tests/export``, whose process is shut by ``conftest``, as that of every test is.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import network
import pytest
import yaml
from command import SMOKE, finish, start

RECIPES = Path(__file__).parents[1] / "recipes"
REACH = """
import socket, sys
sys.path.insert(0, sys.argv[1])
import network
server = socket.create_server(("127.0.0.1", 0))
network.shut()
socket.create_connection(server.getsockname()).close()
for way in (lambda: socket.create_connection(("192.0.2.1", 443), 1), lambda: socket.getaddrinfo("huggingface.co", 443),
            lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 53))):
    try:
        way()
    except ConnectionRefusedError as error:
        print(error)
"""


def test_this_process_is_shut() -> None:
    with pytest.raises(ConnectionRefusedError, match="reached for the network: huggingface.co"):
        socket.create_connection(("huggingface.co", 443))


def test_a_shut_process_reaches_itself_alone() -> None:
    made = subprocess.run([sys.executable, "-c", REACH, Path(network.__file__).parent], capture_output=True, text=True, check=True)
    assert made.stdout.split("\n")[:-1] == [network.SAID + host for host in ("192.0.2.1", "huggingface.co", "192.0.2.1")]


def kinds(path: Path) -> list[tuple[str, str]]:
    steps: list[dict[str, Any]] = yaml.safe_load(path.read_text("utf-8"))["steps"]
    return [(kind, step[kind]["use"]) for step in steps for kind in list(step)[:1]]


def test_the_quickstarts_commands_need_no_network(smoke: Path, tmp_path: Path) -> None:
    done = {step for path in (SMOKE, RECIPES / "quickstart.yaml") for step in kinds(path)}
    assert done - set(kinds(SMOKE)) == {("export", "coreml"), ("export", "onnx")}
    commands = [
        ("check", RECIPES / "quickstart.yaml"), ("inspect", smoke), ("plugins",), ("card", smoke, "--out", tmp_path / "card.md"),
        ("generate", "a red circle", "--model", smoke, "--out", tmp_path / "made.mp4"),
    ]  # fmt: skip
    for words in commands:
        ended = finish(start(*words, log=tmp_path / "log"))
        assert ended.status == 0, (words, ended.printed)
    assert {"card.md", "made.mp4"} <= {path.name for path in tmp_path.iterdir()}
