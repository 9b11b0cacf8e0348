"""The conformance kit for exporters: subclass, name the exporter, run pytest.

    from dit_compress.testing.exporters import ExporterContract

    class TestMine(ExporterContract):
        def exporter(self):
            return MyExport(MyOptions())

Every test names what it expects of the three methods; a new exporter is ready when all pass.
"""

from __future__ import annotations

import inspect as python
import json
import shutil
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.export import Artifact, Component, Diagnostic, Profile, dit_step, export_components
from dit_compress.export.compare import ARITHMETICS
from dit_compress.export.types import FIDELITIES
from dit_compress.plugin.defaults import TINY_MODEL
from dit_compress.plugin.options import marked
from dit_compress.testing.corpus import CORPUS, Case, examine
from dit_compress.testing.models import tiny_denoiser

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (2, 2, 2)
ANY_TARGET = ("random_numbers", "control_flow", "dynamic_shape", "unused_input", "in_place_write")
"""Cases that no target can hold: a check that passes them is not looking."""


def small() -> Component:
    """Make a linear, an activation, a norm: what any exporter must manage."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.RMSNorm(32, eps=1e-6), nn.Linear(32, 16)).eval()
    return Component("small", module, {"x": torch.randn(4, 16)}, ("y",), varied=("x",))


@cache
def dit() -> Component:
    """Make a whole DiT step at the size of seconds, once for all exporters: one block has every operator."""
    denoiser = tiny_denoiser(TINY_MODEL, layers=1)
    torch.manual_seed(1)
    latent, _, cond = denoiser.example(1, SIZE)
    return dit_step(denoiser, latent, dict(cond))


@dataclass(frozen=True)
class Lowered:
    """A component, its weights before, and what ``lower`` made of it in a folder."""

    folder: Path
    component: Component
    before: dict[str, torch.Tensor]
    artifacts: list[Artifact]


class ExporterContract:
    """The promises of ``check``, ``lower`` and ``runner`` (see ``hooks.Exporter``)."""

    def exporter(self) -> Any:
        """Return the exporter under test, with the options that shall be tested."""
        raise NotImplementedError("Return your exporter: def exporter(self): return MyExport(MyOptions())")

    @property
    def profile(self) -> Profile:
        """The target; the exporter's own."""
        return self.exporter().profile

    # -- check

    def test_check_needs_no_weights(self) -> None:
        """A component on the meta device, and a good one: no errors."""
        with torch.device("meta"):
            module = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
            component = Component("meta", module, {"x": torch.empty(4, 16)}, ("y",), varied=("x",))
        found = self.exporter().check(component, self.profile)
        assert [each for each in found if each.severity == "error"] == []

    @pytest.mark.parametrize("case", [case for case in CORPUS if case.name in ANY_TARGET], ids=lambda case: case.name)
    def test_check_refuses_what_no_target_can_hold(self, case: Case) -> None:
        """With a place, and a mend."""
        errors = [each for each in self.exporter().check(case.make(), self.profile) if each.severity == "error"]
        assert errors, f"{case.name}: {case.fault}, and check says nothing"
        assert all(isinstance(each, Diagnostic) and each.path and each.message and each.mend for each in errors)

    def test_check_writes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """``check`` runs before a run has a folder."""
        monkeypatch.chdir(tmp_path)
        self.exporter().check(small(), self.profile)
        assert list(tmp_path.iterdir()) == []

    # -- lower

    @pytest.fixture(scope="class")
    @classmethod
    def lowered(cls, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
        """Write the small component's files once; no test changes them."""
        folder, component = tmp_path_factory.mktemp("lowered"), small()
        before = {name: value.clone() for name, value in component.module.state_dict().items()}
        kit = cls()
        return Lowered(folder, component, before, kit.exporter().lower(component, kit.profile, folder))

    def test_lower_writes_what_it_names(self, lowered: Lowered) -> None:
        """Artifacts lie in the folder, under the component's name."""
        assert lowered.artifacts
        for artifact in lowered.artifacts:
            assert isinstance(artifact, Artifact)
            assert artifact.path.exists()
            assert artifact.path.parent == lowered.folder
            assert artifact.path.name.startswith("small")
            assert artifact.precision in ("float32", "float16")
            json.dumps(dict(artifact.details))

    def test_lower_leaves_the_module_as_it_was(self, lowered: Lowered) -> None:
        """The same weights."""
        before, after = lowered.before, lowered.component.module.state_dict()
        assert before.keys() == after.keys()
        assert all(
            torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items()
        )

    def test_equal_components_give_equal_bytes(self, lowered: Lowered, tmp_path: Path) -> None:
        """Without this, checksums would mean nothing."""
        self.exporter().lower(small(), self.profile, tmp_path)
        written = []
        for folder in (lowered.folder, tmp_path):
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            written.append([(path.relative_to(folder), path.read_bytes()) for path in files])
        assert written[0]
        assert written[0] == written[1]

    # -- runner

    def test_runner_executes_the_file_not_the_module(self, lowered: Lowered, tmp_path: Path) -> None:
        """A damaged file is refused with a message, or gives another result."""
        exporter, inputs = self.exporter(), {"x": lowered.component.inputs["x"].numpy()}
        runner = exporter.runner(lowered.artifacts[0])
        right = runner(inputs, runner.arithmetics[0])["y"].copy()
        shutil.copytree(lowered.folder, tmp_path / "damaged")
        artifact = replace(lowered.artifacts[0], path=tmp_path / "damaged" / lowered.artifacts[0].path.name)
        paths = [artifact.path] if artifact.path.is_file() else [p for p in artifact.path.rglob("*") if p.is_file()]
        largest = max(paths, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        message, wrong = "", right
        try:
            wrong = exporter.runner(artifact)(inputs, runner.arithmetics[0])["y"]
        except UserError as error:
            message = str(error)
        noticed = artifact.path.name in message if message else not np.array_equal(wrong, right)
        assert noticed, f"the file was cut in half and nobody noticed, or nobody said which: {message}"

    def test_runner_states_what_it_is(self, lowered: Lowered) -> None:
        """Fidelity and arithmetics out of the known words; outputs by name, float32, the same twice."""
        runner = self.exporter().runner(lowered.artifacts[0])
        assert runner.fidelity in FIDELITIES
        assert runner.fidelity != "none", "nothing executes the file: no proof"
        assert runner.arithmetics
        assert set(runner.arithmetics) <= set(ARITHMETICS)
        given = {"x": lowered.component.inputs["x"].numpy()}
        first = {name: value.copy() for name, value in runner(given, runner.arithmetics[0]).items()}
        second = runner({"x": np.zeros_like(given["x"])}, runner.arithmetics[0])
        assert list(first) == ["y"], f"the component has the output y, the runner gives {list(first)}"
        assert first["y"].dtype == np.float32
        assert not np.array_equal(first["y"], second["y"]), "the outputs do not depend on the inputs"
        np.testing.assert_array_equal(runner(given, runner.arithmetics[0])["y"], first["y"])

    # -- the whole

    @pytest.mark.parametrize("make", [small, dit], ids=["small", "dit"])
    def test_exports_pass_their_gates(self, make: Any, tmp_path: Path) -> None:
        """On typical, zero, tiny, huge and padded inputs."""
        report = export_components(self.exporter(), [make()], self.profile, tmp_path / "out")
        assert report["passed"], report["rows"]
        assert {row["input_set"] for row in report["rows"]} >= {"typical", "zero", "tiny", "huge"}

    @pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
    def test_no_silent_failure(self, case: Case, tmp_path: Path) -> None:
        """Each case is caught, or its file is right on inputs that the proof never saw."""
        found = examine(case, self.exporter(), tmp_path / "out", self.profile)
        assert found.stage not in ("missed", "crashed"), f"{case.fault}: {found}"
        assert found.stage == "right" or found.message

    def test_an_edited_device_exports_again(self) -> None:
        """A profile from a file counts by its content, not by its path."""
        options = type(self.exporter().options)
        assert "device" in marked(options), 'write "device: Device" (from dit_compress.export import Device)'

    def test_verify_can_make_it_anew(self) -> None:
        """``verify`` makes the exporter out of the options that the manifest holds, on machines without torch."""
        made = self.exporter()
        again = type(made)(type(made.options)(**made.options.model_dump(mode="json")))
        assert again.profile == made.profile
        module = python.getmodule(type(made))
        assert module is not None
        at_the_top = [line for line in python.getsource(module).splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in at_the_top if line.split()[1].partition(".")[0] == "torch"], "imports torch"
