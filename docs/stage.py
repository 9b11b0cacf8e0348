"""Gather what the site is made of into one folder: every page, and every file that a page links to.

    python docs/stage.py build/pages

Pages keep their places relative to each other, so that a link works on the site as it does in the repository.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "docs/**/*.md", "plugins/dit_compress_plugins/*/README.md", "benchmarks/*.md")
LINK = re.compile(r"\]\(([^)#\s]+)")


def main(target: Path) -> None:
    """Write the folder anew."""
    shutil.rmtree(target, ignore_errors=True)
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    linked = {file for page in pages for link in LINK.findall(page.read_text("utf-8")) if (file := of(page, link))}
    for file in {*pages, *linked}:
        place = target / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def of(page: Path, link: str) -> Path | None:
    """Return the file of the repository that a link names; None for an address or a folder."""
    path = (page.parent / link).resolve()
    return path if "://" not in link and path.is_file() and path.is_relative_to(ROOT) else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
