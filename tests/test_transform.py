"""The contract of transforms, on a gate after each FFN: kept, and broken in every way that it is for."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from toy import part

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.cut import example_output
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin.kinds import hookimpl
from dit_compress.plugin.options import Options, Plugin
from dit_compress.plugin.registry import installed, use
from dit_compress.plugin.sources import Source
from dit_compress.structure.files.load_pruned import edits_of
from dit_compress.structure.files.pruned import log_of
from dit_compress.testing.models import tiny_denoiser
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress.testing.transforms import Made, Remembering, TransformContract

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.step.context import Context, Result


class GateOptions(Options):
    """Nothing to choose."""


@hookimpl
def transform() -> Plugin:
    return Plugin(name="ffn_gate", options=GateOptions, load="test_transform:Gates", summary="FFN · gate")


class Gates:
    """``y = FFN(x)·gate``, one learned number per channel."""

    def plan(self, spec: Spec) -> Spec:
        return replace(spec, denoiser=spec.need_denoiser().appended(self.entry(spec.build_denoiser().to("meta"))))

    def run(self, context: Context) -> Result:
        denoiser = context.input.denoiser()
        entry = self.entry(denoiser)
        self.replay(denoiser.module, entry["data"])
        with torch.no_grad():
            for name, value in denoiser.module.named_parameters():
                if name.endswith(".gate"):
                    value.copy_(torch.linspace(0.5, 1.5, len(value)))
        return context.give({"denoiser": denoiser.module}, log=[entry])

    def entry(self, denoiser: Denoiser) -> dict[str, Any]:
        data = {
            "places": [item.path for item in denoiser.structure().feed_forwards],
            "width": denoiser.stream_width(),
        }
        return {"name": "ffn_gate", "revision": 1, "data": data}

    @staticmethod
    def replay(module: nn.Module, data: Mapping[str, Any]) -> None:
        for place in data["places"]:
            owner = module.get_submodule(place)
            owner.register_parameter("gate", nn.Parameter(torch.ones(data["width"])))
            owner.register_forward_hook(lambda own, _args, output: output * own.gate)


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    """The plugin is installed."""
    use().add([Source("transform_ffn_gate", "tests", "", lambda: sys.modules[__name__])])
    assert installed().broken == []
    yield
    use()


class TestGates(TransformContract):
    def step(self) -> Any:
        return Gates()


class TestGatesOfWan(TestGates):
    """A model of diffusers."""

    def bundle(self, folder: Path) -> Bundle:
        return wan_bundle(folder)


def wan_bundle(folder: Path) -> Bundle:
    module = tiny_denoiser("wan").module
    config = part("model", "diffusers", class_name=type(module).__name__, config={}).config_of(module)
    spec = Spec(video=(9, 32, 32), denoiser=ComponentSpec("model", "diffusers", config))
    return write_bundle(folder, spec, {"denoiser": module}, base=None, lineage=())


@pytest.mark.parametrize("make", [tiny_bundle, wan_bundle])
def test_what_stands_behind_gates_can_still_be_pruned(make: Any, tmp_path: Path) -> None:
    before = make(tmp_path / "bundle")
    gated = made_by(TestGates(), before, tmp_path).bundle
    for level in ("block", "head", "ffn"):
        names = [
            [axis.name for axis in part("granularity", level).axes(bundle.denoiser().structure())]
            for bundle in (before, gated)
        ]
        assert names[0] == names[1] != []


# ------------------------------------------------------------------ the contract catches what it is for


class Unlogged(TestGates):
    """``run`` changes the model and says nothing."""

    def step(self) -> Any:
        class Step(Gates):
            def run(self, context: Context) -> Result:
                denoiser = context.input.denoiser()
                self.replay(denoiser.module, self.entry(denoiser)["data"])
                return context.give({"denoiser": denoiser.module})

        return Step()


class Tuples(TestGates):
    """The plan's data holds what JSON has not."""

    def step(self) -> Any:
        class Step(Gates):
            def entry(self, denoiser: Denoiser) -> dict[str, Any]:
                entry = super().entry(denoiser)
                return {**entry, "data": {**entry["data"], "places": tuple(entry["data"]["places"])}}

        return Step()


class Narrow(TestGates):
    """The plan takes another width than ``run``."""

    def step(self) -> Any:
        class Step(Gates):
            def plan(self, spec: Spec) -> Spec:
                made = super().plan(spec).need_denoiser()
                log = [*made.log[:-1], {**made.log[-1], "data": {**made.log[-1]["data"], "width": 1}}]
                return replace(spec, denoiser=replace(made, log=tuple(log)))

        return Step()


