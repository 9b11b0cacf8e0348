"""The size of each clip, of several: the nearest aspect among those whose length fits.

Images are clips of one frame: they go into sizes of one frame, and nothing else does.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.data.clips import Clip
    from dit_compress.data.video import Facts

    Size = tuple[int, int, int]


def bucket_of(facts: Facts, sizes: Sequence[Size]) -> Size | None:
    """Return frames, height and width for a clip; None where no length fits. Of equal aspects the longest, largest."""

    def distance(size: Size) -> tuple[float, int, int]:
        frames, height, width = size
        aspect = abs(log(width / height) - log(facts.width / facts.height))
        return round(aspect, 6), -frames, -height * width

    fitting = [size for size in sizes if _fits(facts, size)]
    return min(fitting, key=distance) if fitting else None


def _fits(facts: Facts, size: Size) -> bool:
    return facts.frames == 1 if size[0] == 1 else size[0] <= facts.frames


def need_bucket(clip: Clip, facts: Facts, sizes: Sequence[Size]) -> None:
    """Raise a UserError where no size is a clip's bucket."""
    if bucket_of(facts, sizes) is not None:
        return
    shortest = min((frames for frames, *_ in sizes if frames > 1), default=None)
    if facts.frames == 1:
        what = "an image, and none of 'sizes' has one frame"
    elif shortest is None:
        what = "a video, and all 'sizes' are of images"
    else:
        what = f"the video has {facts.frames} frames, the shortest of 'sizes' takes {shortest}"
    raise UserError(what, where=str(clip.path), mend="Add a size for it, or leave the clip out")


def need_all(sizes: Sequence[Size], facts: Sequence[Facts], place: str) -> list[UserError]:
    """Return what to say of sizes into which no clip falls, with what clips have."""
    used = {bucket_of(each, sizes) for each in facts}
    frames = sorted(each.frames for each in facts)
    aspects = sorted(each.width / each.height for each in facts)
    longest = max(size[0] for size in sizes)
    have = f"{frames[0]} to {frames[-1]}{' or more' * (frames[-1] >= longest)} frames" if facts else "none"
    have += f", width by height is {aspects[0]:.2f} to {aspects[-1]:.2f}" if facts else ""
    return [
        UserError(
            f"no clip falls into the size {list(size)} of 'sizes': clips have {have}",
            where=place,
            mend="Take it out, or add clips of its length whose aspect is nearest to it",
        )
        for size in sizes
        if size not in used
    ]
