"""The parts that make an export a package for an app: tokenizer, golden sample, checklist, their manifest entries.

- ``tokenizer/``: how captions become numbers, on the device or on the host of the text encoder.
- ``golden/sample.safetensors``: one whole video as the toolkit makes it: ``tokens/…``, ``text/…``,
  ``null/…`` (where guidance is on), ``noise``, ``latent/1`` … one per step (the last alone, where all steps are in
  one file), ``video``.
- ``rope.safetensors``: the tables by which the DiT rotates queries and keys, where the model tells them;
  those of a further size are named ``<size>/<table>``.
- ``CHECKLIST.md``: what to compare on the device, in order.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_compress.core.files import sha256_file
from dit_compress.core.randomness import Streams
from dit_compress.export.components import DIT_STEP, DIT_WALK, INPUT_NAMES
from dit_compress.export.sizes import MAIN, further, size_name
from dit_compress.model.flow import guided

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress.export.loaded import Loaded
    from dit_compress.export.sizes import Video
    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.step.context import Context

SAMPLE = "golden/sample.safetensors"
ROPE = "rope.safetensors"
SAMPLE_SEED = 0
SAMPLE_STREAM = "sample"
ALIKE_DB = 40.0
"""The PSNR that a player must reach against the golden sample."""


def on_device(encoder: Any) -> bool:
    """Tell whether a caption encoder can be in the package: it has weights of its own and can write its tokenizer."""
    return encoder.tokenizer_kind is not None and any(True for _ in encoder.parameters())


def describe_text(encoder: Any, folder: Path) -> dict[str, Any]:
    """Return the manifest's ``text``; write ``tokenizer/`` where the encoder can, for the device or for its host."""
    with torch.no_grad():
        embedded = encoder(encoder.tokenize([""]))
    shapes = {INPUT_NAMES.get(name, name): list(value.shape) for name, value in embedded.items()}
    found: dict[str, Any] = {"where": "device", "tensors": shapes}
    if not on_device(encoder):
        padding = "the embedding is 0 and the mask 0 at padding; the mask is 1 at real text"
        found |= {"where": "host", "encoder": type(encoder).__name__, "padding": padding}
    if encoder.tokenizer_kind is not None:
        place = folder / "tokenizer"
        place.mkdir()
        found["tokenizer"] = {"kind": encoder.tokenizer_kind, **encoder.save_tokenizer(place), "folder": "tokenizer"}
    return found


def describe_sizes(context: Context, videos: Sequence[Video] = ()) -> list[dict[str, Any]]:
    """Return the manifest's ``sizes``: the recipe's own (``main``), then those that the files take too."""
    own = context.video or context.input.spec.video
    sized = {MAIN: context, **{size_name(video): replace(context, video=video) for video in further(videos, own)}}
    found = []
    for name, each in sized.items():
        frames, height, width = each.video or each.input.spec.video or (0, 0, 0)
        latent = [1, *each.latent_shape()]
        found.append({"name": name, "frames": frames, "height": height, "width": width, "latent": latent})
    return found


def describe_rope(
    denoiser: Denoiser, sizes: Sequence[Mapping[str, Any]], folder: Path, component: str = DIT_STEP
) -> dict[str, Any]:
    """Return the manifest's ``rope``; write ``rope.safetensors`` where the model gives its tables."""
    from safetensors.torch import save_file

    tables: dict[str, Tensor] = {}
    for size in sizes:
        before = "" if size["name"] == MAIN else f"{size['name']}/"
        time, height, width = size["latent"][2:]
        found = denoiser.rope_tables((time, height, width))
        tables |= {f"{before}{name}": table.detach().cpu().float().contiguous() for name, table in found.items()}
    described: dict[str, Any] = {"where": f"constants of {component}", "inputs": []}
    if not tables:
        return described
    save_file(tables, folder / ROPE)
    tensors = [{"name": name, "shape": list(table.shape), "dtype": "float32"} for name, table in tables.items()]
    return {**described, "file": ROPE, "sha256": sha256_file(folder / ROPE), "tensors": tensors}