@pytest.mark.parametrize(
    ("broken", "test", "said"),
    [
        (Unlogged, "test_the_plan_logs_what_run_logs", "run logs nothing"),
        (Narrow, "test_the_plan_logs_what_run_logs", "plan and run log different entries"),
        (Tuples, "test_the_log_is_json_and_names_the_plugin", "data is no JSON"),
    ],
)
def test_a_broken_log_fails(broken: type[TestGates], test: str, said: str, tmp_path: Path) -> None:
    case = broken()
    before = case.bundle(tmp_path / "bundle")
    given = {"before": before} | ({"made": made_by(case, before, tmp_path)} if "plan" in test else {})
    with pytest.raises(AssertionError, match=said):
        getattr(case, test)(**given)


def made_by(case: TransformContract, before: Bundle, folder: Path) -> Any:
    context = Remembering(**vars(tiny_context(folder / "step", input=before)))
    bundle = case.step().run(context).bundle
    assert bundle is not None
    return Made(context.given["denoiser"], bundle)


def other_replay(module: nn.Module, data: Mapping[str, Any]) -> None:
    """The parameters are there, and nobody uses them."""
    for place in data["places"]:
        module.get_submodule(place).register_parameter("gate", nn.Parameter(torch.ones(data["width"])))


def forgetful_replay(module: nn.Module, data: Mapping[str, Any]) -> None:
    """The last gate is left out."""
    data["places"].pop()
    other_replay(module, data)


@pytest.mark.parametrize(
    ("replay", "test", "said"),
    [
        (other_replay, "test_the_bundle_computes_what_run_gave", "replay computes something else than run"),
        (forgetful_replay, "test_replay_without_weights_gives_what_run_made", "replay and run make different models"),
        (forgetful_replay, "test_replay_can_be_repeated", "replay gives another model"),
    ],
)
def test_a_broken_replay_fails(
    replay: Any, test: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = TestGates()
    before = case.bundle(tmp_path / "bundle")
    made = made_by(case, before, tmp_path)
    monkeypatch.setattr(Gates, "replay", staticmethod(replay))
    given = {"made": made, "before": before} if "bundle" in test else {"made": made}
    with pytest.raises(AssertionError, match=said):
        getattr(case, test)(**given)


# ------------------------------------------------------------------ folders of pruned models


SAID = (
    "the transform 'ffn_gate' needs its plugin, and a pruned folder loads without any. "
    "Keep the model as a bundle, which dit_compress.load opens"
)


@pytest.mark.parametrize("make", [tiny_bundle, wan_bundle])
@pytest.mark.parametrize("prune", [False, True])
def test_a_folder_that_could_not_be_loaded_is_not_written(make: Any, prune: bool, tmp_path: Path) -> None:
    """Neither the gated model nor, after that, a pruned one; as a bundle both are whole."""
    made = made_by(TestGates(), make(tmp_path / "bundle"), tmp_path).bundle
    if prune:
        dit_compress.prune(made.path, remove={"head": 1}, out=tmp_path / "pruned")
        made = Bundle.open(tmp_path / "pruned")
    names = ["ffn_gate", "prune"][: 1 + prune]
    module: Any = dit_compress.load(made.path)
    assert [entry["name"] for entry in log_of(module)] == names
    expected = example_output(made.denoiser())
    for save in (module.save_pretrained, lambda folder: dit_compress.save(module, folder)):
        with pytest.raises(UserError) as caught:
            save(tmp_path / "folder")
        assert str(caught.value) == SAID
    assert not (tmp_path / "folder").exists()
    assert torch.equal(example_output(Bundle.open(made.path).denoiser()), expected)


def test_pruning_in_memory_remembers_the_whole_log(tmp_path: Path) -> None:
    made = made_by(TestGates(), wan_bundle(tmp_path / "bundle"), tmp_path).bundle
    module: Any = dit_compress.prune(made.path, remove={"head": 1})
    assert [entry["name"] for entry in log_of(module)] == ["ffn_gate", "prune"]
    with pytest.raises(UserError, match=r"^the transform 'ffn_gate' needs its plugin"):
        module.save_pretrained(tmp_path / "folder")


def test_a_plan_with_a_transform_is_refused_where_it_is_read() -> None:
    record = {"log": [{"name": "prune", "data": {"edits": []}}, {"name": "ffn_gate", "data": {}}]}
    assert edits_of({"log": record["log"][:1]}) == []
    with pytest.raises(UserError) as caught:
        edits_of(record, "pruning.json")
    assert str(caught.value) == f"pruning.json: {SAID}"
