"""Latents encoded elsewhere: the command that encodes, the data that reads, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from toy import context_in, part, tiny_bundle

from dit_compress.cli.encode import encode_data
from dit_compress.core.errors import UserError
from dit_compress.data.clips import split_of, write_captions
from dit_compress.data.shards import Shards
from dit_compress.data.source import data_folder, manifest_digest
from dit_compress.data.video import write_video
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.codec.causal import config_of
from dit_compress.model.spec import ComponentSpec
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load, make_part
from dit_compress_plugins.data_latents import LatentsOptions
from dit_compress_plugins.data_latents.data import Latents
from dit_compress_plugins.latent_video_vae.vae import VideoVAE

if TYPE_CHECKING:
    from pathlib import Path

SIZE = {"frames": 5, "size": [32, 32]}


def bundle_with_vae(path: Path, seed: int = 0) -> Bundle:
    """The tiny DiT with a VAE of 4x16x16 and 8 channels."""
    base = tiny_bundle(path.with_name(path.name + "-base"))
    torch.manual_seed(seed)
    vae = VideoVAE(ratio=(4, 16, 16), channels=8, widths=(8, 8, 8), num_blocks=1)
    with torch.no_grad():
        for tensor in (*vae.parameters(), *vae.buffers()):
            tensor.add_(torch.randn_like(tensor) * 0.02)
    spec = replace(base.spec, latent=ComponentSpec("latent", "video_vae", config_of(vae)), video=(5, 32, 32))
    return write_bundle(path, spec, {"latent": vae}, base=base, lineage=())


def videos_folder(folder: Path, count: int = 12) -> Path:
    """Grey clips, each of its own brightness."""
    folder.mkdir()
    for index in range(count):
        write_video(folder / f"{index}.mp4", np.full((6, 32, 32, 3), 20 * index, dtype=np.uint8), 8)
    write_captions(folder, [{"file": f"{index}.mp4", "caption": f"a red circle {index}"} for index in range(count)])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, a recipe, a bundle, and the clips' latents. Read it, don't change it."""
    folder = tmp_path_factory.mktemp("latents")
    videos_folder(folder / "clips")
    (folder / "recipe.yaml").write_text(
        f"name: encode\ndata: {{use: videos, path: {folder}/clips, frames: 5, size: [32, 32], test_fraction: 0.3}}\n"
        "steps:\n  - latent: {use: video_vae, ratio: 4x16x16}\n"
    )
    bundle_with_vae(folder / "bundle")
    said = encode(folder, folder / "encoded")
    assert said == f"12 samples in {folder / 'encoded'}"
    return folder


def encode(folder: Path, out: Path, **shared: int) -> str:
    return encode_data(load(folder / "recipe.yaml", installed()), folder / "bundle", out, **shared)


def latents(path: Path, **options: Any) -> Latents:
    return Latents(LatentsOptions(path=path, **{**SIZE, **options}))


def context(folder: Path, bundle: Bundle, data: dict[str, Any]) -> Any:
    """A step's context over some data, which is prepared."""
    given = replace(context_in(folder, input=bundle), parts={"data": make_part("data", data, installed())})
    given.video = (5, 32, 32)
    built = given.parts["data"].build()
    built.prepare(data_folder(given.cache, given.parts["data"]))
    return given


