"""What ``export_components`` promises, with an exporter that writes NumPy's weights and runs them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_file
from dit_compress.export import (
    Artifact,
    Component,
    Diagnostic,
    Profile,
    describe_video,
    export_components,
    inspect,
)
from dit_compress.export.inputs import INPUT_SETS, input_sets, reference_outputs, without_unused
from dit_compress.export.package import check_components, golden_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Half(nn.Module):
    """``x · weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 1.5, -2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def half() -> Component:
    return Component("half", Half(), {"x": torch.tensor([[1.0, 2.0, 3.0]])}, ("y",), varied=("x",))


class TableExporter:
    """Writes the weight as safetensors, plus an error."""

    def __init__(self, error: float = 0.0, fidelity: str = "production", found: list[Diagnostic] | None = None) -> None:
        self.error, self.fidelity, self.found = error, fidelity, found or []

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        return self.found

    def lower(self, component: Component, profile: Profile, folder: Path) -> list[Artifact]:
        path = folder / f"{component.name}.table"
        save_file({"weight": component.module.weight.detach().numpy() * (1 + self.error)}, path)
        return [Artifact(path, component.name, "table", profile.precision, {"minimum_os": "none"})]

    def runner(self, artifact: Artifact) -> Any:
        weight, fidelity = load_file(artifact.path)["weight"], self.fidelity

        class Run:
            arithmetics = ("float32",)

            def __call__(self, inputs: Mapping[str, np.ndarray], arithmetic: str) -> dict[str, np.ndarray]:
                return {"y": inputs["x"] * weight}

        run = Run()
        run.fidelity = fidelity
        return run


def test_folder_holds_all_an_app_needs(tmp_path: Path) -> None:
    about = describe_video(sigmas=[1.0, 0.5, 0.0], ratio=[8, 32, 32], video=[17, 64, 64], fps=8)
    report = export_components(TableExporter(), [half()], Profile("test"), tmp_path / "out", about)
    assert report["passed"]
    assert report["fidelity"] == "production"
    assert [row["psnr_db"] for row in report["rows"]] == [300.0] * 4
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    entry = manifest["artifacts"][0]
    assert manifest["schema"] == 1
    assert manifest["load_order"] == ["half"]
    assert manifest["sigmas"] == [1.0, 0.5, 0.0]
    assert manifest["frame_rule"] == {"lead": 1, "step": 8}
    assert entry["inputs"] == [{"name": "x", "shape": [1, 3], "dtype": "float32"}]
    assert entry["outputs"] == [{"name": "y", "shape": [1, 3], "dtype": "float32"}]
    assert entry["files"][0]["sha256"] == sha256_file(tmp_path / "out" / "half.table")
    golden = load_file(tmp_path / "out" / entry["golden"])
    np.testing.assert_array_equal(golden["tiny/inputs/x"], golden["typical/inputs/x"] * np.float32(1e-3))
    np.testing.assert_array_equal(golden["typical/outputs/y"], [[0.5, 3.0, -6.0]])


def test_a_file_that_computes_something_else_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"component half: .* computes something else: .* dB"):
        export_components(TableExporter(error=0.1), [half()], Profile("test"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        export_components(TableExporter(error=np.nan), [half()], Profile("test"), tmp_path / "out")


def test_below_the_gate_is_written_and_not_passed(tmp_path: Path) -> None:
    report = export_components(TableExporter(error=1e-3), [half()], Profile("test"), tmp_path / "out")
    assert not report["passed"]
    assert {row["verdict"] for row in report["rows"]} == {"below", "passed"}


def test_a_manifest_that_no_app_could_read_is_not_written(tmp_path: Path) -> None:
    """What an exporter or a text encoder says of itself follows the schema, or nothing is left."""
    about = {"text": {"where": "device", "tensors": {"text": [1, 4, 8]}, "tokenizer": {"kind": "mine"}}}
    with pytest.raises(UserError, match=r"manifest.json: text.tokenizer: 'folder' is a required property"):
        export_components(TableExporter(), [half()], Profile("test"), tmp_path / "out", about)
    assert list(tmp_path.iterdir()) == []


def test_unverified_is_not_success(tmp_path: Path) -> None:
    report = export_components(TableExporter(fidelity="none"), [half()], Profile("test"), tmp_path / "out")
    assert (report["passed"], report["fidelity"], report["rows"]) == (False, "none", [])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["stamp"], manifest["artifacts"][0]["stamp"]) == ("UNVERIFIED", "UNVERIFIED")


def test_headroom_names_the_operator_nearest_to_overflow(tmp_path: Path) -> None:
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner(lambda x: x * x)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) - 1.0

    toy = Component("toy", Squares(), {"x": torch.tensor([[0.5, -2.0]])}, ("y",), varied=("x",))
    found = golden_of(toy, Profile("test"))[1]
    assert [(each["operator"], each["path"], each["input_set"]) for each in found] == [
        ("aten.mul", "inner", "huge"),
        ("aten.sub", "(the component itself)", "huge"),
    ]
    assert found[0]["max_abs"] == 360_000
    assert found[0]["headroom"] == pytest.approx(65504 / 360_000)


