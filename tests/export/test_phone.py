"""The phone package: its manifest follows the schema, and NumPy plays from the folder what the toolkit samples."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import jsonschema
import numpy as np
import pytest
import torch
from flips import silent_flips
from safetensors.numpy import load_file, save_file
from test_verify import command
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.core.files import sealed
from dit_compress.data.video import write_video
from dit_compress.export.folder import read_manifest
from dit_compress.export.manifest import manifest_schema
from dit_compress.export.player import Player, need_frames, to_pixels, tokenize
from dit_compress.export.step import CAPTIONS, export
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin.registry import use
from dit_compress.step.context import Context
from dit_compress.step.sampling import Generator
from dit_compress_plugins.export_coreml import CoreMLOptions
from dit_compress_plugins.export_coreml.exporter import CoreMLExport
from dit_compress_plugins.export_onnx import ONNXOptions
from dit_compress_plugins.export_onnx.exporter import ONNXExport
from dit_compress_plugins.latent_diffusers_vae.codec import DiffusersCodec

pytestmark = pytest.mark.slow(25)

pytest.importorskip("onnxruntime")
pytest.importorskip("coremltools")
torch.set_num_threads(1)

SCHEMA = manifest_schema()
VIDEO = (9, 64, 64)


def bundle_in(
    path: Path, guidance: float, vae: Any = None, video: tuple[int, int, int] = VIDEO, text: Any = None
) -> Any:
    """A whole bundle of random weights: text encoder, DiT, VAE at 8×32×32, or a wrapped one; or another text encoder."""
    torch.manual_seed(0)
    channels = vae.channels if vae else 16
    made = {
        "denoiser": (
            "model",
            "video_dit",
            {"layers": 1, "heads": 4, "head_width": 16, "channels": channels, "text_width": 32},
        ),
        "text": ("text", "words", {"width": 32, "layers": 1, "heads": 2, "length": 16}),
    }
    specs, modules = {}, {}
    for name, (kind, plugin, options) in made.items():
        maker = part(kind, plugin, **options)
        modules[name] = maker.create()
        specs[name] = ComponentSpec(kind, plugin, maker.config_of(modules[name]))
    if text:
        modules["text"] = text.create()
        specs["text"] = ComponentSpec("text", type(text).__name__.lower(), text.config_of(modules["text"]))
    from dit_compress_plugins.latent_video_vae.vae import VideoVAE

    if vae:
        modules["latent"], specs["latent"] = vae, ComponentSpec("latent", "diffusers_vae", vae.config)
    else:
        modules["latent"] = VideoVAE(channels=16, widths=(8, 12, 16, 16), num_blocks=1)
        modules["latent"].set_statistics([0.1] * 16, [1.5] * 16)
        config = {key: value for key, value in modules["latent"].config.items() if not key.startswith("_")}
        specs["latent"] = ComponentSpec("latent", "video_vae", json.loads(json.dumps(config)))
    with torch.no_grad():
        for module in modules.values():
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor.add_(torch.randn_like(tensor) * 0.03)
    flow = Flow(num_steps=4, guidance=guidance)
    return write_bundle(path, Spec(video=video, flow=flow, **specs), modules, base=None, lineage=())


def exported(folder: Path, exporter: Any, plugin: str, guidance: float = 1.0, bundle: Any = None) -> tuple[Any, Path]:
    bundle = bundle or bundle_in(folder / "bundle", guidance)
    step = {"plugin": plugin, "kind": "export", "options": {"use": plugin, **exporter.options.model_dump(mode="json")}}
    context = Context(
        name="files", seed=0, folder=folder, cache=folder, bundles={"input": bundle}, names={}, parts={},
        record={"parts": {"step": step}}, video=bundle.spec.video,
    )  # fmt: skip
    result = export(exporter, context)
    below = [
        (row["component"], row["arithmetic"], row["input_set"], row["psnr_db"])
        for row in result.metrics["rows"]
        if row["verdict"] != "passed"
    ]
    assert result.metrics["passed"], below
    return bundle, folder / "files"


READ: list[str] = []
"""Networks that were read from disk while ``onnx`` was exported."""


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Four steps without guidance, float32."""
    use()
    load = Bundle._load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "_load", lambda bundle, name, spec: (READ.append(name), load(bundle, name, spec))[1])
        return exported(tmp_path_factory.mktemp("onnx"), ONNXExport(ONNXOptions()), "onnx")


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Four steps with guidance, Core ML in half precision, executed by the interpreter."""
    use()
    return exported(tmp_path_factory.mktemp("coreml"), CoreMLExport(CoreMLOptions()), "coreml", guidance=3.0)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("made", ["onnx", "guided"])
def test_the_manifest_follows_its_schema(made: str, request: pytest.FixtureRequest) -> None:
    _, folder = request.getfixturevalue(made)
    data = manifest_of(folder)
    jsonschema.validate(data, SCHEMA)
    assert data["load_order"] == ["text_encoder", "dit_step", "vae_decoder"]
    assert data["sigmas"] == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert (data["frame_rule"], data["video"]["fps"], data["guidance"]) == (
        {"lead": 1, "step": 8},
        8.0,
        1.0 if made == "onnx" else 3.0,
    )
    assert data["noise"]["shape"] == [1, 16, 2, 2, 2]
    assert data["latent"]["std"] == pytest.approx([1.5] * 16)
    assert data["text"]["tokenizer"]["length"] == 16
    assert {file["path"] for file in data["files"]} == {
        "CHECKLIST.md", "golden/dit_step.safetensors", "golden/sample.safetensors", "golden/text_encoder.safetensors",
        "golden/vae_decoder.safetensors", "rope.safetensors", "tokenizer/words.json",
    }  # fmt: skip


def test_each_component_is_proven_on_at_least_four_sets(onnx: tuple[Any, Path]) -> None:
    sets = {
        entry["component"]: [row["input_set"] for row in entry["proof"]] for entry in manifest_of(onnx[1])["artifacts"]
    }
    assert sets == {
        "text_encoder": ["typical", "short", "empty", "long"],
        "dit_step": ["typical", "zero", "tiny", "huge", "padded"],
        "vae_decoder": ["typical", "zero", "tiny", "huge"],
    }


def test_the_rope_tables_are_those_of_the_formula(onnx: tuple[Any, Path]) -> None:
    """16 of a head are 8 pairs: 4 along time, 2 along height, 2 along width; angle = place · theta^(-i/pairs)."""
    bundle, folder = onnx
    rope = manifest_of(folder)["rope"]
    assert rope["sha256"] == hashlib.sha256((folder / rope["file"]).read_bytes()).hexdigest()
    found = load_file(folder / rope["file"])
    assert [(each["name"], each["shape"], each["dtype"]) for each in rope["tensors"]] == [
        ("cos", [8, 8], "float32"), ("sin", [8, 8], "float32"),
    ]  # fmt: skip
    theta = bundle.denoiser().module.rope_theta
    assert theta == 10.0
    for token, (t, h, w) in enumerate(itertools.product(range(2), range(2), range(2))):
        angles = [t * theta ** (-i / 4) for i in range(4)]
        angles += [place * theta ** (-i / 2) for place in (h, w) for i in range(2)]
        np.testing.assert_allclose(found["cos"][token], np.cos(angles), atol=1e-6)
        np.testing.assert_allclose(found["sin"][token], np.sin(angles), atol=1e-6)


@pytest.mark.parametrize(("made", "least"), [("onnx", 90.0), ("guided", 40.0)])
def test_numpy_plays_what_the_toolkit_samples(made: str, least: float, request: pytest.FixtureRequest) -> None:
    """Another caption and seed than the golden ones, against the toolkit's own generator."""
    bundle, folder = request.getfixturevalue(made)
    generator = Generator(bundle, (16, 2, 2, 2))
    wanted = generator(["two small circles"], seed=7, index=[0])[0]
    found = Player(folder, use()).video("two small circles", 7)
    assert found.shape == wanted.shape == (9, 64, 64, 3)
    error = np.square(found.astype(float) - wanted.astype(float)).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > least
    assert wanted.std() > 5, "a flat picture would prove nothing"


