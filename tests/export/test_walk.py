"""A sampling that skips by a table, exported as one graph: what is skipped is absent, and the rest is what torch does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from toy import part, tiny_bundle

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.export import export_components
from dit_compress.export.components import dit_component
from dit_compress.export.player import Player
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.flow import Flow
from dit_compress.model.skipping import gated_modules, static_table
from dit_compress.model.spec import ComponentSpec
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import drawn, tiny_context

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser

torch.set_num_threads(1)
TABLE = {"use": "lazy", "skip": "table", "ratio": 4 / 9}
FLOW = Flow(3.0, 3, 2.0, TABLE)
SKIPPED = {"attn1": (True, False, False), "attn2": (True, True, False), "ff": (True, False, True)}
"""What each module of the one block computes, at each step: 4 of 9 calls are left out."""


@pytest.fixture
def denoiser() -> Denoiser:
    """One block whose gates say what is skipped."""
    found = tiny_denoiser("video_dit", layers=1)
    step = part("transform", "lazy")
    step.replay(found.module, step.entry(found, FLOW)[0]["data"])
    for path, owner in gated_modules(found.module).items():
        owner.skip_mean.copy_(torch.tensor(SKIPPED[path.rpartition(".")[2]]) * 0.5 + 0.2)
    return found.eval()


def component(denoiser: Denoiser) -> Any:
    torch.manual_seed(7)
    noise, _, cond = denoiser.example(1, (2, 2, 2))
    return dit_component(denoiser, noise, cond, FLOW, FLOW.fixed(lambda: denoiser)), noise, cond


def test_what_is_skipped_is_absent_from_the_graph_and_weights_stand_once(denoiser: Denoiser, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    to_array = pytest.importorskip("onnx.numpy_helper").to_array
    pytest.importorskip("onnxruntime")
    assert static_table(gated_modules(denoiser.module), 4 / 9) == {
        f"transformer_blocks.0.{name}": row for name, row in SKIPPED.items()
    }
    made, noise, cond = component(denoiser)
    assert list(made.inputs) == ["noise", "text", "text_mask", "null_text", "null_text_mask"]
    exporter = part("export", "onnx")
    report = export_components(exporter, [made], exporter.profile, tmp_path / "out")
    assert report["passed"], report["rows"]
    assert min(row["psnr_db"] for row in report["rows"]) > 110
    graph = onnx.load(tmp_path / "out" / "dit_walk.onnx").graph
    weights = {each.name: to_array(each) for each in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    for path, owner in gated_modules(denoiser.module).items():
        for name, linear in owner.named_modules():
            if not isinstance(linear, torch.nn.Linear) or (path.endswith("attn2") and name in ("to_k", "to_v")):
                continue  # what is made of the text alone is the same at each step
            own = [key for key, value in weights.items() if np.array_equal(value, linear.weight.detach().numpy().T)]
            readers = [node for node in products if set(own) & set(node.input)]
            assert (len(own), len(readers)) == (1, sum(SKIPPED[path.rpartition(".")[2]])), (path, name)
    assert sum(node.op_type == "Softmax" for node in graph.node) == 1 + 2, "attention of attn1 once, of attn2 twice"
    # 3 steps of 7 linears around the block; attention 3 times: 4 linears, 2 products; ff twice: 2 linears.
    assert len(products) <= 3 * 7 + 3 * 6 + 2 * 2
    held = sum(each.numel() for name, each in denoiser.named_parameters() if not name.endswith("skip_gate"))
    stored = sum(int(np.prod(each.dims)) for each in graph.initializer)
    assert held <= stored < 1.1 * held, "and not three times"
    with torch.no_grad():
        wanted = FLOW.sample()(denoiser, noise, cond, FLOW.sigmas(), 2.0)
    found = load_file(tmp_path / "out" / "golden" / "dit_walk.safetensors")
    np.testing.assert_allclose(found["typical/outputs/latent"], wanted.numpy(), atol=1e-5)


def test_core_ml_computes_the_same_in_half_precision(denoiser: Denoiser, tmp_path: Path) -> None:
    """Weights once, in float16; the sinusoids of each sigma are as exact as they are in a step."""
    pytest.importorskip("coremltools")
    made, _, _ = component(denoiser)
    exporter = part("export", "coreml")
    report = export_components(exporter, [made], exporter.profile, tmp_path / "out")
    assert report["passed"], report["rows"]
    held = sum(each.numel() for each in denoiser.parameters())
    (weights,) = (tmp_path / "out" / "dit_walk.mlpackage").rglob("weight.bin")
    assert weights.stat().st_size < 1.3 * 2 * held
    small = replace(exporter.profile, max_file_bytes=1000)
    (error,) = [each for each in exporter.check(made, small) if each.severity == "error"]
    assert "a file may have 0 MiB" in error.message, "chunks would hold all weights each"


# ------------------------------------------------------------------ a whole package


@pytest.fixture
def bundle(denoiser: Denoiser, tmp_path: Path) -> Bundle:
    """Latents that stand for no pixels, gates with means; sampled by the gates."""
    base = tiny_bundle(tmp_path / "base")
    step = part("transform", "lazy")
    entry, _ = step.entry(tiny_denoiser("video_dit", layers=1), FLOW)
    model = part("model", "video_dit")
    config = model.config_of(tiny_denoiser("video_dit", layers=1).module)
    spec = replace(
        base.spec,
        denoiser=ComponentSpec("model", "video_dit", config, (entry,)),
        latent=ComponentSpec("latent", "given", {"channels": denoiser.channels}),
        flow=replace(FLOW, sampler={"use": "lazy"}),
    )
    modules = {"denoiser": denoiser.module, "text": base.text(), "latent": spec.need_latent().build()}
    return write_bundle(tmp_path / "bundle", spec, modules, base=None, lineage=())


def test_a_package_plays_by_one_call_what_torch_samples(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    exporter = make_part("export", {"use": "onnx", "sampler": TABLE}, installed())
    context = tiny_context(tmp_path / "step", input=bundle, data=drawn(2, (2, 2)))
    context = replace(context, record={"parts": {"step": {"plugin": "onnx", "options": exporter.as_data()}}})
    planned = exporter.build().plan(replace(bundle.spec, video=(2, 2, 2)))
    note = "dit_walk: all 3 steps in one graph; 4 of 9 calls of attention and FFN are left out"
    assert (planned.notes[-1], planned.flow.sampler) == (note, exporter.options.sampler.as_data())
    result = exporter.build().run(context)
    assert result.metrics["passed"]
    assert (result.metrics["steps_in_one_file"], result.metrics["left_out"]) == (3, note.partition("; ")[2])
    folder = tmp_path / "step" / "files"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["load_order"] == ["text_encoder", "dit_walk"]
    assert manifest["prediction"].startswith("latent = dit_walk(noise, conditions)")
    assert manifest["rope"]["where"] == "constants of dit_walk"
    assert "sampler" not in manifest["exporter"]["options"]
    player = Player(folder, installed())
    stages = player.golden()
    assert [name for name in stages if name.startswith("latent/")] == ["latent/3"]
    assert min(stages.values()) > 90
    text, null = player.encode("two small circles"), player.encode("")
    (found,) = player.sample(player.noise(5), text, null).values()
    noise = Streams(5, 0, [0]).normal("sample", context.latent_shape())
    cond = context.text().eval().cond(["two small circles"])
    with torch.no_grad():
        wanted = replace(FLOW).sample()(bundle.denoiser().eval(), noise, cond, FLOW.sigmas(), 2.0)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
    with pytest.raises(UserError, match="it has no vae_decoder: its latents stand for no pixels. Compare"):
        player.video("a circle", 0)


def test_gates_are_refused_and_weights_are_not_needed_to_check(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="the same for all. Name a table under 'export': 'sampler: {use: lazy, skip"):
        part("export", "coreml").plan(bundle.spec)
    with pytest.raises(UserError, match="90% of the modules' calls can't be skipped"):
        make_part("export", {"use": "onnx", "sampler": {**TABLE, "ratio": 0.9}}, installed()).build().plan(bundle.spec)
    unknown = make_part("export", {"use": "onnx", "sampler": {"use": "lazy", "skip": "table"}}, installed()).build()
    assert "the calls whose mean is below 0.5 of attention and FFN are left out" in unknown.plan(bundle.spec).notes[-1]
