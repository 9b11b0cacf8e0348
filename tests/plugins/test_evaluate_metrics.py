"""Figures of generated clips against computations by other means, on tiny judges of real classes; floors; refusals."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.core.progress import quiet
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress_plugins.evaluate_metrics.distances import distance, frechet, jackknife
from dit_compress_plugins.evaluate_metrics.judges import CLIP, Backbone
from dit_compress_plugins.evaluate_metrics.lpips import LPIPS
from dit_compress_plugins.evaluate_metrics.step import MetricsEvaluation, ssim

transformers = pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class Pooled(nn.Module):
    """A backbone: means of a convolution's features, over two axes or three."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        kind = nn.Conv2d if axes == 2 else nn.Conv3d
        self.seen, self.axes = kind(3, 5, 3, stride=2), tuple(range(2, 2 + axes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.seen(x).relu().mean(self.axes)


def clip_folder(path: Path) -> None:
    vision = {**TOWER, "image_size": 8, "patch_size": 4}
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    ).save_pretrained(path)
    (path / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(WORDS)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt")).save_pretrained(path)
    sides = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    transformers.CLIPImageProcessor(**sides).save_pretrained(path)


def mae_folder(path: Path) -> None:
    config = transformers.VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, tubelet_size=2, **TOWER)
    transformers.VideoMAEModel(config).save_pretrained(path)
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.VideoMAEImageProcessor(**sides).save_pretrained(path)


def lpips_state() -> dict[str, torch.Tensor]:
    """AlexNet's layers with few channels, by the names of the package lpips."""
    places = {"1.0": (3, 4, 11), "2.3": (4, 6, 5), "3.6": (6, 8, 3), "4.8": (8, 6, 3), "5.10": (6, 6, 3)}
    state = {}
    for index, (place, (given, made, kernel)) in enumerate(places.items()):
        state[f"net.slice{place}.weight"] = torch.randn(made, given, kernel, kernel) / (kernel * given**0.5)
        state[f"net.slice{place}.bias"] = torch.randn(made) / 4
        state[f"lin{index}.model.1.weight"] = torch.rand(1, made, 1, 1)
    return state


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, a VideoMAE, LPIPS's weights and two ONNX files, tiny and random."""
    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    with quiet():
        clip_folder(folder / "clip")
        mae_folder(folder / "mae")
    save_file(lpips_state(), folder / "lpips.safetensors")
    for name, axes, size in (("images", 2, (3, 12, 12)), ("videos", 3, (3, 4, 12, 12))):
        network = Pooled(axes).eval()
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        torch.onnx.export(network, (torch.zeros(2, *size),), folder / f"{name}.onnx", dynamo=False,
                          input_names=["x"], dynamic_axes={"x": {0: "N"}})  # fmt: skip
    return folder


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# ------------------------------------------------------------------ each judge


def by_formula(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians, in numpy and scipy."""
    (m, c), (n, d) = ((rows.mean(0), np.cov(rows, rowvar=False)) for rows in (ours, theirs))
    return float(((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real))


def test_distances_are_the_formulas_and_their_errors_those_of_many_draws() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    draw = lambda: torch.from_numpy(rng.normal(size=(40, 3, 6)) @ mixing + 0.3)  # noqa: E731
    ours, theirs = draw(), draw() * 1.5
    wanted = by_formula(*(each.flatten(0, 1).numpy() for each in (ours, theirs)))
    assert frechet(ours, theirs) == pytest.approx(wanted, rel=1e-9)
    assert frechet(ours, ours) == pytest.approx(0, abs=1e-8)
    spread = np.std([frechet(draw(), draw() * 1.5) for _ in range(40)], ddof=1)
    assert jackknife(ours, theirs) == pytest.approx(spread, rel=0.6)
    assert math.isnan(jackknife(ours[:3], theirs[:3]))
    sets = {"made": list(ours), "real": list(theirs), "noise": list(ours * 9), "other": list(draw()[:10] * 1.5)}
    found = distance("fid", sets)
    assert found["fid"] == frechet(ours, theirs)
    assert found["fid_floor"] == frechet(torch.stack(sets["other"]), theirs[:10])
    assert found["fid_noise"] > 10 * found["fid"]


def test_clip_score_is_the_cosine_by_hand(judges: Path) -> None:
    clip, video = CLIP(str(judges / "clip")), pixels(2, 20, 12, 3)
    model, words = (
        transformers.CLIPModel.from_pretrained(judges / "clip"),
        transformers.CLIPTokenizer.from_pretrained(judges / "clip"),
    )
    see = (
        transformers.CLIPImageProcessorPil.from_pretrained(judges / "clip")
        if hasattr(transformers, "CLIPImageProcessorPil")
        else transformers.CLIPImageProcessor.from_pretrained(judges / "clip")
    )
    scores = {}
    with torch.no_grad():
        for caption in ("a red ball", "a very long caption of two cats"):
            text = model.text_model(**words(caption, truncation=True, max_length=12, return_tensors="pt"))
            read = model.text_projection(text.pooler_output)
            seen = model.visual_projection(model.vision_model(**see(list(video), return_tensors="pt")).pooler_output)
            scores[caption] = 100 * float(torch.cosine_similarity(seen, read).mean())
            assert clip(video, caption) == pytest.approx(max(scores[caption], 0), abs=1e-3)
    assert len(set(scores.values())) == 2


def test_lpips_is_the_weighted_distance_of_unit_features(judges: Path) -> None:
    """Of the same weights in torch's own layers, AlexNet's strides and pools."""
    state = load_file(judges / "lpips.safetensors")

    def layer(name: str, **more: int) -> list[nn.Module]:
        made, given, kernel, _ = state[f"{name}.weight"].shape
        return [nn.Conv2d(given, made, kernel, **more), nn.ReLU()]

    slices = [nn.Sequential(*layer("net.slice1.0", stride=4, padding=2)),
              nn.Sequential(nn.MaxPool2d(3, 2), *layer("net.slice2.3", padding=2)),
              nn.Sequential(nn.MaxPool2d(3, 2), *layer("net.slice3.6", padding=1)),
              nn.Sequential(*layer("net.slice4.8", padding=1)), nn.Sequential(*layer("net.slice5.10", padding=1))]  # fmt: skip
    for part_, name in zip(slices, ("1.0", "2.3", "3.6", "4.8", "5.10"), strict=True):
        conv = next(module for module in part_ if isinstance(module, nn.Conv2d))
        conv.weight.data, conv.bias.data = state[f"net.slice{name}.weight"], state[f"net.slice{name}.bias"]
    torch.manual_seed(1)
    x, y = torch.rand(2, 2, 3, 40, 36) * 2 - 1
    wanted = torch.zeros(())
    scaled = [
        (each - torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        for each in (x, y)
    ]
    with torch.no_grad():
        for place, part_ in enumerate(slices):
            scaled = [part_(each) for each in scaled]
            a, b = (nn.functional.normalize(each, dim=1) for each in scaled)
            wanted += (state[f"lin{place}.model.1.weight"] * (a - b) ** 2).sum(1).mean()
    assert LPIPS(judges / "lpips.safetensors")(x, y) == pytest.approx(float(wanted), rel=1e-5)
    assert LPIPS(judges / "lpips.safetensors")(x, x) == 0


def test_backbones_see_frames_and_videos(judges: Path) -> None:
    """ONNX: what torch computes of scaled frames, evenly taken; folders: what the class computes of its own processor's."""
    video = pixels(8, 12, 12, 3)
    x = torch.from_numpy(video).permute(3, 0, 1, 2).float() / 127.5 - 1
    images, videos = Pooled(2), Pooled(3)
    images.load_state_dict(load_file(judges / "images.safetensors"))
    videos.load_state_dict(load_file(judges / "videos.safetensors"))
    with torch.no_grad():
        seen = Backbone(str(judges / "images.onnx"), videos=False, frames=2)(video)
        torch.testing.assert_close(seen, images(x[:, [2, 6]].transpose(0, 1)), atol=1e-5, rtol=1e-5)
        seen = Backbone(str(judges / "videos.onnx"), videos=True)(video)
        torch.testing.assert_close(seen, videos(x[None, :, [1, 3, 5, 7]]), atol=1e-5, rtol=1e-5)
        assert Backbone(str(judges / "images.onnx"), videos=False)(pixels(8, 30, 20, 3)).shape == (1, 5)
        flat = np.full((9, 20, 24, 3), 51, np.uint8)
        stated = json.loads((judges / "mae" / "preprocessor_config.json").read_text())
        mean, std = (torch.tensor(stated[name])[None, None, :, None, None] for name in ("image_mean", "image_std"))
        model = transformers.VideoMAEModel.from_pretrained(judges / "mae")
        wanted = model(((0.2 - mean) / std).expand(1, 4, 3, 16, 16)).last_hidden_state.mean(1)
        torch.testing.assert_close(Backbone(str(judges / "mae"), videos=True)(flat), wanted, atol=1e-5, rtol=1e-4)
        assert Backbone(str(judges / "clip"), videos=False, frames=3)(video).shape == (3, 8)


# ------------------------------------------------------------------ the step


@pytest.fixture(scope="module")
def measured(judges: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """A step on eight held-out clips, one denoising step each, and what it compared."""
    folder = tmp_path_factory.mktemp("step")
    named = {"clip": "clip", "lpips": "lpips.safetensors", "fid": "images.onnx", "fvd": "mae"}
    step = part("evaluate", "metrics", **{name: str(judges / file) for name, file in named.items()},
                num_clips=8, frames=2, num_steps=1, batch=3)  # fmt: skip
    bundle = tiny_bundle(folder / "base")
    assert step.plan(bundle.spec) == bundle.spec
    context = tiny_context(folder / "step", input=bundle)
    seen = list(step.videos(context, context.clips("test")[:8]))
    step.videos = lambda *_: iter(seen)
    return seen, step.run(context).metrics


def test_the_step_compares_what_it_drew_with_the_clips(measured: Any, judges: Path) -> None:
    seen, metrics = measured
    assert {videos["made"].shape for videos in seen} == {(9, 32, 32, 3)}
    assert len({videos["made"].tobytes() for videos in seen}) == 8
    frames = [
        [torch.from_numpy(videos[which]).permute(0, 3, 1, 2).double() for videos in seen] for which in ("made", "real")
    ]
    each = [float(structural_similarity_index_measure(a, b, data_range=255.0)) for a, b in zip(*frames, strict=True)]
    assert metrics["ssim"] == pytest.approx(np.mean(each), abs=1e-4)
    assert metrics["ssim_error"] == pytest.approx(np.std(each, ddof=1) / 8**0.5, abs=1e-4)
    backbone = Backbone(str(judges / "images.onnx"), videos=False, frames=2)
    sets = {
        which: np.concatenate([backbone(videos[which]) for videos in seen])
        for which in ("made", "real", "other", "noise")
    }
    for name, which in (("fid", "made"), ("fid_floor", "other"), ("fid_noise", "noise")):
        assert metrics[name] == pytest.approx(
            by_formula(sets[which].astype(float), sets["real"].astype(float)), rel=1e-3
        ), name
    assert metrics["ssim_noise"] < metrics["ssim_unrelated"]
    assert metrics["fid_error"] > 0
    assert set(metrics) >= {"fvd", "fvd_error", "fvd_floor", "fvd_noise", "lpips", "lpips_error", "lpips_noise", "lpips_unrelated",
                            "clip_score", "clip_score_error", "clip_score_real", "clip_score_other_caption", "clip_score_noise"}  # fmt: skip
    assert all(math.isfinite(value) for value in metrics.values())
    assert (metrics["videos"], metrics["frames"]) == (8, 2)


def test_against_pairs_videos_of_equal_noise(tmp_path: Path) -> None:
    """A model against itself is equal to the bit; FID is then still to the clips."""
    bundle = tiny_bundle(tmp_path / "base")
    context = tiny_context(tmp_path / "step", input=bundle, against=bundle)
    metrics = part("evaluate", "metrics", num_clips=3, num_steps=1).run(context).metrics
    assert (metrics["ssim"], metrics["ssim_error"]) == (1, 0)
    assert metrics["ssim_noise"] < metrics["ssim_unrelated"] < 1
    assert not {"fid", "clip_score", "lpips"} & set(metrics)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("judge", "name", "said"),
    [("fid", "inception.pt", "TorchScript and checkpoints hold pickled code, which is not read.* an ONNX file"),
     ("fvd", "i3d.pth", "hold pickled code"), ("lpips", "alex.pth", "hold pickled code"),
     ("clip", "clip.bin", "a file where a folder is wanted"), ("fid", "nowhere", "there is no such file or folder")],
)  # fmt: skip
def test_pickles_and_what_is_not_there_are_refused_at_plan(tmp_path: Path, judge: str, name: str, said: str) -> None:
    if name != "nowhere":
        (tmp_path / name).touch()
    from dit_compress_plugins.evaluate_metrics import MetricsOptions

    step = MetricsEvaluation(MetricsOptions(**{judge: str(tmp_path / name)}))
    with pytest.raises(UserError, match=said) as caught:
        step.plan(tiny_bundle(tmp_path / "base").spec)
    assert name in str(caught.value)


def test_frames_that_are_too_small_are_refused_at_plan(judges: Path, tmp_path: Path) -> None:
    spec = replace(tiny_bundle(tmp_path / "base").spec, video=(9, 16, 32))
    with pytest.raises(UserError, match="frames of 16x32 pixels: LPIPS needs 32 a side"):
        part("evaluate", "metrics", lpips=str(judges / "lpips.safetensors")).plan(spec)


def test_a_judge_of_another_kind_is_refused(judges: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no")
    shutil.copytree(judges / "mae", tmp_path / "mae")
    (tmp_path / "mae" / "model.safetensors").rename(tmp_path / "mae" / "pytorch_model.bin")
    refused = {
        "no ONNX that runs here": lambda: Backbone(str(tmp_path / "bad.onnx"), videos=False),
        r"takes .*Export it with one input, \[N,3,F,Y,X\]": lambda: Backbone(str(judges / "images.onnx"), videos=True),
        "CLIPModel sees no videos": lambda: Backbone(str(judges / "clip"), videos=True),
        "the model can't be read.* Export the whole": lambda: Backbone(str(tmp_path / "mae"), videos=True),
        "compares no images with texts|can't be read": lambda: CLIP(str(judges / "mae")),
        "the weights lack lin0.model.1.weight": lambda: LPIPS(judges / "images.safetensors"),
    }
    for said, make in refused.items():
        with pytest.raises(UserError, match=said):
            make()


def test_ssim_is_one_of_equal_frames() -> None:
    frames = torch.rand(2, 3, 16, 16) * 2 - 1
    assert ssim(frames, frames) == pytest.approx(1)