def test_sets_that_equal_an_earlier_one_are_left_out() -> None:
    assert list(input_sets(half(), ("typical", "zero", "padded"))) == ["typical", "zero"]
    captions = Component(
        "t", Half(), {"x": torch.ones(1, 3)}, ("y",), varied=(), more={"empty": {"x": torch.ones(1, 3) * 2}}
    )
    assert list(input_sets(captions, ("typical", "zero", "huge"))) == ["typical", "empty"]


class Deaf(nn.Module):
    """Takes a mask and a rate, looks at neither; asks for the mask's dtype."""

    def forward(self, mask: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return x * 2 if mask.is_floating_point() else x


def test_inputs_that_are_not_used_are_left_out_and_said() -> None:
    given = {"mask": torch.ones(1, 3), "x": torch.tensor([[1.0, 2.0, 3.0]]), "rate": torch.ones(1)}
    wider = {**given, "x": torch.tensor([[4.0]])}
    component = Component(
        "deaf", Deaf(), given, ("y",), ("x", "rate"), ("rate",), "mask", {"other": given}, sizes={"w": wider}
    )
    found = without_unused(component)
    assert found.left_out == ("mask", "rate")
    assert (found.varied, found.precise, found.mask) == (("x",), (), None)
    assert [list(inputs) for inputs in (found.inputs, found.more["other"], found.sizes["w"])] == [["x"]] * 3
    assert reference_outputs(found, found.inputs)["y"].tolist() == [[2.0, 4.0, 6.0]]
    assert reference_outputs(found, found.sizes["w"])["y"].tolist() == [[8.0]]
    warnings = check_components(TableExporter(), [found], Profile("test"))
    assert [f"{each.path}: {each.message}" for each in warnings] == [
        "input mask: it is left out: the module does not use it",
        "input rate: it is left out: the module does not use it",
    ]
    assert without_unused(half()).left_out == ()


def test_errors_of_the_check_come_together_before_anything_is_written(tmp_path: Path) -> None:
    found = [
        Diagnostic("aten.fft", "blocks.3", "error", "no such operator", "Replace it"),
        Diagnostic("", "input x", "error", "too wide"),
        Diagnostic("aten.gelu", "blocks.0", "warning", "slow"),
    ]
    with pytest.raises(UserError) as raised:
        export_components(TableExporter(found=found), [half()], Profile("test"), tmp_path / "out")
    assert "component half, blocks.3: aten.fft: no such operator. Replace it" in str(raised.value)
    assert "input x: too wide" in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    report = export_components(TableExporter(found=found[2:]), [half()], Profile("test"), tmp_path / "out")
    assert report["warnings"] == ["blocks.0: aten.gelu slow"]


class Inner(nn.Module):
    """Does what the test asks."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def component(compute: Any, x: Tensor | None = None) -> Component:
    x = torch.rand(2, 4) if x is None else x
    return Component("toy", nn.Sequential(nn.Identity(), Inner(compute)), {"x": x}, ("y",), varied=("x",))


@pytest.mark.parametrize(
    ("compute", "x", "message"),
    [
        (lambda x: x.reshape(1, 1, 1, 1, 2, 4) * 2, None, "rank 6"),
        (lambda x: x + torch.randn_like(x), None, "random numbers"),
        (lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(2, 2, 2)) * 2), None, "complex"),
        (lambda x: x * 2, torch.ones(2, dtype=torch.int64), "int64"),
        (lambda x: torch.ones(2), None, "does not use"),
    ],
)
def test_inspect_names_what_every_target_objects_to(compute: Any, x: Tensor | None, message: str) -> None:
    toy = component(compute, x)
    found = inspect(toy, Profile("test"))
    assert any(message in each.message for each in found), found
    assert all(each.mend for each in found)
    if message not in {"int64", "does not use"}:
        assert found[0].path == "1"


def test_weights_over_the_limit() -> None:
    found = inspect(half(), Profile("test", max_file_bytes=5))
    assert "a file may have" in found[0].message


def test_control_flow_on_values_is_one_message() -> None:
    toy = component(lambda x: x * 2 if x.sum() > 0 else x)
    with pytest.raises(UserError, match=r"component toy, Inner\.forward: torch\.export can't trace it"):
        _ = toy.program


def test_trace_works_without_weights() -> None:
    with torch.device("meta"):
        toy = Component("meta", nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), {"x": torch.rand(2, 4)}, ("y",), ("x",))
    assert inspect(toy, Profile("test")) == []


def test_input_sets() -> None:
    text = Component("t", Half(), {"x": torch.ones(1, 3), "mask": torch.ones(1, 5)}, ("y",), varied=("x",), mask="mask")
    made = {name: make(text) for name, make in INPUT_SETS.items()}
    assert made["zero"]["x"].abs().max() == 0
    assert made["zero"]["mask"].min() == 1
    assert made["huge"]["x"].max() == 300
    assert made["padded"]["mask"].tolist() == [[1, 1, 1, 0, 0]]
