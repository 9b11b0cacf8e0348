"""Nested widths: each inside the next, masked equals cut out, one bundle that gives any of them, refusals."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from toy import context_in, part, tiny_bundle

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.cut import example_output, masked_output
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load, make_part
from dit_compress.report.data import read_manifest
from dit_compress.run.plan import plan
from dit_compress.search.problem import Selection
from dit_compress.step.context import Result
from dit_compress.structure.compact import relative_error
from dit_compress.structure.files.pruned import log_of, remember_log, shapes_of
from dit_compress.structure.nesting import Nesting, narrow, nesting_of
from dit_compress.testing.models import tiny_denoiser
from dit_compress_plugins.prune_nested import NestedOptions
from dit_compress_plugins.prune_nested.step import Widths, order_of

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser

EVERY = ["head", "ffn", "block"]
RECIPE = Path(__file__).parents[2] / "recipes" / "family" / "elastic.yaml"


@cache
def nested(name: str) -> tuple[Denoiser, Widths, Nesting]:
    """A model whose units are in the order of a shuffle; read it, don't change it."""
    denoiser = tiny_denoiser(name)
    widths = Widths.of(NestedOptions(levels=EVERY), denoiser)
    drawn = torch.Generator().manual_seed(3)
    nesting, _ = widths.proven(denoiser, lambda axis: tuple(torch.randperm(axis.units, generator=drawn).tolist()))
    remember_log(denoiser.module, shapes_of(denoiser.module), [nesting.entry()])
    return denoiser, widths, nesting


# ------------------------------------------------------------------ widths


@pytest.mark.parametrize("name", ["video_dit", "ltx"])
def test_a_masked_width_equals_the_one_cut_out_after_training(name: str) -> None:
    """To 1e-10 in float64; ltx has norms across heads. The widths are proven before the weights move, as in a run."""
    made, widths, nesting = nested(name)
    denoiser = copy.deepcopy(made).double()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    whole = example_output(denoiser)
    for width in (0.375, 0.5):
        small = copy.deepcopy(denoiser)
        narrow(small.module, width)
        small.forget_structure()
        reference = masked_output(denoiser, widths.axes, nesting.kept(width))
        assert relative_error(example_output(small), reference) <= 1e-10
        assert relative_error(whole, reference) > 1e-3
        assert log_of(small.module)[-1]["data"]["width"] == width
    narrow(denoiser.module, 1.0)
    assert torch.equal(example_output(denoiser), whole)
    assert nesting_of(log_of(denoiser.module)) is None


