"""The network, shut: a process in which every connection to another machine is refused, and said."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from typing import Any

SAID = "reached for the network: "
_HOST = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}
"""Events of the interpreter: which argument is, or begins with, the host."""


def shut() -> None:
    """Refuse from now on, in this process and its forks, whatever is not this machine. It can't be opened again."""
    own = {"localhost", "::1", "0.0.0.0", "", None, socket.gethostname()}
    with suppress(OSError):  # a machine that does not know its own name
        own |= {place[4][0] for place in socket.getaddrinfo(socket.gethostname(), None)}

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event not in _HOST:
            return
        host = args[_HOST[event]]
        if isinstance(host, (str, bytes)) and event in ("socket.connect", "socket.sendto"):
            return  # the path of a socket on this machine
        host = host[0] if isinstance(host, tuple) else host
        host = host.decode() if isinstance(host, bytes) else host
        if host not in own and not str(host).startswith("127."):
            sys.stderr.write(f"{SAID}{host}\n")
            raise ConnectionRefusedError(f"{SAID}{host}")

    sys.addaudithook(look)
