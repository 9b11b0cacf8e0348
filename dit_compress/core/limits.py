"""Bounds on what a user may ask for, beyond which only a slip of the keyboard goes."""

from __future__ import annotations

MAX_SEED = 2**64 - 1
"""Largest number that torch takes as a seed."""
MAX_NAME_BYTES = 200
"""Of a step's or a recipe's name: that of a file has up to 255, and we append to it."""
MAX_FPS = 1_000
"""Frames a second of a video."""
MAX_PIXELS = 16_384
"""Pixels of a video's side, and its frames."""
MAX_CELLS = 4_096
"""Cells of a latent's side."""