@pytest.mark.parametrize("name", ["video_dit", "ltx"])
def test_a_smaller_width_has_units_of_a_larger_one(name: str) -> None:
    """4 heads, 64 channels in steps of 8 (192 of ltx), 3 blocks: 0.375 of them is 1.5, 24 and 1.125."""
    _, widths, nesting = nested(name)
    small, half = nesting.kept(0.375), nesting.kept(0.5)
    assert small.keys() == half.keys()
    for axis in widths.axes:
        assert set(small[axis.name]) <= set(half[axis.name]) < set(range(axis.units))
        found = len(small[axis.name]), len(half[axis.name])
        assert found == {"head": (2, 2), "block": (1, 2), "ffn": (axis.units * 3 // 8, axis.units // 2)}[axis.level]
    again = nesting_of(json.loads(json.dumps([nesting.entry()])))
    assert again is not None
    assert (again.levels, again.widths) == (tuple(EVERY), (0.375, 0.5, 1.0))
    assert [again.kept(width) for width in again.widths] == [small, half, {}]


def test_units_are_ranked_by_the_search() -> None:
    denoiser = tiny_denoiser("video_dit")
    axis = Widths.of(NestedOptions(), denoiser).axes[0]
    found = Selection({}, {"scores": {axis.name: [0.1, 0.4, 0.2, 0.4]}})
    assert order_of(axis, found, "any") == (1, 3, 2, 0)
    with pytest.raises(
        UserError, match=f"the search 'random' chooses units of {axis.name} and ranks none, .* Take one"
    ):
        order_of(axis, Selection({}), "random")


# ------------------------------------------------------------------ the bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    """A bundle with widths of heads and channels, by magnitude."""
    folder = tmp_path_factory.mktemp("nested")
    context = context_in(folder / "step", input=tiny_bundle(folder / "whole"))
    given = part("prune", "nested").run(context)
    assert given.bundle is not None
    return given.bundle, given.metrics


def test_nothing_is_removed_and_every_width_can_be_loaded(made: Any, tmp_path: Path) -> None:
    bundle, metrics = made
    whole, sizes = tiny_denoiser("video_dit").module, {}
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in
               bundle.denoiser().module.state_dict().items())  # fmt: skip
    for width in (0.375, 0.5, 1):
        module = dit_compress.load(bundle.path, width=width)
        sizes[f"{width:g}"] = {"params": sum(parameter.numel() for parameter in module.parameters())}
        spec = bundle.narrowed(width).spec.outline().module
        assert shapes_of(spec) == shapes_of(module)
    assert metrics["widths"] == sizes
    assert sizes["0.375"]["params"] < sizes["0.5"]["params"] < sizes["1"]["params"] == whole_size(whole)
    assert not dit_compress.load(bundle.path).training
    # A whole one that was saved as a folder holds its widths as well.
    dit_compress.save(dit_compress.load(bundle.path), tmp_path / "folder")
    found = dit_compress.load(tmp_path / "folder", width=0.5, cls=type(whole)).state_dict()
    wanted = dit_compress.load(bundle.path, width=0.5).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def whole_size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_width_that_is_none_is_named_with_those_there_are(made: Any, tmp_path: Path) -> None:
    bundle, _ = made
    with pytest.raises(
        UserError, match=r"it has no width 0\.6: nothing was trained for it. Give one of 0\.375, 0\.5, 1$"
    ):
        dit_compress.load(bundle.path, width=0.6)
    with pytest.raises(UserError, match=r"it has one width alone. Prune it to nested widths"):
        dit_compress.load(tiny_bundle(tmp_path / "plain").path, width=0.5)
    with pytest.raises(UserError, match=r"no width 0\.25"):
        part("prune", "nested", take=0.25).plan(bundle.spec)


def test_pruning_waits_for_one_width(made: Any, tmp_path: Path) -> None:
    bundle, _ = made
    said = r"pruning knows of one width, and the model has several \(0\.375, 0\.5, 1\).* Cut one width out first"
    for ways in ({}, {"out": tmp_path / "out"}):
        with pytest.raises(UserError, match=said):
            dit_compress.prune(bundle.path, remove={"head": 1}, **ways)
    with pytest.raises(UserError, match=said):
        dit_compress.prune(dit_compress.load(bundle.path), remove={"head": 1})
    with pytest.raises(UserError, match=r"it has nested widths already: 0\.375, 0\.5, 1. Cut one"):
        part("prune", "nested").plan(bundle.spec)
    taken = part("prune", "nested", take=0.5).run(context_in(tmp_path / "half", input=bundle)).bundle
    assert shapes_of(taken.denoiser().module) == shapes_of(dit_compress.load(bundle.path, width=0.5))
    assert taken.spec.need_denoiser().log == part("prune", "nested", take=0.5).plan(bundle.spec).need_denoiser().log
    module = dit_compress.prune(taken.path, remove={"head": 1})
    assert [entry["data"].get("width") for entry in log_of(module)] == [None, 0.5, None]
    assert whole_size(module) < whole_size(taken.denoiser().module)


# ------------------------------------------------------------------ recipes


def planned(tmp_path: Path, *steps: dict[str, Any]) -> Any:
    """What plan makes of the recipe's own steps up to its widths, and of further ones."""
    given = yaml.safe_load(RECIPE.read_text("utf-8"))
    given["steps"] = [*given["steps"][:3], *steps]
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False), "utf-8")
    return plan(load(path, installed()), deep=False)


