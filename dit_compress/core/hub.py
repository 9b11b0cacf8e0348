"""Models of the Hugging Face Hub: fetched by ``dit-compress pull`` alone, and found again without the network.

A reference is ``hub:org/name``, or ``hub:org/name@REVISION``. What was fetched stands in the Hub's own cache, in a
folder named by the commit; a ref of ours, written last, says that it is whole.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator

HUB = "hub:"
MAIN = "main"
PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.msgpack", "*.h5"]
"""Weights in other formats than safetensors, which nothing here reads: not fetched."""
INSTALL = "Install dit-compress[hub]"
_OWN = "dit-compress"
_NAMES = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*")


@contextmanager
def hub_refusals(where: str, done: str) -> Iterator[Any]:
    """Give the package ``huggingface_hub``; what it raises becomes one UserError.

    done: what has not happened, for the message: ``nothing was sent``.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError as error:
        raise UserError("the Hub needs the package huggingface_hub", mend=INSTALL) from error
    failures: Any = HfHubHTTPError.__bases__  # those of its HTTP library, too: no network, no answer
    try:
        yield huggingface_hub
    except HFValidationError as error:
        raise UserError(f"{where!r} names no repository: {done}", mend="Give ORG/NAME") from error
    except failures as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        mend = "Check the name, the token's rights and the network; what was moved already is taken up"
        raise UserError(f"the Hub refused: {said}", where=where, mend=mend) from error


def endpoint() -> str | None:
    """Return the address of another Hub, where ``HF_ENDPOINT`` names one."""
    return os.environ.get("HF_ENDPOINT")


def pull(repository: str, revision: str = MAIN) -> tuple[str, Path]:
    """Fetch a repository at a revision into the Hub's cache; return ``hub:org/name@COMMIT`` and its folder.

    Raises:
        UserError: no such repository or revision, no network, no rights; what came stays and is taken up.
    """
    _need_names(repository, revision)
    with hub_refusals(repository, "nothing was fetched") as hub:
        about = hub.HfApi(endpoint=endpoint(), library_name=_OWN).model_info(repository, revision=revision)
        leave = [*PICKLES, *_single_files([file.rfilename for file in about.siblings])]
        hub.snapshot_download(repository, revision=about.sha, ignore_patterns=leave, endpoint=endpoint())
    place = _place(repository)
    for name in {revision, about.sha}:
        ref = place / "refs" / _OWN / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(ref) as partial:
            partial.write_text(about.sha, "utf-8")
    return f"{HUB}{repository}@{about.sha}", place / "snapshots" / about.sha


def pulled(reference: str) -> Path:
    """Return the folder of what was fetched under a reference, without the network.

    Raises:
        UserError: it was not fetched whole.
    """
    repository, _, revision = reference.removeprefix(HUB).partition("@")
    _need_names(repository, revision or MAIN)
    place = _place(repository)
    ref = place / "refs" / _OWN / (revision or MAIN)
    folder = place / "snapshots" / (ref.read_text("utf-8") if ref.is_file() else "")
    if not (ref.is_file() and folder.is_dir()):
        again = f"dit-compress pull {repository}" + (f" --revision {revision}" if revision else "")
        raise UserError(f"{reference!r} is not on this machine, and a recipe fetches nothing", mend=f"Run '{again}'")
    return folder


def _single_files(files: list[str]) -> list[str]:
    """Return the weights at the top of a pipeline's repository: parts in layouts that the pipeline does not read."""
    top = [file for file in files if "/" not in file and file.endswith(".safetensors")]
    return top if "model_index.json" in files else []


def _place(repository: str) -> Path:
    """Return the folder of a repository in the Hub's cache, whether it is there or not."""
    with hub_refusals(repository, "nothing was looked for"):
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _need_names(repository: str, revision: str) -> None:
    if repository.count("/") != 1 or not _NAMES.fullmatch(repository):
        raise UserError(f"{repository!r} names no repository", mend="Give ORG/NAME")
    if not _NAMES.fullmatch(revision):
        raise UserError(f"{revision!r} names no revision", mend="Give a branch, a tag or a commit")
