"""dit-compress: turn a large video Diffusion Transformer into one that a phone can run."""

__version__ = "0.1.0"
SCHEMA = 1
"""Version of every file the toolkit writes (bundle.json, run.json, manifest.json)."""
REVISION = 1
"""Revision of the engine's results: raised when equal inputs would give other numbers."""


def __getattr__(name: str) -> object:
    """``record`` is imported when it is asked for: importing the package imports no torch."""
    if name == "record":
        from dit_compress.structure.record import record

        return record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
