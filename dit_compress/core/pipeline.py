"""A pipeline's folder of diffusers: the parts that ``model_index.json`` names, and whether they are what it says.

Imports no torch, and executes nothing of the folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json

INDEX, CONFIG = "model_index.json", "config.json"
DENOISERS = ("transformer", "transformer_2")
"""Parts that denoise; the second one of a model with two experts."""
BOUNDARY = "boundary_ratio"
"""The sigma from which the first expert takes over, under the name that Wan's pipelines give it."""
SCHEDULER = "scheduler"
_AGAIN = "Download or copy the folder again"
_TERMS = re.compile(r"(licen[cs]e|notice|use_policy|usage_policy)", re.IGNORECASE)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline on disk. index: what ``model_index.json`` says."""

    folder: Path
    index: dict[str, Any]

    @property
    def class_name(self) -> str:
        """The class of the pipeline, one of diffusers."""
        return self.index["_class_name"]

    @property
    def parts(self) -> dict[str, tuple[str, str]]:
        """Library and class of every part that is there, by the name of its folder."""
        named = {name: value for name, value in self.index.items() if isinstance(value, list) and len(value) == 2}
        return {name: (value[0], value[1]) for name, value in named.items() if value[0] is not None}

    @property
    def boundary(self) -> float | None:
        """The sigma from which the first of two experts takes over; None where there is one.

        Raises:
            UserError: it is no number between 0 and 1.
        """
        if DENOISERS[1] not in self.parts:
            return None
        stated = self.index.get(BOUNDARY)
        if isinstance(stated, bool) or not isinstance(stated, int | float) or not 0 < stated < 1:
            raise UserError(
                f"two experts, and {BOUNDARY!r} is {stated!r}: no sigma between 0 and 1",
                where=str(self.folder / INDEX),
                mend=f"Write the sigma at which {DENOISERS[0]} hands over: 0.875 of Wan 2.2",
            )
        return float(stated)

    def check(self) -> None:
        """Raise one UserError where parts are missing, not whole, or those of another pipeline; reads no weights."""
        problems = [problem for name in self.parts for problem in self._problems(name)]
        try:
            _ = self.boundary
        except UserError as error:
            problems.append(error)
        if problems:
            raise UserError.join(problems)

    def terms(self) -> list[Path]:
        """Return the files that state the licence, but for the model card."""
        return sorted(item for item in self.folder.iterdir() if item.is_file() and _TERMS.match(item.name))

    def _problems(self, name: str) -> list[UserError]:
        """Return what is wrong with one part."""
        place, (library, kind) = self.folder / name, self.parts[name]
        if not place.is_dir():
            return [
                UserError(
                    f"{INDEX} names {name!r} ({kind}), and there is no such folder", where=str(place), mend=_AGAIN
                )
            ]
        config = place / CONFIG
        if library == "diffusers" and config.is_file():
            stated = read_json(config)
            found = stated.get("_class_name") if isinstance(stated, dict) else None
            if isinstance(found, str) and found != kind:
                return [
                    UserError(
                        f"{name!r} is a {found}, and {INDEX} of {self.class_name} names {kind}",
                        where=str(config),
                        mend="Give the folder of one pipeline, with its own parts",
                    )
                ]
        return [
            UserError(f"the shard {shard} of {name!r} is missing", where=str(index), mend=_AGAIN)
            for index in sorted(place.glob("*.index.json"))
            for shard in _missing(index)
        ]


def _missing(index: Path) -> list[str]:
    """Return the files that an index of shards names, and that are not beside it."""
    data = read_json(index)
    places = data.get("weight_map") if isinstance(data, dict) else None
    names = {str(name) for name in places.values()} if isinstance(places, dict) else set()
    return sorted(name for name in names if not index.with_name(Path(name).name).is_file())


def scheduler_config(folder: Path) -> dict[str, Any]:
    """Read the config of the scheduler in a pipeline's folder; empty where there is none."""
    file = folder / SCHEDULER / "scheduler_config.json"
    if not file.is_file():
        return {}
    config = read_json(file)
    texts = [config.get(key, "") for key in ("_class_name", "prediction_type")] if isinstance(config, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise UserError("no config of a scheduler", where=str(file), mend=_AGAIN)
    return config


def is_pipeline(folder: Path) -> bool:
    """Tell whether a folder is a pipeline's."""
    return (folder / INDEX).is_file()


def open_pipeline(folder: Path) -> Pipeline:
    """Read a pipeline's index; raise a UserError where it is none, or names code that is no class."""
    index, where = read_json(folder / INDEX), str(folder / INDEX)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UserError(
            "no index of a pipeline: '_class_name' is missing or asks for code of its own", where=where, mend=_AGAIN
        )
    return Pipeline(folder, index)
