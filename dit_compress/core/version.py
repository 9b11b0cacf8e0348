"""The version of the toolkit, of its files, of its results."""

from __future__ import annotations

__version__ = "0.1.0"

SCHEMA = 1
"""Version of every file the toolkit writes (bundle.json, run.json, manifest.json)."""

REVISION = 1
"""Revision of the engine's results: raised when equal inputs would give other numbers."""
