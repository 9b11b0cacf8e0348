"""``first_frame: true``: the latents of each clip's first frame reach every role of a training, and sampling."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from toy import part

from dit_compress.cli.encode import encode_data
from dit_compress.core.errors import UserError
from dit_compress.data.samples import first_frames, to_video
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.denoiser import Cond
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.model.twins import write_twin
from dit_compress.plugin.options import Part, Plugin
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load
from dit_compress.run.fit import check_needs
from dit_compress.run.plan import plan
from dit_compress.step.sampling import Generator
from dit_compress.testing import steps
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import DrawnOptions, tiny_context
from dit_compress.train.loop import draw_batch
from dit_compress_plugins.latent_diffusers_vae.codec import DiffusersCodec
from dit_compress_plugins.model_diffusers.adapter import DiffusersDenoiser, DiffusersModel
from dit_compress_plugins.text_transformers.sight import Sight

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.step.context import Context

WAN: dict[str, Any] = {
    "patch_size": [1, 2, 2], "num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 20, "out_channels": 8,
    "text_dim": 16, "freq_dim": 32, "ffn_dim": 64, "num_layers": 3, "rope_max_seq_len": 32,
}  # fmt: skip
"""As Wan's image-to-video models are: 8 latent channels, a mask of 4 and 8 of the image."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A whole bundle whose denoiser can't be called without a first frame."""
    folder = tmp_path_factory.mktemp("first")
    base = steps.tiny_bundle(folder / "base")
    module = tiny_denoiser("wan", config=WAN).module
    denoiser = ComponentSpec("model", "diffusers", DiffusersModel.config_of(module))
    spec = replace(base.spec, denoiser=denoiser, flow=Flow(num_steps=2))
    return write_bundle(folder / "bundle", spec, {"denoiser": module}, base=base, lineage=())


def context_of(folder: Path, *, first_frame: bool = True, **bundles: Bundle) -> Context:
    options = DrawnOptions(num_clips=4, first_frame=first_frame)
    plugin = Plugin(name="drawn", options=DrawnOptions, load="dit_compress.testing.steps:DrawnClips")
    return tiny_context(folder, data=Part("data", plugin, options), **bundles)


def test_a_batch_holds_the_latents_of_its_first_frames(bundle: Bundle, tmp_path: Path) -> None:
    context = context_of(tmp_path, input=bundle)
    text = context.text()
    batch = draw_batch(context.latents("train", text.requires_grad_(requires_grad=False)), 2, 0, 0)
    clips = [context.clips("train")[place] for place in batch.sample]
    video = to_video(torch.from_numpy(np.stack([clip.pixels() for clip in clips])))
    video[:, :, 1:] = 0
    with torch.no_grad():
        torch.testing.assert_close(batch.tokens["first_padded"], bundle.codec().encode(video))
    cond = text(batch.tokens)
    assert cond.keys() == {"embedding", "mask", "first_padded"}
    bare = cond.drop(torch.tensor([True, True]))
    assert torch.equal(bare["first_padded"], cond["first_padded"])
    assert not torch.equal(bare["embedding"], cond["embedding"])
    without = context_of(tmp_path / "other", first_frame=False, input=bundle).latents("train", text)
    assert without.tokens([0]).keys() == {"embedding", "mask"}


OBJECTIVES: dict[str, dict[str, Any]] = {
    "flow": {},
    "scaled": {},
    "dmd": {"critic_warmup": 1},
    "adversarial": {"teacher_samples": 2, "teacher_steps": 1, "discriminator_warmup": 1, "discriminator": {"use": "dit_block"}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_role_is_given_it(
    name: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module refuses to be called without, so that a role which is not given it would end the training."""
    context = context_of(tmp_path, input=bundle, teacher=bundle)
    text, calls = context.text().requires_grad_(requires_grad=False), []
    whole = DiffusersDenoiser.call

    def noted(self: Any, latent: torch.Tensor, sigma: torch.Tensor, cond: Cond) -> Any:
        calls.append((id(self.module), cond))
        return whole(self, latent, sigma, cond)

    student, teacher = bundle.denoiser(), bundle.denoiser()
    step = part("distill", name, **{"batch": 2, "steps": 2, **OBJECTIVES[name]})
    made = step.objective(context, student, teacher, text)
    samples = context.latents("train", text)
    batch = draw_batch(samples, 2, 0, 0)
    monkeypatch.setattr(DiffusersDenoiser, "call", noted)
    for phase in made.phases:
        assert torch.isfinite(made.loss(phase, batch)["loss"])
    known = samples.tokens(range(4))["first_padded"]
    for _, cond in calls:
        assert all(any(torch.allclose(row, each) for each in known) for row in cond["first_padded"])
    assert len({module for module, _ in calls}) >= (1 if name == "flow" else 2)


