"""A sampling that skips by a table, exported as one graph: what is skipped is absent, and the rest is what torch does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from toy import part, tiny_bundle

from dit_compress.core.errors import UserError
from dit_compress.export import export_components
from dit_compress.export.components import dit_component
from dit_compress.export.player import Player
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.flow import Flow
from dit_compress.model.skipping import gated_modules, static_table
from dit_compress.model.spec import ComponentSpec
from dit_compress.model.text import Captions
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
LEFT_OUT = "4 of 9 calls of attention and FFN are left out"
SKIPPED = {"attn1": (True, False, False), "attn2": (True, True, False), "ff": (True, False, True)}
"""What each module of the one block computes, at each step: 4 of 9 calls are left out."""


def gated() -> Denoiser:
    """One block whose gates say what is skipped."""
    found = tiny_denoiser("video_dit", layers=1)
    step = part("transform", "lazy")
    step.replay(found.module, step.entry(found, FLOW)[0]["data"])
    for path, owner in gated_modules(found.module).items():
        owner.skip_mean.copy_(torch.tensor(SKIPPED[path.rpartition(".")[2]]) * 0.5 + 0.2)
    return found.eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Latents that stand for no pixels; sampled by the gates."""
    folder = tmp_path_factory.mktemp("walk")
    plain, denoiser = tiny_denoiser("video_dit", layers=1), gated()
    entry, _ = part("transform", "lazy").entry(plain, FLOW)
    base = tiny_bundle(folder / "base")
    spec = replace(
        base.spec,
        denoiser=ComponentSpec("model", "video_dit", part("model", "video_dit").config_of(plain.module), (entry,)),
        latent=ComponentSpec("latent", "given", {"channels": denoiser.channels}),
        flow=replace(FLOW, sampler={"use": "lazy"}),
    )
    modules = {"denoiser": denoiser.module, "text": base.text(), "latent": spec.need_latent().build()}
    return write_bundle(folder / "bundle", spec, modules, base=None, lineage=())


@pytest.fixture(scope="module")
def package(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Metrics and folder of an export of all steps."""
    pytest.importorskip("onnxruntime")
    exporter = make_part("export", {"use": "onnx", "sampler": TABLE}, installed())
    context = tiny_context(tmp_path_factory.mktemp("package"), input=bundle, data=drawn(2, (2, 2)))
    context = replace(context, record={"parts": {"step": {"plugin": "onnx", "options": exporter.as_data()}}})
    return dict(exporter.build().run(context).metrics), context.folder / "files"


def sampled(bundle: Bundle, noise: torch.Tensor, caption: str) -> torch.Tensor:
    """What torch makes of the same table."""
    with torch.no_grad():
        cond = Captions(bundle.text()).eval().cond([caption])
        return FLOW.sample()(bundle.denoiser().eval(), noise, cond, FLOW.sigmas(), 2.0)


def test_what_is_skipped_is_absent_from_the_graph_and_weights_stand_once(
    bundle: Bundle, package: tuple[dict[str, Any], Path]
) -> None:
    onnx, to_array = pytest.importorskip("onnx"), pytest.importorskip("onnx.numpy_helper").to_array
    denoiser = bundle.denoiser()
    owners = gated_modules(denoiser.module)
    assert static_table(owners, 4 / 9) == {f"transformer_blocks.0.{name}": row for name, row in SKIPPED.items()}
    graph = onnx.load(package[1] / "dit_walk.onnx").graph
    weights = {each.name: to_array(each) for each in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    for path, owner in owners.items():
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
    assert held <= sum(value.size for value in weights.values()) < 1.1 * held, "and not three times"


def test_a_package_plays_by_one_call_what_torch_samples(bundle: Bundle, package: tuple[dict[str, Any], Path]) -> None:
    metrics, folder = package
    assert metrics["passed"]
    assert min(row["psnr_db"] for row in metrics["rows"] if row["component"] == "dit_walk") > 110
    assert (metrics["steps_in_one_file"], metrics["left_out"]) == (3, LEFT_OUT)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["load_order"] == ["text_encoder", "dit_walk"]
    names = [each["name"] for each in manifest["artifacts"][1]["inputs"]]
    assert names == ["noise", "text", "text_mask", "null_text", "null_text_mask"]
    assert manifest["prediction"].startswith("latent = dit_walk(noise, conditions)")
    assert manifest["rope"]["where"] == "constants of dit_walk"
    assert "sampler" not in manifest["exporter"]["options"]
    player = Player(folder, installed())
    stages = player.golden()
    assert [name for name in stages if name.startswith("latent/")] == ["latent/3"]
    assert min(stages.values()) > 90
    noise = player.noise(5)
    (found,) = player.sample(noise, player.encode("two small circles"), player.encode("")).values()
    np.testing.assert_allclose(found, sampled(bundle, torch.from_numpy(noise), "two small circles").numpy(), atol=1e-4)
    with pytest.raises(UserError, match="it has no vae_decoder: its latents stand for no pixels. Compare"):
        player.video("a circle", 0)


def test_core_ml_computes_the_same_in_half_precision(tmp_path: Path) -> None:
    """Weights once, in float16; without guidance nothing stands for the empty caption."""
    pytest.importorskip("coremltools")
    denoiser = gated()
    torch.manual_seed(7)
    noise, _, cond = denoiser.example(1, (2, 2, 2))
    flow = replace(FLOW, guidance=1.0)
    made = dit_component(denoiser, noise, cond, flow, flow.fixed(lambda: denoiser))
    assert list(made.inputs) == ["noise", "text", "text_mask"]
    exporter = part("export", "coreml")
    report = export_components(exporter, [made], exporter.profile, tmp_path / "out")
    assert report["passed"], report["rows"]
    held = sum(each.numel() for each in denoiser.parameters())
    (weights,) = (tmp_path / "out" / "dit_walk.mlpackage").rglob("weight.bin")
    assert weights.stat().st_size < 1.3 * 2 * held
    small = replace(exporter.profile, max_file_bytes=1000)
    (error,) = [each for each in exporter.check(made, small) if each.severity == "error"]
    assert "a file may have 0 MiB" in error.message, "chunks would hold all weights each"


def test_what_is_planned_and_what_is_refused(bundle: Bundle) -> None:
    """Without weights: the number is known where a ratio says it."""

    def planned(**options: Any) -> Any:
        sampler = {"use": "lazy", "skip": "table", **options}
        return make_part("export", {"use": "onnx", "sampler": sampler}, installed()).build().plan(bundle.spec)

    found = planned(ratio=4 / 9)
    assert found.notes[-1] == f"dit_walk: all 3 steps in one graph; {LEFT_OUT}"
    assert found.flow == replace(bundle.flow, sampler=TABLE)
    assert planned().notes[-1].endswith("; the calls whose mean is below 0.5 of attention and FFN are left out")
    with pytest.raises(UserError, match="90% of the modules' calls can't be skipped"):
        planned(ratio=0.9)
    with pytest.raises(UserError, match="the same for all. Name a table under 'export': 'sampler: {use: lazy, skip"):
        part("export", "coreml").plan(bundle.spec)