@pytest.mark.parametrize("made", ["onnx", "guided"])
def test_every_stage_of_the_golden_sample(made: str, request: pytest.FixtureRequest) -> None:
    _, folder = request.getfixturevalue(made)
    stages = Player(folder, use()).golden()
    assert list(stages) == [
        "noise", "text/text", "text/text_mask", "latent/1", "latent/2", "latent/3", "latent/4", "video",
    ]  # fmt: skip
    assert stages["noise"] == 300.0
    assert min(stages.values()) > 40


def test_the_tokenizer_is_the_encoders(onnx: tuple[Any, Path]) -> None:
    bundle, folder = onnx
    encoder, tokenizer = bundle.text(), manifest_of(folder)["text"]["tokenizer"]
    for caption in [*CAPTIONS.values(), "Two, UNKNOWN zebras!", "___", "é1 red"]:
        wanted = encoder.tokenize([caption])["words"].numpy()
        np.testing.assert_array_equal(tokenize(caption, folder, tokenizer)["words"], wanted)


def test_the_command_makes_a_video(
    onnx: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "v.mp4"
    status, printed = command(capsys, monkeypatch, "play", onnx[1], "two small circles", "--out", out, "--seed", "7")
    assert (status, printed.strip()) == (0, str(out))
    write_video(tmp_path / "wanted.mp4", Player(onnx[1], use()).video("two small circles", 7), 8.0)
    assert out.read_bytes() == (tmp_path / "wanted.mp4").read_bytes()
    status, printed = command(capsys, monkeypatch, "play", onnx[1], "--golden")
    assert status == 0
    assert "video: " in printed


def test_embeddings_from_a_host(onnx: tuple[Any, Path], tmp_path: Path) -> None:
    """What an app does where text.where is host."""
    bundle, made = onnx
    folder = Path(shutil.copytree(made, tmp_path / "files"))
    data = manifest_of(folder)
    data["text"] = {"where": "host", "encoder": "T5", "tensors": data["text"]["tensors"], "padding": "0"}
    jsonschema.validate(data, SCHEMA)
    (folder / "manifest.json").write_text(json.dumps(sealed(data)))
    player = Player(folder, use())
    with pytest.raises(UserError, match=r"text\.where is host\). Give the embeddings with --text FILE"):
        player.video("a circle", 0)
    encoded = bundle.text()(bundle.text().tokenize(["a circle"]))
    save_file({"text/text": encoded["embedding"].detach().numpy(), "text/text_mask": encoded["mask"].detach().numpy()},
              tmp_path / "text.safetensors")  # fmt: skip
    found = player.video("", 0, tmp_path / "text.safetensors")
    np.testing.assert_allclose(found.astype(int), Player(made, use()).video("a circle", 0).astype(int), atol=1)
    assert min(player.golden().values()) > 40


@pytest.mark.usefixtures("onnx")
def test_an_export_reads_each_network_once() -> None:
    assert sorted(READ) == ["denoiser", "latent", "text"]


def harmed(tensors: dict[str, Any], harm: str) -> dict[str, Any]:
    """Embeddings that a host may send by mistake."""
    if harm == "missing":
        return {name: value for name, value in tensors.items() if name != "text/text_mask"}
    if harm == "null":
        return {name: value for name, value in tensors.items() if not name.startswith("null/")}
    if harm == "short":
        return {name: value[:, :5] for name, value in tensors.items()}
    return {**tensors, "text/text": tensors["text/text"] * np.float32(np.nan)}


@pytest.mark.parametrize(
    ("harm", "messages"),
    [
        ("missing", ["text.safetensors: there is no tensor text/text_mask. Save it under this name, shape [1, 16]"]),
        (
            "null",
            ["there is no tensor null/text (null is the empty caption, for guidance)", "no tensor null/text_mask"],
        ),
        (
            "short",
            ["text/text has the shape [1, 5, 32], the package takes [1, 16, 32]. Pad it", "null/text_mask has the"],
        ),
        ("nan", ["text.safetensors: text/text has values that are not finite. Encode the text in float32"]),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(
    harm: str, messages: list[str], guided: tuple[Any, Path], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """All that is wrong with them at once, and no video."""
    tensors = load_file(guided[1] / "golden" / "sample.safetensors")
    texts = {name: value for name, value in tensors.items() if name.startswith(("text/", "null/"))}
    save_file(harmed(texts, harm), tmp_path / "text.safetensors")
    words = ("play", guided[1], "--text", tmp_path / "text.safetensors", "--out", tmp_path / "v.mp4")
    status, printed = command(capsys, monkeypatch, *words)
    assert status == 2, printed
    assert all(message in printed for message in messages), printed
    assert "Traceback" not in printed
    assert not (tmp_path / "v.mp4").exists()


def test_a_video_that_is_not_finite_is_refused(onnx: tuple[Any, Path]) -> None:
    """An app that shows NaN shows black."""
    player = Player(onnx[1], use())
    sound = player.runners["vae_decoder"]
    player.runners["vae_decoder"] = lambda inputs, arithmetic: {"video": sound(inputs, arithmetic)["video"] * np.inf}
    with pytest.raises(UserError, match="vae_decoder gives values that are not finite in video"):
        player.video("a circle", 0)


def test_every_flipped_bit_of_a_whole_manifest_is_seen(onnx: tuple[Any, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(onnx[1] / "manifest.json", tmp_path))
    assert silent_flips(path, lambda: read_manifest(tmp_path, whole=True), every=11) == []


def edited(folder: Path, change: Any) -> None:
    """The manifest, changed in one place."""
    data = manifest_of(folder)
    change(data)
    (folder / "manifest.json").write_text(json.dumps(sealed(data)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("sigmas"), "not a whole manifest: sigmas missing"),
        (lambda data: data.update(frame_rule="1 + 8*k"), "frame_rule: should be an object, not '1 + 8*k'"),
        (lambda data: data["text"].pop("where"), "text: 'where' is a required property"),
        (lambda data: data["noise"].update(shape="2"), "noise.shape: should be a valid array, not '2'"),
        (lambda data: data["files"].append(7), "files[7]: should be an object, not 7"),
        (lambda data: data["artifacts"][0].update(path="../x.onnx"), "artifacts[0].path: ../x.onnx is not among its 'files'"),
        (lambda data: data["artifacts"][1].update(golden="/tmp/g"), "artifacts[1].golden: /tmp/g is not among 'files'"),
        (lambda data: data["text"]["tokenizer"].update(file="a.json"), "text.tokenizer: tokenizer/a.json is not among"),
        (lambda data: data["text"]["tokenizer"].update(kind="bpe"), "this player has no tokenizer of kind 'bpe'. Give the"),
        (lambda data: data["exporter"]["options"].update(opset=99, level=3), "does not take the options of the one that "
         "wrote it: level, opset. Install the version that wrote it"),
        (lambda data: data["artifacts"].pop(1), "it has no dit_step. Export the bundle again"),
        (lambda data: data["artifacts"][1]["inputs"][0].update(name="x"), "dit_step takes x, which nothing gives"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_one_is_refused(
    change: Any, message: str, onnx: tuple[Any, Path], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    folder = Path(shutil.copytree(onnx[1], tmp_path / "files"))
    edited(folder, change)
    status, printed = command(capsys, monkeypatch, "play", folder, "a circle", "--out", tmp_path / "v.mp4")
    assert status == 2, printed
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "v.mp4").exists()


def test_pixels_by_hand() -> None:
    video = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0], np.float32).reshape(1, 3, 1, 1, 2)
    assert to_pixels(video).tolist() == [[[[0, 128, 255], [0, 191, 255]]]]


def test_golden_sample_holds_the_toolkits_own_video(onnx: tuple[Any, Path]) -> None:
    bundle, folder = onnx
    stages = load_file(folder / "golden" / "sample.safetensors")
    wanted = Generator(bundle, (16, 2, 2, 2))([CAPTIONS["typical"]], seed=0, index=[0])
    np.testing.assert_array_equal(to_pixels(stages["video"]), wanted[0])


# ------------------------------------------------------------------ a VAE with frames of its own


def test_a_wrapped_vae_states_its_frame_rule_and_the_player_follows(tmp_path: Path) -> None:
    """CogVideoX takes 1 + 8·k frames at 4 pixels per latent frame: 9 frames are 3 latent frames. Three blocks of it."""
    torch.manual_seed(0)
    diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8), down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3, latent_channels=4, layers_per_block=1, norm_num_groups=2,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    codec = DiffusersCodec.from_pretrained(tmp_path / "vae", scaling_factor=None, tile=False, decode_timestep=None)
    bundle = bundle_in(tmp_path / "bundle", 1.0, codec, (9, 16, 16))
    _, folder = exported(tmp_path, ONNXExport(ONNXOptions()), "onnx", bundle=bundle)
    data = manifest_of(folder)
    jsonschema.validate(data, SCHEMA)
    assert (data["frame_rule"], data["ratio"], data["noise"]["shape"]) == (
        {"lead": 1, "step": 8}, [4, 4, 4], [1, 4, 3, 4, 4],
    )  # fmt: skip
    player = Player(folder, use())
    assert player.video("a circle", 0).shape == (9, 16, 16, 3)
    assert min(player.golden().values()) > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_rule": {"lead": 1, "step": 4}, "ratio": [4, 32, 32]}, "the manifest contradicts itself: 9 frames by"),
        ({"frame_rule": {"lead": 2, "step": 8}}, "the manifest contradicts itself"),
        ({"video": {"frames": 17, "height": 64, "width": 64}}, r"sizes\[0\] is .*, video .*17"),
        ({"noise": {"shape": [1, 16, 2, 2, 3]}}, r"the manifest contradicts itself: sizes\[0\]"),
    ],
)
def test_frames_that_do_not_fit_the_noise_are_refused(change: dict[str, Any], message: str) -> None:
    size = {"frames": 9, "height": 64, "width": 64}
    other = {"name": "video_17x64x64", "frames": 17, "height": 64, "width": 64, "latent": [1, 16, 3, 2, 2]}
    manifest = {
        "frame_rule": {"lead": 1, "step": 8}, "ratio": [8, 32, 32], "video": {**size, "fps": 8.0},
        "noise": {"shape": [1, 16, 2, 2, 2]}, "sizes": [{"name": "main", **size, "latent": [1, 16, 2, 2, 2]}, other],
    }  # fmt: skip
    need_frames(Path(), manifest)
    with pytest.raises(UserError, match=message):
        need_frames(Path(), {**manifest, **change})
