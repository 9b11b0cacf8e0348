"""``dit-compress play FOLDER "prompt"``: a video from an exported package alone.

NumPy holds the sampling loop; the artifacts are executed by their own runtime. No torch model, no bundle:
what this file does is what an app must do (docs/phone-package.md has the same loop in Swift).

Shapes: B = 1 batch, C channels, T H W latent frames, height, width, F frames of Y × X pixels.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.errors import UserError, root_cause
from dit_compress.core.files import read_json
from dit_compress.core.randomness import generator
from dit_compress.export.compare import compare
from dit_compress.export.folder import artifact_of, check_files, read_manifest, runner_of
from dit_compress.export.proof import read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dit_compress.export.types import Runner
    from dit_compress.plugin.registry import Registry

Tensors = dict[str, np.ndarray]


class Player:
    """A package, loaded: :meth:`video` gives the frames of a caption.

    video_size: frames, height, width; one of the manifest's ``sizes``, the first where absent.
    """

    def __init__(self, folder: Path, registry: Registry, video_size: tuple[int, int, int] | None = None) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, whole=True)
        check_files(folder, self.manifest)
        need_frames(folder, self.manifest)
        self.size = size_of(folder, self.manifest, video_size)
        self.entries = {entry["component"]: entry for entry in self.manifest["artifacts"]}
        self.dit = next((name for name in ("dit_walk", "dit_step") if name in self.entries), "dit_step")
        wanted = ["text_encoder"] * (self.manifest["text"]["where"] == "device") + [self.dit]
        if missing := [name for name in wanted if name not in self.entries]:
            raise UserError(f"it has no {', '.join(missing)}", where=str(folder), mend="Export the bundle again")
        self.runners: dict[str, Runner] = {}
        self.precision: dict[str, Any] = {}
        for entry in self.entries.values():
            artifact = artifact_of(folder, entry)
            try:
                self.runners[artifact.component] = runner_of(artifact, self.manifest, registry)
            except ImportError as error:
                what = f"executing {artifact.path.name} here needs {error.name}, not installed"
                raise UserError(what, where=str(folder), mend=f"Install {error.name}") from error
            self.precision[artifact.component] = artifact.precision

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        """Execute an artifact once, with just the inputs it takes.

        Raises:
            UserError: it takes one that is not there, or gives values that are not finite.
        """
        wanted = {each["name"]: each["dtype"] for each in self.entries[component]["inputs"]}
        if missing := sorted(wanted.keys() - inputs.keys()):
            what = f"{component} takes {', '.join(missing)}, which nothing gives"
            raise UserError(what, where=str(self.folder), mend="Export the bundle again")
        given = {name: inputs[name].astype(dtype) for name, dtype in wanted.items()}
        try:
            found = self.runners[component](given, self.precision[component])
        except UserError:
            raise
        except Exception as error:
            what = f"the file of {component} does not take its inputs: {root_cause(error)}"
            raise UserError(what, where=str(self.folder), mend="Copy the package again") from error
        if wrong := [name for name, value in found.items() if not np.isfinite(value).all()]:
            what = f"{component} gives values that are not finite in {', '.join(wrong)}"
            raise UserError(
                what, where=str(self.folder), mend="Export it in float32, and look at headroom in the manifest"
            )
        return found

    def encode(self, caption: str) -> Tensors:
        """Encode a caption as the tensors that the DiT takes, where the text encoder is part of the package."""
        text = self.manifest["text"]
        if text["where"] != "device":
            what = "the text encoder is not part of this package (text.where is host)"
            raise UserError(what, where=str(self.folder), mend="Give the embeddings with --text FILE.safetensors")
        return self.run("text_encoder", tokenize(caption, self.folder, text["tokenizer"]))

    def noise(self, seed: int) -> np.ndarray:
        """Return the toolkit's own noise of a seed, ``[1,C,T,H,W]``."""
        shape = self.size["latent"]
        stream = self.manifest["sample"]["stream"]
        return generator(seed, stream, 0, 0).standard_normal(tuple(shape[1:]), dtype=np.float32)[None]

    def sample(self, noise_BCTHW: np.ndarray, text: Tensors, null: Tensors | None) -> dict[int, np.ndarray]:
        """Return the latent after every step, Euler over the manifest's sigmas; of ``dit_walk`` after the last."""
        sigmas, guidance = self.manifest["sigmas"], self.manifest["guidance"]
        if self.dit == "dit_walk":
            empty = {f"null_{name}": value for name, value in (null or {}).items()}
            return {len(sigmas) - 1: self.run(self.dit, {"noise": noise_BCTHW, **text, **empty})["latent"]}
        x, latents = noise_BCTHW, dict[int, np.ndarray]()
        for step, (now, then) in enumerate(pairwise(sigmas), 1):
            at = {"latent": x, "sigma": np.full((1,), now, np.float32)}
            velocity = self.run(self.dit, {**at, **text})["velocity"]
            if null is not None:
                without = self.run(self.dit, {**at, **null})["velocity"]
                velocity = without + np.float32(guidance) * (velocity - without)
            x = latents[step] = x + np.float32(then - now) * velocity
        return latents

    def stages(self, text: Tensors, null: Tensors | None, noise_BCTHW: np.ndarray) -> Tensors:
        """Return ``latent/1`` … and, where there is a decoder, ``video [1,3,F,Y,X]``."""
        latents = self.sample(noise_BCTHW, text, null if self.manifest["guidance"] != 1 else None)
        found = {f"latent/{step}": latent for step, latent in latents.items()}
        if "vae_decoder" not in self.entries:
            return found
        return found | {"video": self.run("vae_decoder", {"latent": [*latents.values()][-1]})["video"]}

    def video(self, caption: str, seed: int, given: Path | None = None) -> np.ndarray:
        """Make a video, uint8 ``[F,Y,X,3]``, of a caption, or of embeddings ``text/…`` and ``null/…`` in a file."""
        if "vae_decoder" not in self.entries:
            what = "it has no vae_decoder: its latents stand for no pixels"
            raise UserError(what, where=str(self.folder), mend="Compare its stages with --golden")
        if given is None:
            text = self.encode(caption)
            null = self.encode("") if self.manifest["guidance"] != 1 else None
        else:
            text, null = self.read_text(given)
        return to_pixels(self.stages(text, null, self.noise(seed))["video"])

    def read_text(self, path: Path) -> tuple[Tensors, Tensors | None]:
        """Read embeddings ``text/…`` and, where guidance is on, ``null/…``.

        Raises:
            UserError: one is missing, has another shape or is not finite; all of them together.
        """
        tensors = read_tensors(path)
        taken = {each["name"] for each in self.entries[self.dit]["inputs"]}
        shapes = {name: shape for name, shape in self.manifest["text"]["tensors"].items() if name in taken}
        parts = ["text", "null"] if self.manifest["guidance"] != 1 else ["text"]
        problems = [_unfit(f"{part}/{name}", shape, tensors, path) for part in parts for name, shape in shapes.items()]
        if found := [each for each in problems if each is not None]:
            raise UserError.join(found)
        return _under(tensors, "text"), _under(tensors, "null") or None

    def golden(self) -> dict[str, float]:
        """Play the golden sample again: dB of every stage against the toolkit's own.

        Raises:
            UserError: another size than that of the sample was asked for.
        """
        sample = self.manifest["sample"]
        if self.size != self.manifest["sizes"][0]:
            what = f"the golden sample is of size {_words(self.manifest['sizes'][0])}"
            raise UserError(what, where=str(self.folder), mend="Leave --size out")
        wanted = read_tensors(self.folder / sample["file"])
        found: Tensors = {"noise": self.noise(sample["seed"])}
        text, null = _under(wanted, "text"), _under(wanted, "null") or None
        if self.manifest["text"]["where"] == "device":
            text = self.encode(sample["caption"])
            null = self.encode("") if null else None
            found |= {f"text/{name}": value for name, value in text.items()}
        found |= self.stages(text, null, found["noise"])
        return {name: round(compare(wanted[name], value).psnr_db, 1) for name, value in found.items()}


