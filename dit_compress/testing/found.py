"""The test that a plugin is installed and found, with what to do where it is not."""

from __future__ import annotations

from dit_compress.plugin.options import load_object
from dit_compress.plugin.registry import Registry


def assert_found(kind: str, name: str) -> None:
    """Assert that ``dit-compress plugins`` lists it and its class can be imported; the message has the mend."""
    registry = Registry.discover()
    for broken in registry.broken:
        assert broken.name != f"{kind}_{name}", f"{broken.name} is broken: {broken.reason}. {broken.mend}"
    known = {entry.plugin.name: entry.plugin for entry in registry.entries(kind)}
    mend = "in the folder of its pyproject.toml run: pip install --no-deps -e ."
    assert name in known, f"the {kind} plugin {name!r} is not installed; {mend}"
    assert isinstance(load_object(known[name].load), type), f"what stands at load={known[name].load!r} is no class"