def test_who_is_given_first_frames_trains_on_no_images(tmp_path: Path) -> None:
    head = "data: {use: shapes, num_clips: 4, num_test: 2, frames: 9, size: [64, 64], first_frame: true}\n"
    head += "model: {use: video_dit, preset: tiny, channels: 32, text_width: 32}\ntext: {use: words, width: 32}\nsteps:\n"
    path = tmp_path / "r.yaml"
    for first, images, refused in (("true", 0.5, True), ("true", 0, False), ("false", 0.5, False)):
        steps = f"  - distill: {{use: flow, images: {images}}}\n"
        path.write_text(head.replace("true", first) + "  - latent: {use: video_vae, channels: 32}\n" + steps)
        if not refused:
            check_needs(load(path, installed()))
            continue
        said = r"r.yaml:6: 'images' trains on the first frames of clips, and 'first_frame' of 'data' gives them away. Take"
        with pytest.raises(UserError, match=said):
            check_needs(load(path, installed()))


def test_a_video_is_sampled_from_its_first_frame(bundle: Bundle, tmp_path: Path) -> None:
    context = context_of(tmp_path, input=bundle)
    generator = Generator(bundle, context.latent_shape())
    frames = first_frames(context.clips("train")[:2])
    made = generator(["a square", "a disc"], seed=0, index=[0, 1], first_BCYX=frames)
    other = generator(["a square", "a disc"], seed=0, index=[0, 1], first_BCYX=-frames)
    assert made.shape == (2, 9, 32, 32, 3)
    assert not np.array_equal(made, other)
    with pytest.raises(UserError, match="WanTransformer3DModel takes the latents of a first frame .*first_frame: true"):
        generator(["a square"], seed=0, index=[0])


def test_a_model_that_takes_none_refuses_the_data(tmp_path: Path) -> None:
    plain = steps.tiny_bundle(tmp_path / "plain")
    context = context_of(tmp_path / "step", input=plain)
    with pytest.raises(UserError, match="takes no first frame. Take 'first_frame' out of 'data'"):
        context.latents("train", context.text())
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: {use: shapes, num_clips: 4, num_test: 2, frames: 9, size: [64, 64], first_frame: true}\n"
        "model: {use: video_dit, preset: tiny, channels: 32, text_width: 32}\n"
        "text: {use: words, width: 32, layers: 1, heads: 2}\n"
        "steps:\n  - latent: {use: video_vae, channels: 32, steps: 1}\n  - distill: {use: flow, steps: 1}\n"
    )
    with pytest.raises(UserError, match="takes no first frame"):
        plan(load(recipe, installed()), deep=False)


def test_encoded_elsewhere_they_lie_in_the_shards(bundle: Bundle, tmp_path: Path) -> None:
    recipe, out = tmp_path / "r.yaml", tmp_path / "shards"
    for said in (", first_frame: true", ""):
        recipe.write_text(
            f"data: {{use: shapes, num_clips: 3, num_test: 1, frames: 9, size: [64, 64]{said}}}\n"
            f"steps: [{{evaluate: {{use: reconstruction}}, input: {bundle.path}}}]\n"
        )
        encode_data(load(recipe, installed()), bundle.path, out if said else tmp_path / "plain")
    source = part("data", "latents", path=str(out), frames=9, size=[64, 64], first_frame=True, test_fraction=0)
    firsts, latents = source.firsts(out, "train", "first_padded"), source.encoded(out, "train", bundle.latents)
    assert firsts[[0, 1, 2, 3]].shape == latents[[0, 1, 2, 3]].shape == (4, 8, 2, 4, 4)
    assert not torch.equal(firsts[[0]], latents[[0]])
    assert torch.equal(latents[[0]], part(
        "data", "latents", path=str(tmp_path / "plain"), frames=9, size=[64, 64], test_fraction=0
    ).encoded(out, "train", bundle.latents)[[0]])  # fmt: skip
    plain = part("data", "latents", path=str(tmp_path / "plain"), frames=9, size=[64, 64], first_frame=True)
    with pytest.raises(UserError, match="hold latent, and the model takes 'first_padded'.*Encode the clips again"):
        plain.firsts(out, "train", "first_padded")