def need_frames(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise a UserError unless each latent has its video's frames: ``1 + (F - lead)/ratio[0]``, F = lead + step·k."""
    rule, own = manifest["frame_rule"], manifest["sizes"][0]
    for size in manifest["sizes"]:
        frames, latent = size["frames"], size["latent"][2]
        extra = frames - rule["lead"]
        if extra < 0 or extra % rule["step"] or latent != 1 + extra // manifest["ratio"][0]:
            what = f"the manifest contradicts itself: {frames} frames by {rule}, {latent} latent frames"
            raise UserError(what, where=str(folder), mend="Export the bundle again")
    video = {name: manifest["video"][name] for name in ("frames", "height", "width")}
    if own["latent"] != manifest["noise"]["shape"] or {**own, **video} != own:
        what = f"the manifest contradicts itself: sizes[0] is {own}, video {video}, noise {manifest['noise']['shape']}"
        raise UserError(what, where=str(folder), mend="Export the bundle again")


def size_of(folder: Path, manifest: Mapping[str, Any], video_size: tuple[int, int, int] | None) -> dict[str, Any]:
    """Return the size of a video of (frames, height, width); the first where none is asked for.

    Raises:
        UserError: the files take no such size.
    """
    sizes: list[dict[str, Any]] = manifest["sizes"]
    for size in sizes:
        if video_size in (None, (size["frames"], size["height"], size["width"])):
            return size
    known = " or ".join(f"--size {_words(size)}" for size in sizes)
    what = f"the files take no video of {' '.join(map(str, video_size or ()))} (frames, height, width)"
    raise UserError(what, where=str(folder), mend=f"Take {known}, or export with 'sizes'")


def _words(size: Mapping[str, Any]) -> str:
    return f"{size['frames']} {size['height']} {size['width']}"


def tokenize(caption: str, folder: Path, tokenizer: Mapping[str, Any]) -> Tensors:
    """Turn a caption into the whole numbers the text encoder takes.

    Raises:
        UserError: a kind of tokenizer that this player does not know.
    """
    file = folder / tokenizer["folder"] / tokenizer["file"]
    if tokenizer["kind"] == "tokenizers":
        return _pieces(tokenizer.get("template", "{}").replace("{}", caption or tokenizer.get("empty", "")), file)
    if tokenizer["kind"] != "words":
        what = f"this player has no tokenizer of kind {tokenizer['kind']!r}"
        raise UserError(what, where=str(folder), mend="Give the embeddings with --text FILE.safetensors")
    data = read_json(file)
    try:
        numbers = [
            data["vocabulary"].get(word, data["unknown"]) for word in re.findall(data["pattern"], caption.lower())
        ] or [data["null"]]
        row = np.full((1, data["length"]), data["pad"], np.int32)
        row[0, : len(numbers)] = numbers[: data["length"]]
        return {data["input"]: row}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise UserError("no tokenizer of words", where=str(file), mend="Copy the package again") from error


def _pieces(caption: str, file: Path) -> Tensors:
    """Tokenize by a file of the library tokenizers, which knows its length and its padding."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        what = "its tokenizer needs tokenizers, not installed"
        raise UserError(what, where=str(file), mend="Install tokenizers, or give the embeddings with --text") from error
    try:
        found = Tokenizer.from_file(str(file)).encode(caption)
    except Exception as error:  # the library raises no other type
        raise UserError("no tokenizer of tokenizers", where=str(file), mend="Copy the package again") from error
    return {"ids": np.asarray([found.ids], np.int32), "mask": np.asarray([found.attention_mask], np.int32)}


def to_pixels(video_BCFYX: np.ndarray) -> np.ndarray:
    """Turn video in [-1, 1] into uint8 ``[F,Y,X,3]``."""
    scaled = np.rint((np.clip(video_BCFYX[0], -1, 1) + 1) * 127.5)
    return np.ascontiguousarray(scaled.transpose(1, 2, 3, 0).astype(np.uint8))


def _unfit(name: str, shape: list[int], tensors: Mapping[str, np.ndarray], path: Path) -> UserError | None:
    """Say what is wrong with one of the embeddings."""
    value, where = tensors.get(name), str(path)
    if value is None:
        empty = " (null is the empty caption, for guidance)" if name.startswith("null/") else ""
        return UserError(
            f"there is no tensor {name}{empty}", where=where, mend=f"Save it under this name, shape {shape}"
        )
    if list(value.shape) != shape:
        mend = "Pad it to that length, with zeros in embedding and mask"
        return UserError(f"{name} has the shape {list(value.shape)}, the package takes {shape}", where=where, mend=mend)
    if not np.isfinite(value.astype(np.float32)).all():
        return UserError(f"{name} has values that are not finite", where=where, mend="Encode the text in float32")
    return None


def _under(tensors: Mapping[str, np.ndarray], prefix: str) -> Tensors:
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}
