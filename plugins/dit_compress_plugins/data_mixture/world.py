"""The modes of the mixture, and what is drawn of them; a function of the options alone.

Shapes: G captions, M modes of each, D numbers of a latent, N samples.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.core.randomness import generator
from dit_compress_plugins.data_mixture import WORDS

if TYPE_CHECKING:
    from dit_compress.data.clips import Split
    from dit_compress_plugins.data_mixture import MixtureOptions


def captions(options: MixtureOptions) -> list[str]:
    """Return every caption, the last attribute's words changing fastest."""
    used = [words[:count] for words, count in zip(WORDS, options.values, strict=False)]
    return [" ".join(("a", *words)) for words in product(*used)]


def means(options: MixtureOptions) -> np.ndarray:
    """Return the modes' means ``[G,M,D]``: centred, their mean square ``1 - spread²``; zero where there is one mode.

    The part that is composed adds a vector for every word of the caption and one for the mode's number.
    """
    counts, width = (*options.values, options.modes), prod(options.shape)
    composed = np.zeros((*counts, width))
    for axis, count in enumerate(counts):
        vectors = generator(options.seed, "mixture/words", axis).standard_normal((count, width))
        composed += vectors.reshape([count if place == axis else 1 for place in range(len(counts))] + [width])
    own = generator(options.seed, "mixture/own").standard_normal(composed.shape)
    mixed = np.sqrt(options.composed / len(counts)) * composed + np.sqrt(1 - options.composed) * own
    mixed = mixed.reshape(-1, options.modes, width)
    mixed -= mixed.mean(axis=(0, 1))
    if mixed.any():
        mixed *= np.sqrt((1 - options.spread**2) / np.mean(mixed**2))
    return mixed


def choices(options: MixtureOptions, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Draw the caption ``[N]`` and the mode ``[N]`` of every sample of a split; all are equally likely."""
    count = options.num_clips if split == "train" else options.num_test
    rng = generator(options.seed, f"mixture/{split}")
    both = rng.integers([prod(options.values), options.modes], size=(count, 2))
    return both[:, 0], both[:, 1]


def latents(options: MixtureOptions, split: Split) -> np.ndarray:
    """Draw the latents of a split, float32 ``[N,C,T,H,W]``."""
    chosen = means(options)[choices(options, split)]
    noise = generator(options.seed, f"mixture/{split}/noise").standard_normal(chosen.shape)
    return (chosen + options.spread * noise).astype(np.float32).reshape(-1, *options.shape)