def test_the_image_encoder_of_the_pipeline_sees_the_first_frames(tmp_path: Path, monkeypatch: Any) -> None:
    """As Wan 2.1 I2V needs it: encoded once, by the pipeline's own ``encode_image`` to the bit, and then freed."""
    twin = tmp_path / "twin"
    write_twin("Wan2.1-I2V-14B", twin)
    model = part("model", "diffusers", path=str(twin)).create()
    text = part("text", "transformers", path=str(twin))
    encoder, codec = text.create(), DiffusersCodec.from_pretrained(twin / "vae")
    spec = Spec(
        denoiser=ComponentSpec("model", "diffusers", DiffusersModel.config_of(model)),
        latent=ComponentSpec("latent", "diffusers_vae", codec.config),
        text=ComponentSpec("text", "transformers", text.config_of(encoder)), flow=Flow(num_steps=2),
    )  # fmt: skip
    modules = {"denoiser": model, "latent": codec, "text": encoder}
    bundle = write_bundle(tmp_path / "bundle", spec, modules, base=None, lineage=())
    context = context_of(tmp_path, input=bundle)
    captions = context.text()
    samples = context.latents("train", captions)
    tokens = samples.tokens([2, 0])
    assert not {"pipeline"} & (vars(captions.encoder.sight).keys() | vars(captions.encoder.side).keys())
    stock = diffusers.WanImageToVideoPipeline.from_pretrained(twin, transformer=None, vae=None, text_encoder=None)
    clips = context.clips("train")
    with torch.no_grad():
        for place, row in zip([2, 0], tokens["image"], strict=True):
            wanted = stock.encode_image(Image.fromarray(clips[place].pixels()[0]), torch.device("cpu"))
            assert torch.equal(row, wanted[0])
    bare = captions(tokens).drop(torch.tensor([True, True]))
    assert torch.equal(bare["image"], tokens["image"]), "the picture stays where the words go"
    made = part("distill", "flow", batch=2, steps=1).objective(context, bundle.denoiser(), bundle.denoiser(), captions)
    assert torch.isfinite(made.loss(made.phases[0], draw_batch(samples, 2, 0, 0))["loss"])
    generator, frames = Generator(bundle, context.latent_shape()), first_frames(clips[:1])
    video = generator(["a square"], seed=0, index=[0], first_BCYX=frames)
    monkeypatch.setattr(Sight, "encode", lambda *_: -10 * tokens["image"][1:])
    assert not np.array_equal(video, generator(["a square"], seed=0, index=[0], first_BCYX=frames))
    again = context_of(tmp_path, input=bundle).latents("train", context.text())
    assert torch.equal(again.tokens([2, 0])["image"], tokens["image"]), "of the shards"
    shutil.rmtree(twin / "image_encoder")
    with pytest.raises(UserError, match="image_encoder: no image encoder here"):
        text.create()
    index = json.loads((twin / "model_index.json").read_text())
    (twin / "model_index.json").write_text(json.dumps({**index, "image_encoder": [None, None]}))
    blind = context_of(tmp_path / "blind", input=bundle)
    with pytest.raises(UserError, match=r"takes the embeddings of an image \('image'\), and TransformersEncoder gives none"):
        blind.latents("train", blind.text())


def test_keys_are_what_they_were(tmp_path: Path) -> None:
    """An option that is not used counts in no key."""
    assert "first_frame" not in context_of(tmp_path, first_frame=False).parts["data"].as_data(contents=True)
    assert context_of(tmp_path).parts["data"].as_data(contents=True)["first_frame"] is True
