"""What fuzz.py harms, and how: small real files of every kind that a command reads, and the mutations."""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from dit_compress.model.bundle import write_bundle
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin.registry import installed
from dit_compress.pruning.prune import prune
from dit_compress.recipe import make_part
from dit_compress.step.context import Context
from dit_compress.testing.models import tiny_denoiser

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dit_compress.model.bundle import Bundle

    Harm = Callable[[Random, bytes], bytes]

RECIPES = Path(__file__).parents[1] / "recipes"
MODELS = {
    "denoiser": ("model", "video_dit", {"layers": 2, "heads": 2, "head_width": 16, "channels": 16, "text_width": 32}),
    "text": ("text", "words", {"width": 32, "layers": 1, "heads": 2, "length": 16}),
    "latent": ("latent", "video_vae", {"channels": 16, "widths": [8, 8, 8, 16], "blocks": 1}),
}
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 0.5, 1.5, -3.5, 1e12, 1e308, -1e308, 2**63, 2**70, 2**128, "", " ", "x", "x" * 300,
    "x" * 5000, "\ud800", "\u2028", "\x00", "..", "../../x", "/dev/null", "/proc/self/mem", "a/b", ".", "~",
    "LTXPipeline",
    "FluxTransformer2DModel", "ConfigMixin", "os", "float32", [], {}, [[]], [None], [0, 0], [1, 2, 3], [2**70], [""],
    {"": 0}, {"a": {"b": [1]}}, {"use": 1}, {"use": "x" * 300},
)  # fmt: skip
WORDS = (
    "", " ", "-1", "0", "1", "2", "3.5", "1e12", "1e400", "nan", "inf", "-inf", "x", "x" * 300, "\udcff", "\u2028",
    "/dev/null",
    "/dev/null/x", "/proc/1/x", ".", "..", "a=b", "block=1", "block=-1", "head=x", ",", "=", "--", "-x", "--out",
    "9" * 5000, str(2**63), str(2**70), "100_000", "None", "[]", "{}", "magnitude", "taylor", "shapes",
)  # fmt: skip
"""What options are given."""


# ------------------------------------------------------------------ files


def bundle(path: Path) -> Bundle:
    """Return a whole bundle of random weights: text encoder, DiT, VAE at 8x32x32."""
    torch.manual_seed(0)
    specs, modules = {}, {}
    for name, (kind, plugin, options) in MODELS.items():
        maker = make_part(kind, {"use": plugin, **options}, installed()).build()
        if kind == "latent":
            from dit_compress_plugins.latent_video_vae.vae import VideoVAE

            module = VideoVAE(channels=16, widths=(8, 8, 8, 16), num_blocks=1)
            module.set_statistics([0.1] * 16, [1.5] * 16)
            config = {key: value for key, value in module.config.items() if not key.startswith("_")}
        else:
            module = maker.create()
            config = maker.config_of(module)
        modules[name], specs[name] = module, ComponentSpec(kind, plugin, json.loads(json.dumps(config)))
    spec = Spec(video=(9, 64, 64), flow=Flow(num_steps=1, guidance=1.0), **specs)
    return write_bundle(path, spec, modules, base=None, lineage=())


def package(folder: Path, source: Bundle) -> None:
    """Return an exported package of that bundle, for ONNX."""
    step = make_part("export", {"use": "onnx", "precision": "float32"}, installed())
    record = {"parts": {"step": {"plugin": "onnx", "kind": "export", "options": step.as_data()}}}
    context = Context(
        name="files", seed=0, folder=folder, cache=folder, bundles={"input": source}, names={}, parts={},
        record=record, video=source.spec.video,
    )  # fmt: skip
    step.build().run(context)


