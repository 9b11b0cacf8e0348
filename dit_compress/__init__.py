"""dit-compress: turn a large video Diffusion Transformer into one that a phone can run."""

__version__ = "0.1.0"
SCHEMA = 1
"""Version of every file the toolkit writes (bundle.json, run.json, manifest.json)."""
REVISION = 1
"""Revision of the engine's results: raised when equal inputs would give other numbers."""