@torch.no_grad()
def golden_sample(context: Context, loaded: Loaded, caption: str) -> tuple[dict[str, Tensor], float]:
    """Return every stage of one video as the toolkit makes it, and its guidance."""
    text, flow = loaded.text, loaded.flow
    tokens = text.encoder.tokenize([caption])
    cond = text(tokens)
    x = Streams(SAMPLE_SEED, 0, [0]).normal(SAMPLE_STREAM, context.latent_shape())
    stages = {f"tokens/{name}": value.to(torch.int32) for name, value in tokens.items()}
    stages |= {f"text/{INPUT_NAMES.get(name, name)}": value for name, value in cond.items()}
    if flow.guidance != 1:
        stages |= {f"null/{INPUT_NAMES.get(name, name)}": value for name, value in cond.null.items()}
    stages["noise"] = x
    latents = _latents(loaded, x, cond)
    stages |= {f"latent/{step}": latent for step, latent in latents.items()}
    if loaded.codec.decodes:
        stages["video"] = loaded.codec.decode(latents[flow.num_steps])
    return stages, flow.guidance


def _latents(loaded: Loaded, x: Tensor, cond: Cond) -> dict[int, Tensor]:
    """Return the latent after each step, by the step's number; the last alone, where one file takes them all."""
    flow, sigmas, found = loaded.flow, loaded.flow.sigmas(), dict[int, Tensor]()
    if loaded.fixed is not None:
        return {flow.num_steps: loaded.fixed.sample(loaded.denoiser, x, cond, sigmas, flow.guidance)}
    for step, (now, then) in enumerate(pairwise(sigmas), 1):
        x = found[step] = x + (then - now) * guided(loaded.denoiser, x, torch.full((1,), now), cond, flow.guidance)
    return found


def write_phone_files(
    context: Context, loaded: Loaded, caption: str, folder: Path, videos: Sequence[Video] = ()
) -> Mapping[str, Any]:
    """Write tokenizer, golden sample, RoPE tables and checklist; return what the manifest says of them.

    videos: further sizes that the files take.
    """
    from safetensors.torch import save_file

    stages, guidance = golden_sample(context, loaded, caption)
    save_file({name: value.float().contiguous() if value.is_floating_point() else value.contiguous()
               for name, value in stages.items()}, folder / SAMPLE)  # fmt: skip
    text, sizes = describe_text(loaded.text.encoder, folder), describe_sizes(context, videos)
    (folder / "CHECKLIST.md").write_text(_CHECKLIST, "utf-8")
    return {
        "text": text,
        "sizes": sizes,
        "guidance": guidance,
        "noise": {
            "distribution": "standard normal, float32",
            "shape": list(stages["noise"].shape),
            "golden": "any generator will do; the golden noise is in the golden sample",
        },
        "rope": describe_rope(loaded.denoiser, sizes, folder, DIT_STEP if loaded.fixed is None else DIT_WALK),
        "sample": {
            "file": SAMPLE,
            "caption": caption,
            "seed": SAMPLE_SEED,
            "stream": SAMPLE_STREAM,
            "gate_db": ALIKE_DB,
        },
    }


_CHECKLIST = """\
# On the device

Each line can be checked by itself; the first that fails is where to look. `golden/<component>.safetensors` holds
tensors named `<set>/inputs/<name>` and `<set>/outputs/<name>`; `golden/sample.safetensors` one whole video, in stages.

1. The sizes and sha256 of all files equal those in `manifest.json`.
2. Every artifact loads in the order of `load_order`; peak memory stays under what the system grants the app.
3. Each artifact gives its golden outputs on every set: `typical`, `zero`, `tiny`, `huge`, `padded` … at the `gate_db`
   of its `proof`; the sets of a further size are named `<name of the size>-<set>`, for the function of that name.
   Save the outputs as `<component>/<set>/<output>` in one safetensors file, copy it back and run
   `dit-compress verify FOLDER --outputs FILE`: the manifest then says `production`.
4. The tokenizer gives `tokens/…` for `sample.caption`. With `text.where: host` the embeddings come from a server: they
   must equal `text/…`.
5. The sampling loop gives `latent/1` … from `noise`: `x += (next - now) * velocity` over neighbouring `sigmas`. Of a
   package with `dit_walk` there is no loop: one call gives the last of them.
6. The decoder, where there is one, gives `video` from the last latent; clip to [-1, 1].
7. Nothing is NaN or infinite for a caption of one word, for an empty one and for one that is too long.
8. Latency and energy are measured after a minute of continuous use, on battery, and written down with device and OS.
"""
