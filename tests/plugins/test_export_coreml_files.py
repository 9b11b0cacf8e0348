"""What ``coreml`` writes: weights in fewer bits, chunks that together equal the whole, masks as they are meant."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.export import Artifact, Component, export_components
from dit_compress.export.folder import artifact_of
from dit_compress_plugins.export_coreml import CoreMLOptions

coremltools = pytest.importorskip("coremltools")

from dit_compress_plugins.export_coreml.chunks import weight_bytes  # noqa: E402 - after importorskip
from dit_compress_plugins.export_coreml.exporter import CoreMLExport  # noqa: E402 - after importorskip
from dit_compress_plugins.export_coreml.mil import OPERATORS  # noqa: E402 - after importorskip
from dit_compress_plugins.export_coreml.runners import CoreMLRunner  # noqa: E402 - after importorskip

pytestmark = pytest.mark.slow(15)

torch.set_num_threads(1)

DATA = np.random.default_rng(0).integers(-7, 8, (4, 6)).astype(np.int8)
INDICES = np.random.default_rng(1).integers(0, 4, (4, 6)).astype(np.uint8)
FLOATS = np.random.default_rng(2).uniform(-1, 1, (4, 3)).astype(np.float32)


def tensors(**inputs: Any) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(value)) for name, value in inputs.items() if value is not None}


@pytest.mark.parametrize(("scale", "offset"), [(FLOATS[:, :1], None), (FLOATS, None), (FLOATS, DATA[:, :3])])
def test_blocks_of_scales_agree_with_coremltools(scale: np.ndarray, offset: np.ndarray | None) -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_blockwise_shift_scale as theirs

    mine = OPERATORS["constexpr_blockwise_shift_scale"](**tensors(data=DATA, scale=scale, offset=offset))
    np.testing.assert_allclose(mine.numpy(), theirs.decompress(DATA, scale, offset), rtol=1e-6)


@pytest.mark.parametrize("blocks", [(1, 1), (4, 1), (2, 3)])
def test_palettes_agree_with_coremltools(blocks: tuple[int, int]) -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_dense as theirs

    lut = np.random.default_rng(3).uniform(-1, 1, (*blocks, 4, 1)).astype(np.float32)
    mine = OPERATORS["constexpr_lut_to_dense"](**tensors(indices=INDICES, lut=lut))
    np.testing.assert_array_equal(mine.numpy(), theirs.decompress(INDICES, lut, None))


def test_packed_palettes_of_ios_16_agree_with_coremltools() -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops import constexpr_lut_to_dense as theirs

    packed, lut = np.array([0b11100100, 0b00011011, 0b10110001], np.uint8), FLOATS[:, 0]
    mine = OPERATORS["constexpr_lut_to_dense"](**tensors(indices=packed, lut=lut, shape=np.array([3, 4])))
    np.testing.assert_array_equal(mine.numpy(), theirs.decompress(lut, packed, [3, 4]))
    assert mine[0].tolist() == lut[[0, 1, 2, 3]].tolist()


def test_affine_weights_of_ios_16_by_hand() -> None:
    given = tensors(quantized_data=np.array([[1, 2], [3, 4]], np.int8), zero_point=np.array([1, 0], np.int8),
                    scale=np.array([0.5, 2.0], np.float32))  # fmt: skip
    found = OPERATORS["constexpr_affine_dequantize"](**given, axis=0)
    assert found.tolist() == [[0.0, 0.5], [6.0, 8.0]]


class Deep(nn.Module):
    """Linears of 256 × 256 in a residual chain that reads a second input late."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(256, 256) for _ in range(layers))

    def forward(self, x: Tensor, late: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = x + nn.functional.silu(layer(x)) * (late if index % 2 else 1.0)
        return x


@cache
def deep() -> Component:
    """Traced once for all tests."""
    torch.manual_seed(1)
    inputs = {"x": torch.randn(8, 256), "late": torch.randn(8, 256)}
    return Component("deep", Deep().eval(), inputs, ("y",), varied=("x",))


def exported(folder: Path, limit: int | None = None, **options: Any) -> tuple[dict[str, Any], Artifact, Any]:
    """Report, artifact, and the exporter."""
    exporter = CoreMLExport(CoreMLOptions(**options))
    report = export_components(exporter, [deep()], replace(exporter.profile, max_file_bytes=limit), folder / "out")
    entry = json.loads((folder / "out" / "manifest.json").read_text())["artifacts"][0]
    return report, artifact_of(folder / "out", entry), exporter


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """All of it in one package, in half precision."""
    exporter = CoreMLExport(CoreMLOptions())
    return exporter.lower(deep(), replace(exporter.profile, max_file_bytes=None), tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.parametrize(
    ("weights", "bits", "share", "least"),
    [("int8", 8, 0.52, 45.0), ("int4", 4, 0.35, 25.0), ("palette6", 6, 0.48, 40.0), ("palette4", 4, 0.32, 28.0)],
)
def test_fewer_bits_give_smaller_files_of_stated_quality(
    weights: Any, bits: int, share: float, least: float, whole: Artifact, tmp_path: Path
) -> None:
    report, artifact, exporter = exported(tmp_path, weights=weights)
    assert (artifact.weight_bits, artifact.details["weights"]) == (bits, weights)
    assert weight_bytes(artifact.path) < share * weight_bytes(whole.path)
    assert {row["gate_db"] for row in report["rows"]} == {40.0 if bits > 4 else 35.0}
    typical = [row["psnr_db"] for row in report["rows"] if row["input_set"] == "typical"]
    assert min(typical) > least
    assert max(typical) < 75, "nothing was rounded"
    assert exporter.profile.bits == bits


def test_chunks_together_equal_the_whole_bit_for_bit(whole: Artifact, tmp_path: Path) -> None:
    exporter = CoreMLExport(CoreMLOptions())
    inputs = {name: value.numpy() for name, value in deep().inputs.items()}
    limit = 200_000
    cut = exporter.lower(deep(), replace(exporter.profile, max_file_bytes=limit), tmp_path)[0]
    assert whole.path.name == "deep.mlpackage"
    assert cut.path.name == "deep"
    assert cut.details["chunks"] == [f"{place}.mlpackage" for place in range(1, len(cut.details["chunks"]) + 1)]
    assert len(cut.details["chunks"]) == 4
    assert sorted(path.name for path in cut.path.iterdir()) == cut.details["chunks"]
    assert all(weight_bytes(cut.path / name) <= limit for name in cut.details["chunks"])
    for arithmetic in ("float32", "float16"):
        wanted, found = (exporter.runner(each)(inputs, arithmetic)["y"] for each in (whole, cut))
        np.testing.assert_array_equal(found, wanted)


def test_a_split_package_passes_the_gates(tmp_path: Path) -> None:
    report, _, _ = exported(tmp_path, limit=300_000)
    assert report["passed"], report["rows"]


def test_one_operator_above_the_limit_is_refused(tmp_path: Path) -> None:
    exporter = CoreMLExport(CoreMLOptions())
    with pytest.raises(UserError, match="Choose fewer bits for the weights"):
        export_components(exporter, [deep()], replace(exporter.profile, max_file_bytes=1000), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_stored() -> None:
    with pytest.raises(ValueError, match="int4 weights per block need iOS 18"):
        CoreMLOptions(weights="int4", minimum_os="iOS17")
    with pytest.raises(ValueError, match="palettes are made of float16 weights"):
        CoreMLOptions(weights="palette6", precision="float32")


def test_zeros_like_a_boolean_forget_their_dtype_in_coremltools(tmp_path: Path) -> None:
    """The day the first half of this test fails, the fault is mended and the rewrite of ``zeros_like`` can go."""

    class Mask(nn.Module):
        def forward(self, keep: Tensor) -> Tensor:
            padding = keep < 0.5
            return torch.zeros_like(padding, dtype=torch.float32).masked_fill(padding, -3.0) + 1.0

    keep = torch.tensor([[1.0, 0.0, 1.0]])
    program = torch.export.export(Mask(), (keep,), strict=False).run_decompositions({})
    from dit_compress.core.progress import quiet

    with quiet():
        plain = coremltools.convert(program, convert_to="mlprogram", skip_model_load=True)
    selects = [each for each in plain._mil_program.functions["main"].operations if each.op_type == "select"]
    assert [each.a.val.dtype for each in selects] == [np.dtype(bool)], "a mask of -3 became a boolean"
    exporter = CoreMLExport(CoreMLOptions())
    component = Component("mask", Mask().eval(), {"keep": keep}, ("y",), varied=())
    runner = exporter.runner(exporter.lower(component, exporter.profile, tmp_path)[0])
    assert runner({"keep": keep.numpy()}, "float16")["y"].tolist() == [[1.0, -2.0, 1.0]]


def test_on_a_mac_core_ml_itself_runs_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Core ML does not run here: a stand-in computes each package with the interpreter, by Core ML's own calls."""
    exporter = CoreMLExport(CoreMLOptions())
    artifact = exporter.lower(deep(), replace(exporter.profile, max_file_bytes=300_000), tmp_path)[0]
    inputs = {name: value.numpy() for name, value in deep().inputs.items()}
    wanted = exporter.runner(artifact)(inputs, "float16")["y"]

    class Model:
        def __init__(self, path: str, compute_units: Any, function_name: str | None) -> None:
            from pathlib import Path as Folder

            from dit_compress_plugins.export_coreml.mil import load_program

            assert compute_units.name == "CPU_AND_NE"
            assert function_name is None
            self.program, self.spec = load_program(Folder(path)), coremltools.utils.load_spec(path)

        def get_spec(self) -> Any:
            return self.spec

        def predict(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert set(given) == set(self.program.inputs)
            return self.program.run(given, "float16")

    monkeypatch.setattr(coremltools.models, "MLModel", Model)
    runner = CoreMLRunner(artifact)
    assert (runner.fidelity, runner.arithmetics) == ("production", ("float16",))
    np.testing.assert_array_equal(runner(inputs, "float16")["y"], wanted)