def test_other_steps_that_change_the_model_are_refused_by_name(tmp_path: Path) -> None:
    said = "'{}' knows of one width, and the model has several .* Cut one width out first, by a prune step"
    units = {"use": "trilevel", "levels": {"head": {"remove": 1}}, "search": "magnitude"}
    for kind, options in (("distill", {"use": "flow"}), ("prune", units)):
        with pytest.raises(UserError, match=said.format(f"{kind}: {options['use']}")):
            planned(tmp_path, {kind: options})
    rows = planned(
        tmp_path,
        {"distill": {"use": "elastic"}, "name": "elastic"},
        {"prune": {"use": "nested", "take": 0.5}, "name": "half"},
        {"distill": {"use": "affine"}, "teacher": "elastic"},
        {"export": {"use": "diffusers", "widths": [0.375, 1]}, "input": "elastic"},
    )
    sizes = {row.node.name: row.after["params"] for row in rows}
    assert rows[3].notes == (f"parameters: 209,072 at 0.375, {sizes['half']:,} at 0.5, {sizes['teacher']:,} at 1",)
    assert sizes["elastic"] == sizes["teacher"]
    with pytest.raises(UserError, match=r"it has no width 0\.6"):
        planned(tmp_path, {"export": {"use": "diffusers", "widths": [0.6]}})
    with pytest.raises(UserError, match="the model has one width alone, and this trains several.* Put a step 'prune: "):
        planned(tmp_path, {"distill": {"use": "elastic"}, "input": "teacher"})
    with pytest.raises(
        UserError, match=r"'subnets: 3' are drawn of the widths 0\.375, 0\.5, 1, of which 2 .* 'subnets: 2'"
    ):
        planned(tmp_path, {"distill": {"use": "elastic", "subnets": 3}})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widths": [0.5, 0.375, 1]}, r"widths rise, and the last is 1, the whole model: \[0\.375, 0\.5, 1\]"),
        ({"widths": [0.375, 0.5]}, r"the last is 1, the whole model: \[0\.375, 0\.5, 1\]"),
        ({"levels": ["head", "head"]}, "'levels' names one of them twice"),
        ({"take": 0.5, "levels": ["head"]}, "'levels' belong.* to making widths, and 'take' cuts one out"),
        ({"take": 0.5, "search": "taylor"}, "'search' belong.* to making widths, and 'take' cuts one out"),
    ],
)
def test_options_that_can_not_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_part("prune", {"use": "nested", **options}, installed())


def test_widths_that_come_to_the_same_are_refused(tmp_path: Path) -> None:
    spec = tiny_bundle(tmp_path / "whole").spec
    with pytest.raises(UserError, match=r"the widths 0\.375 and 0\.5 keep the same units .* Leave one of them out"):
        part("prune", "nested", levels=["head"]).plan(spec)
    with pytest.raises(UserError, match=r"'levels' names 'hed'.* Did you mean 'head'\?"):
        part("prune", "nested", levels=["hed"]).plan(spec)


# ------------------------------------------------------------------ exports


def test_an_export_is_of_each_width_in_a_folder_of_its_own(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def export(_exporter: Any, context: Any, _flow: Any) -> Result:
        seen.append((context.folder.name, context.input.width, whole_size(context.input.denoiser().module)))
        return Result(metrics={"passed": True, "bytes": len(seen)}, files={"manifest": "files/manifest.json"})

    monkeypatch.setattr("dit_compress.export.step.export", export)
    bundle, metrics = made
    context = context_in(tmp_path / "step", input=bundle)
    found = part("export", "onnx", widths=[0.375, 1]).run(context)
    sizes = {width: figures["params"] for width, figures in metrics["widths"].items()}
    assert seen == [("width-0.375", 0.375, sizes["0.375"]), ("width-1", 1.0, sizes["1"])]
    assert found.metrics == {
        "passed": True,
        "widths": {"0.375": {"passed": True, "bytes": 1}, "1": {"passed": True, "bytes": 2}},
    }
    assert found.files["manifest-0.375"] == "width-0.375/files/manifest.json"
    part("export", "onnx").run(replace(context, folder=tmp_path / "step"))
    assert seen[2][:2] == ("step", None)
    flow = replace(bundle.spec, latent=None, video=None)
    with pytest.raises(UserError, match=r"no width 0\.6"):
        part("export", "onnx", widths=[0.6]).plan(flow)


def test_the_report_has_the_proofs_of_every_width(tmp_path: Path) -> None:
    for width in ("1", "0.375"):
        folder = tmp_path / f"width-{width}" / "files"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"passed": True, "artifacts": [{"component": "dit_step"}]}))
    found = read_manifest(tmp_path)
    assert found is not None
    assert [each["component"] for each in found["artifacts"]] == ["dit_step, width 0.375", "dit_step, width 1"]
    assert read_manifest(tmp_path / "none") is None


def test_a_key_without_widths_is_what_it_was() -> None:
    plain = make_part("export", "onnx", installed()).as_data(contents=True)
    assert "widths" not in plain
    widths = make_part("export", {"use": "onnx", "widths": [0.5]}, installed()).as_data(contents=True)
    assert widths == {**plain, "widths": [0.5]}