def test_latents_are_those_of_the_clips_encoded_here(made: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    common = {"frames": 5, "size": [32, 32], "test_fraction": 0.3}
    here = context(tmp_path / "here", bundle, {"use": "videos", "path": str(made / "clips"), **common})
    there = context(tmp_path / "there", bundle, {"use": "latents", "path": str(made / "encoded"), **common})
    for split in ("train", "test"):
        one, two = (each.latents(split, each.text()) for each in (here, there))
        assert 0 < len(one) == len(two) < 12
        order = [one.captions([i])[0] for i in range(len(one))]
        place = {two.captions([i])[0]: i for i in range(len(two))}
        torch.testing.assert_close(
            one.x0(range(len(one))), two.x0([place[caption] for caption in order]), atol=1e-5, rtol=1e-5
        )
        assert two.tokens([0])["embedding"].shape[0] == 1
    assert one.x0([0]).shape == (1, 8, 2, 2, 2)
    assert not torch.allclose(one.x0([0]), one.x0([1]), atol=1e-2)


def test_the_split_goes_by_the_hash_of_the_sample_not_by_its_place(made: Path, tmp_path: Path) -> None:
    data = latents(made / "encoded", test_fraction=0.5)
    found = {split: {clip.caption for clip in data.clips(tmp_path, split)} for split in ("train", "test")}
    everything = {f"a red circle {index}" for index in range(12)}
    assert found["test"] == {caption for caption in everything if split_of(caption, 0.5) == "test"}
    assert found["train"] == everything - found["test"]
    by_file = latents(made / "encoded", test_fraction=0.5, split_by="file")
    names = {clip.path.name for clip in by_file.clips(tmp_path, "test")}
    assert names == {f"{index}.mp4" for index in range(12) if split_of(f"{index}.mp4", 0.5) == "test"}


def test_the_manifest_names_every_sample(made: Path, tmp_path: Path) -> None:
    records = latents(made / "encoded").manifest(tmp_path)
    assert len(records) == 12
    assert set(records[0]) == {"file", "caption", "shard", "split"}
    others = [{}, {"test_fraction": 0.5}, {"test_fraction": 0.5, "split_by": "file"}]
    assert len({manifest_digest(latents(made / "encoded", **more), tmp_path) for more in others}) == 3


def test_latents_of_another_vae_are_refused(made: Path, tmp_path: Path) -> None:
    other = bundle_with_vae(tmp_path / "other", seed=1)
    given = context(tmp_path / "step", other, {"use": "latents", "path": str(made / "encoded"), **SIZE})
    with pytest.raises(UserError, match="encoded by another VAE than the bundle's"):
        given.latents("train", given.text())


def test_another_video_size_than_was_encoded_is_refused(made: Path, tmp_path: Path) -> None:
    data = {"use": "latents", "path": str(made / "encoded"), "frames": 9, "size": [32, 32]}
    given = context(tmp_path / "step", Bundle.open(made / "bundle"), data)
    given.video = (9, 32, 32)
    with pytest.raises(UserError, match=r"the latents are \[8, 2, 2, 2\], the recipe's video makes \[8, 3, 2, 2\]"):
        given.latents("train", given.text())


def test_steps_that_look_at_pixels_are_told(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this data holds latents, and the step looks at pixels"):
        latents(made / "encoded").clips(tmp_path, "train")[0].pixels()


def test_damage_is_found_before_training(made: Path, tmp_path: Path) -> None:
    encode(made, tmp_path / "copy")
    data = latents(tmp_path / "copy")
    data.prepare(tmp_path / "cache")
    data.prepare(tmp_path / "cache")
    path = tmp_path / "copy" / Shards(tmp_path / "copy").index["shards"][0]["file"]
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="the checksum differs"):
        data.prepare(tmp_path / "cache")


def test_machines_share_the_work(made: Path, tmp_path: Path) -> None:
    # There is one shard: the second machine has nothing to do, the first writes it and the index.
    assert encode(made, tmp_path / "out", rank=1, world=2).endswith("others are still missing")
    assert encode(made, tmp_path / "out", rank=0, world=2).startswith("12 samples")
    with pytest.raises(UserError, match="rank 2 of 2"):
        encode(made, tmp_path / "out", rank=2, world=2)


def test_a_folder_of_another_vae_is_not_added_to(made: Path, tmp_path: Path) -> None:
    other = bundle_with_vae(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="encoded by another VAE"):
        encode_data(load(made / "recipe.yaml", installed()), other.path, made / "encoded")


def test_shards_without_latents_are_no_data(made: Path, tmp_path: Path) -> None:
    given = context(
        tmp_path / "step",
        Bundle.open(made / "bundle"),
        {"use": "videos", "path": str(made / "clips"), "frames": 5, "size": [32, 32]},
    )
    given.latents("train", given.text())
    captions = next(given.cache.glob("captions-train-*"))
    with pytest.raises(UserError, match="the shards hold embedding, mask, no latent"):
        latents(captions).prepare(tmp_path / "cache")
    # The run's own cache of latents is such a folder too.
    cached = latents(next(given.cache.glob("latents-train-*")), test_fraction=0.0)
    cached.prepare(tmp_path / "cache")
    assert len(cached.clips(tmp_path, "train")) == len(given.clips("train"))


def test_data_that_changed_since_the_run_began_is_refused(tmp_path: Path) -> None:
    folder = videos_folder(tmp_path / "clips", 3)
    data = {"use": "videos", "path": str(folder), "frames": 5, "size": [32, 32], "test_fraction": 0.0}
    given = context(tmp_path / "step", bundle_with_vae(tmp_path / "bundle"), data)
    source = given.parts["data"].build()
    given.manifest_digest = manifest_digest(source, data_folder(given.cache, given.parts["data"]))
    assert len(given.clips("train")) == 3
    write_video(folder / "1.mp4", np.zeros((7, 32, 32, 3), dtype=np.uint8), 8)
    with pytest.raises(UserError, match="the data has changed since the run began"):
        given.clips("train")


def test_the_part_is_found_by_its_name() -> None:
    assert isinstance(part("data", "latents", path="x", frames=1, size=[8, 8]), Latents)