def material(folder: Path) -> Path:
    """Everything that is harmed, in one folder: bundle/, ltx/, shards/, pruned/, package/files/, clips/."""
    made = bundle(folder / "bundle")
    package(folder / "package", made)
    ltx: Any = tiny_denoiser("ltx").module
    ltx.save_pretrained(folder / "ltx")
    ltx.save_pretrained(folder / "shards", max_shard_size="100KB")
    prune(folder / "ltx", remove={"block": 1}, out=folder / "pruned")
    clips = folder / "clips"
    clips.mkdir()
    for name in "ab":
        (clips / f"{name}.mp4").write_bytes(b"")
    lines = [{"file": f"{name}.mp4", "caption": f"clip {name}", "truth": {"n": 1}} for name in "ab"]
    (clips / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


class Copy:
    """A copy of some material whose files are links: what is harmed is written anew, and mended for the next case."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.harmed: list[str] = []
        shutil.copytree(source, folder, copy_function=os.link)
        self.files = self.listed()

    def listed(self) -> list[str]:
        """Every file and folder in it."""
        return sorted(item.relative_to(self.folder).as_posix() for item in self.folder.rglob("*"))

    def harm(self, file: str, data: bytes) -> None:
        """Write a file anew, never through a link."""
        self.harmed.append(file)
        (self.folder / file).unlink()
        (self.folder / file).write_bytes(data)

    def mend(self) -> list[str]:
        """Link the harmed files again; give what stands here that never did."""
        found = [name for name in self.listed() if name not in self.files]
        for file in self.harmed:
            (self.folder / file).unlink(missing_ok=True)
            os.link(self.source / file, self.folder / file)
        self.harmed.clear()
        for name in reversed(found):
            path = self.folder / name
            path.rmdir() if path.is_dir() else path.unlink()
        return found


# ------------------------------------------------------------------ mutations


def places(data: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Every place below the top of nested data: what holds it, and its key there."""
    found = [] if found is None else found
    keys = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in keys:
        found.append((data, key))
        if isinstance(value, (dict, list)):
            places(value, found)
    return found


def a_value(random: Random) -> Any:
    """One of ``VALUES``, to be changed further."""
    return deepcopy(random.choice(VALUES))


def changed(random: Random, data: Any) -> Any:
    """Nested data with one to three places replaced, deleted, renamed or added."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = places(data)
        if not found:
            return a_value(random)
        holder, leaf = random.choice(found)
        kind = random.random()
        if kind < 0.65:
            holder[leaf] = a_value(random)
        elif kind < 0.8:
            del holder[leaf]
        elif isinstance(holder, dict):
            holder[random.choice((f"{leaf}x", "", "_class_name", "auto_map", "\ud800", "x" * 300))] = a_value(random)
        else:
            holder.append(a_value(random))
    return data


def torn(random: Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled or replaced altogether."""
    at = random.randrange(max(1, len(data)))
    head, tail = data[:at], data[at:]
    flipped = bytes([random.randrange(256)]) + tail[1:]
    odd = random.choice((b"\x00", b"\xff\xfe", b"\xe2\x80\xa8", b"\xc2\x85", b"9" * 5000))
    mark = random.choice((b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"-", b"\t"))
    whole = random.choice((b"", b"[]", b"null", b"{}", b"1", b'"x"', b"[" * 20000, b'{"a":' * 20000, b"\xff"))
    ends = (b"", flipped, tail[:40] + tail, tail[random.randrange(1, 20) :], odd + tail, mark + tail)
    return random.choice((whole, *(head + end for end in ends)))


def json_harm(random: Random, data: bytes) -> bytes:
    """JSON changed in its values, or in its letters."""
    if random.random() < 0.3:
        return torn(random, data)
    return json.dumps(changed(random, json.loads(data))).encode()


def lines_harm(random: Random, data: bytes) -> bytes:
    """JSON lines: one of them changed."""
    lines = data.splitlines()
    at = random.randrange(len(lines))
    lines[at] = json_harm(random, lines[at])
    return b"\n".join(lines)


def yaml_harm(random: Random, data: bytes) -> bytes:
    """Return a recipe changed in its values, or in its letters, or with a tag."""
    kind = random.random()
    if kind < 0.2:
        return torn(random, data)
    if kind < 0.3:
        tag = random.choice(
            (b"!!bool ", b"!!python/name:os.system ", b"!!float ", b"!!null ", b"!!int ", b"!!binary ", b"&a ", b"*a ")
        )
        parts = data.split(b": ")
        at = random.randrange(1, len(parts))
        return b": ".join(parts[:at]) + b": " + tag + b": ".join(parts[at:])
    if kind < 0.35:
        parts = data.split(b": ")
        at = random.randrange(1, len(parts))
        word = random.choice((b'"\\ud800"', b"1e400", b".nan", b"0x10", b"[" * 2000, b"-.inf", b"9" * 5000))
        return b": ".join(parts[:at]) + b": " + word + b" #" + b": ".join(parts[at:])
    return json.dumps(changed(random, json.loads(_as_json(data)))).encode()


@cache
def _as_json(data: bytes) -> str:
    return json.dumps(yaml.safe_load(data))


def header_harm(random: Random, data: bytes) -> bytes:
    """Return a safetensors file whose header says something else, or whose bytes are torn."""
    if random.random() < 0.4:
        return torn(random, data)
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(changed(random, json.loads(data[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
