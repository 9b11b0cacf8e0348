"""A run's result on the Hugging Face Hub: the card, the model and the exported files. The one place that sends."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import link_file, link_tree
from dit_compress.model.licence import CARD
from dit_compress.plugin import defaults
from dit_compress.report.card import write_card
from dit_compress.report.data import read_run

if TYPE_CHECKING:
    from dit_compress.report.data import Run

INSTALL = "Install dit-compress[hub]"


def upload(folder: Path, repository: str, *, private: bool = True, base_model: str | None = None) -> str:
    """Send the result of a run to a repository, which is made where it is not there; return the commit's address.

    Args:
        folder: the run's folder.
        repository: ``org/name`` on the Hub, or on what ``HF_ENDPOINT`` names.
        private: whether a repository that is made here is private; one that is there stays as it is.
        base_model: see :func:`dit_compress.report.card.write_card`.

    Raises:
        UserError: no run, nothing in it to send, no token (nothing is sent then); or the Hub refuses.
    """
    run = read_run(folder)
    with TemporaryDirectory() as place:
        stage(run, folder, Path(place))
        write_card(folder, Path(place) / CARD, base_model)
        return _send(Path(place), repository, private=private)


def stage(run: Run, folder: Path, place: Path) -> None:
    """Put what is sent into one folder, by links.

    At the top stands the last pipeline of diffusers, else the last bundle; below, other exports by their steps' names.
    """
    exports = {step.name: folder / "steps" / step.name / "files" for step in run.of_kind("export")}
    pipelines = [step.name for step in run.of_kind("export") if step.plugin == defaults.PIPELINE]
    bundles = [folder / "steps" / step.name / "bundle" for step in run.steps if step.bundle is not None]
    if not bundles:
        raise UserError("no step has given a bundle", where=str(folder), mend="Finish the run first")
    link_tree(exports.pop(pipelines[-1]) if pipelines else bundles[-1], place)
    for name, files in exports.items():
        link_tree(files, place / name)
    link_file(folder / "recipe.yaml", place / "recipe.yaml")


def _send(place: Path, repository: str, *, private: bool) -> str:
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError as error:
        raise UserError("'push' needs huggingface_hub", mend=INSTALL) from error
    if get_token() is None:
        raise UserError("no token for the Hub: nothing was sent", mend="Set HF_TOKEN, or log in with 'hf auth login'")
    failures: Any = HfHubHTTPError.__bases__  # those of its HTTP library, too: no network, no answer
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="dit-compress")
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        made = hub.upload_folder(repo_id=repository, folder_path=place, commit_message="Upload by dit-compress")
    except HFValidationError as error:
        raise UserError(f"{repository!r} names no repository: nothing was sent", mend="Give ORG/NAME") from error
    except failures as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        mend = "Check the name, the token's rights and the network; what was sent already is taken up"
        raise UserError(f"the Hub refused: {said}", where=repository, mend=mend) from error
    return str(made.commit_url)
