"""``prune: modulation``: tables that are exact, low rank whose error is the tail of singular values, and their files."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from command import quiet
from modulated import FLUX, MIXED, QWEN, TABLES, UNMODULATED, build, called, recorded
from safetensors.torch import load_file, save_file
from toy import context_in, part

import dit_compress
from dit_compress.cli import app as cli
from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.cut import compact, example_output
from dit_compress.model.flow import Flow, euler
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.pruning.prune import prune_by_plan
from dit_compress.pruning.target import denoiser_of
from dit_compress.structure.compact import block_axis, relative_error
from dit_compress.structure.files.pruned import log_of
from dit_compress.structure.modulation import timetable_of
from dit_compress_plugins.prune_modulation.low_rank import RIDGE, low_rank, second_moment

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow(12)

SCHEDULE = (1.0, 0.75, 0.5, 0.25)


def decibel(candidate: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal over the mean square of the difference, capped where they are equal."""
    error = (candidate.double() - reference.double()).square().mean().clamp_min(1e-30)
    return float(10 * torch.log10(reference.double().abs().max().square() / error))


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize("name", TABLES)
def test_a_table_computes_the_same_for_any_input(name: str) -> None:
    """At every timestep of the table, on features that it was not made with."""
    denoiser, inputs = recorded(name)
    argument, count = TABLES[name]
    whole, times = copy.deepcopy(denoiser.module), (900.0, 437.5, 0.25)
    pruned = dit_compress.prune(denoiser.module, modulation={"table": times}, call=denoiser.recorded)
    tables = [item for item in pruned.modules() if type(item).__name__ == "TimeTable"]
    assert len(tables) == count
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in whole.parameters())
    for time in times:
        assert decibel(called(pruned, inputs, argument, time), called(whole, inputs, argument, time)) >= 100
    with pytest.raises(UserError, match="is not in the modulation's table"):
        called(pruned, inputs, argument, 500.0)


@pytest.mark.parametrize("name", MIXED)
def test_a_table_is_refused_where_more_is_read(name: str) -> None:
    denoiser, _ = recorded(name)
    before = copy.deepcopy(denoiser.module.state_dict())
    with pytest.raises(UserError, match="its modulation reads") as caught:
        dit_compress.prune(denoiser.module, modulation={"table": [1.0]}, call=denoiser.recorded)
    assert all(key in str(caught.value) for key in MIXED[name][0])
    assert all(torch.equal(value, before[key]) for key, value in denoiser.module.state_dict().items())


@pytest.mark.parametrize("name", UNMODULATED)
@pytest.mark.parametrize("modulation", [{"table": [1.0]}, {"rank": 4}])
def test_there_may_be_nothing_to_replace(name: str, modulation: dict[str, Any]) -> None:
    denoiser, _ = recorded(name)
    with pytest.raises(UserError, match="no modulation to replace was found"):
        dit_compress.prune(denoiser.module, modulation=modulation, call=denoiser.recorded)


def test_a_second_table_is_refused() -> None:
    denoiser, _ = recorded("DiTTransformer2DModel")
    with pytest.warns(UserWarning, match="linear alone: it reads class_labels, timestep, and 3 more"):
        dit_compress.prune(denoiser.module, modulation={"table": [239]}, call=denoiser.recorded)
    with pytest.raises(UserError, match="has a table already"):
        dit_compress.prune(denoiser.module, modulation={"table": [44]}, call=denoiser.recorded)


# ------------------------------------------------------------------ low rank


def drawn(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("outputs", "inputs"), [(24, 8), (8, 12)])
@pytest.mark.parametrize("biased", [True, False])
def test_what_is_lost_is_the_tail_of_singular_values(outputs: int, inputs: int, *, biased: bool) -> None:
    """By another root of the second moment, by torch's own SVD, and by what the result does to the inputs."""
    weight, x = drawn(outputs, inputs, 0), 2 + drawn(200, inputs, 1) * torch.linspace(0.1, 3, inputs)
    bias = drawn(1, outputs, 2)[0] if biased else None
    made = low_rank(weight, bias, x, 3)
    mean = x.mean(0) if biased else torch.zeros(inputs, dtype=x.dtype)
    moment = (x - mean).T @ (x - mean) / len(x)
    moment += RIDGE * moment.diagonal().mean() * torch.eye(inputs, dtype=x.dtype)
    squares, vectors = torch.linalg.eigh(moment)
    tail = torch.linalg.svdvals(weight @ (vectors * squares.sqrt()) @ vectors.T)
    expected = float((tail[3:].square().sum() / tail.square().sum()).sqrt())
    assert made.error == pytest.approx(expected, rel=1e-9)
    lost = weight - made.up_OR @ made.down_RI
    measured = torch.trace(lost @ moment @ lost.T) / torch.trace(weight @ moment @ weight.T)
    assert made.error == pytest.approx(float(measured.sqrt()), rel=1e-9)
    assert made.down_RI.norm(dim=1).tolist() == pytest.approx(made.up_OR.norm(dim=0).tolist())


def test_the_mean_is_exact_where_there_is_a_bias() -> None:
    weight, bias, x = drawn(6, 5, 0), drawn(1, 6, 1)[0], 3 + drawn(50, 5, 2)
    made = low_rank(weight, bias, x, 1)
    assert made.bias_O is not None
    mean = x.mean(0)
    assert torch.allclose(made.up_OR @ (made.down_RI @ mean) + made.bias_O, weight @ mean + bias, atol=1e-12)


def test_the_whole_rank_loses_nothing() -> None:
    weight, x = drawn(6, 5, 0), drawn(50, 5, 2)
    made = low_rank(weight, None, x, 5)
    assert made.error < 1e-7
    assert torch.allclose(made.up_OR @ made.down_RI, weight, atol=1e-12)


def test_inputs_on_a_line_need_one_rank_and_one_input_none_in_particular() -> None:
    line = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None] * drawn(1, 8, 3)
    weight = drawn(16, 8, 4)
    error = low_rank(weight, torch.zeros(16), line, 1).error
    assert error < 0.25, "all but the ridge lies on the line"
    assert low_rank(weight, torch.zeros(16), drawn(40, 8, 5), 1).error > 0.7
    assert torch.equal(second_moment(torch.zeros(1, 8, dtype=torch.float64)), torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("name", [QWEN, *MIXED])
def test_low_rank_in_real_classes(name: str) -> None:
    denoiser, inputs = recorded(name)
    whole = copy.deepcopy(denoiser.module)
    count = (MIXED[name] if name in MIXED else TABLES[name])[1]
    pruned: Any = dit_compress.prune(denoiser.module, modulation={"rank": 8}, call=denoiser.recorded)
    pairs = [
        path for path, item in pruned.named_modules() if (path + ".0.weight") in pruned.state_dict() and len(item) == 2
    ]
    factored = [path for path in pairs if f"{path}.weight" in whole.state_dict()]
    assert len([path for path in factored if "refiner" not in path]) == count
    assert {pruned.get_submodule(path)[0].out_features for path in factored} == {8}
    other, same = (called(module, inputs, "timestep", 100.0) for module in (pruned, whole))
    assert bool(other.isfinite().all())
    assert other.shape == same.shape
    assert all(parameter.requires_grad for parameter in pruned.parameters()), "it is healed like any pruned model"


def test_the_rank_must_make_something_smaller() -> None:
    denoiser, _ = recorded(QWEN)
    with pytest.raises(UserError, match="rank 1000 makes no linear of the modulation smaller") as caught:
        dit_compress.prune(denoiser.module, modulation={"rank": 1000}, call=denoiser.recorded)
    # 64 features to 6 · 64: 64 · 384 / (64 + 384).
    assert caught.value.problems[0][2] == "Give 54 at most"


@pytest.mark.parametrize("options", [{}, {"rank": 4, "table": [1.0]}, {"table": []}, {"rank": 0}, {"table": "all"}])
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        part("prune", "modulation", **options)


def test_units_and_modulation_are_two_calls() -> None:
    denoiser, _ = recorded(QWEN)
    with pytest.raises(UserError, match="at once"):
        dit_compress.prune(denoiser.module, modulation={"rank": 4}, remove={"block": 1}, call=denoiser.recorded)


# ------------------------------------------------------------------ steps of a recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the small Qwen-Image that is sampled in four steps."""
    module, _ = build(QWEN)
    folder = tmp_path_factory.mktemp("whole")
    module.save_pretrained(folder / "model")
    maker = part("model", "diffusers", path=str(folder / "model"))
    module = maker.create()
    spec = Spec(
        video=(1, 32, 32),
        flow=Flow(shift=1.0, num_steps=4),
        denoiser=ComponentSpec("model", "diffusers", maker.config_of(module)),
    )
    return write_bundle(folder / "bundle", spec, {"denoiser": module}, base=None, lineage=())


@pytest.mark.parametrize("options", [{"rank": 8}, {"table": "schedule"}, {"table": [1.0, 0.5]}])
def test_a_bundle_gives_the_model_back(whole: Bundle, tmp_path: Path, options: dict[str, Any]) -> None:
    """Plan and run log the same; what is loaded has every tensor, and computes the same."""
    step = part("prune", "modulation", **options)
    result = step.run(context_in(tmp_path, input=whole))
    bundle = Bundle.open(result.bundle.path)
    planned = step.plan(whole.spec)
    assert list(bundle.spec.need_denoiser().log) == json.loads(json.dumps(planned.need_denoiser().log))
    assert result.metrics["params_after"] < result.metrics["params_before"]
    assert f"{result.metrics['params_after']:,} parameters" in planned.notes[-1]
    assert json.loads((tmp_path / "modulation.json").read_text())["left"] == {}
    shapes = {name: value.shape for name, value in bundle.spec.need_denoiser().build().state_dict().items()}
    assert shapes == {name: value.shape for name, value in bundle.denoiser().module.state_dict().items()}
    assert torch.equal(example_output(bundle.denoiser()), example_output(bundle.denoiser()))


def test_a_few_step_student_samples_the_same_from_its_table(whole: Bundle, tmp_path: Path) -> None:
    bundle = Bundle.open(
        part("prune", "modulation", table="schedule").run(context_in(tmp_path, input=whole)).bundle.path
    )
    folded, plain = bundle.denoiser(), whole.denoiser()
    noise, _, cond = plain.example(2, plain.example_size)
    with torch.no_grad():
        samples = [euler(item, noise, cond, whole.flow.sigmas()) for item in (folded, plain)]
        assert whole.flow.sigmas() == (*SCHEDULE, 0.0)
        assert decibel(*samples) >= 100
        with pytest.raises(
            UserError, match=r"timestep 0.66\d* is not in the modulation's table, which holds 0.25, 0.5, 0.75, 1"
        ):
            euler(folded, noise, cond, (1.0, 2 / 3, 0.0))


def test_examples_are_at_sigmas_of_the_table(whole: Bundle, tmp_path: Path) -> None:
    bundle = Bundle.open(
        part("prune", "modulation", table="schedule").run(context_in(tmp_path, input=whole)).bundle.path
    )
    denoiser = bundle.denoiser()
    assert set(denoiser.typical(16, denoiser.example_size)[1].tolist()) <= set(SCHEDULE)
    assert denoiser.possible(torch.tensor([0.9, 0.6])).tolist() == [1.0, 0.5]
    assert whole.denoiser().possible(torch.tensor([0.9])).tolist() == [pytest.approx(0.9)]


@pytest.mark.parametrize("options", [{"rank": 8}, {"table": "schedule"}])
@pytest.mark.parametrize("level", ["block", "head", "ffn"])
def test_units_go_after_it_exactly(whole: Bundle, tmp_path: Path, options: dict[str, Any], level: str) -> None:
    bundle = Bundle.open(part("prune", "modulation", **options).run(context_in(tmp_path, input=whole)).bundle.path)
    step = part("prune", "trilevel", levels={level: {"remove": 1}}, search="magnitude")
    again = Bundle.open(step.run(context_in(tmp_path / "again", input=bundle)).bundle.path)
    assert len(again.spec.need_denoiser().log) == 2
    assert bool(example_output(again.denoiser()).isfinite().all())


def test_it_goes_after_units(whole: Bundle, tmp_path: Path) -> None:
    denoiser = whole.denoiser()
    axis = block_axis(denoiser.structure().main)
    entry = compact(denoiser, [axis], {axis.name: (0, 2)})
    context = context_in(tmp_path, input=whole)
    cut = Bundle.open(context.give({"denoiser": denoiser.module}, log=[entry]).bundle.path)
    again = part("prune", "modulation", table="schedule").run(context_in(tmp_path / "again", input=cut))
    found, wanted = (example_output(item) for item in (Bundle.open(again.bundle.path).denoiser(), cut.denoiser()))
    assert found.shape == wanted.shape
    sigma = torch.tensor([0.5, 1.0])
    latent, _, cond = cut.denoiser().example(2, denoiser.example_size)
    with torch.no_grad():
        pair = [Bundle.open(path).denoiser()(latent, sigma, cond) for path in (again.bundle.path, cut.path)]
    assert relative_error(*pair) < 1e-5


# ------------------------------------------------------------------ folders, LoRAs, the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Qwen-Image in bfloat16, as somebody's folder has it."""
    path = tmp_path_factory.mktemp("folder") / "whole"
    build(QWEN)[0].to(torch.bfloat16).save_pretrained(path, max_shard_size="400KB")
    return path


@pytest.mark.parametrize("modulation", [{"rank": 8}, {"table": list(SCHEDULE)}])
def test_a_folder_loads_without_the_package(folder: Path, tmp_path: Path, modulation: dict[str, Any]) -> None:
    given = dit_compress.prune(folder, modulation=modulation, out=tmp_path / "out")
    spec = importlib.util.spec_from_file_location("load_pruned_there", tmp_path / "out" / "load_pruned.py")
    assert spec is not None
    assert spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = alone
    spec.loader.exec_module(alone)
    loaded = alone.load(tmp_path / "out")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}
    state = given.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert not any(bool(value.isnan().any()) for value in loaded.state_dict().values())
    _, inputs = build(QWEN)
    outputs = [called(module.float(), inputs, "timestep", 0.5) for module in (loaded, given)]
    assert torch.equal(*outputs)
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(next((tmp_path / "again").glob("*.safetensors"))).keys() == state.keys()


def test_a_table_read_from_a_folder_is_pruned_as_any_model(folder: Path, tmp_path: Path) -> None:
    """How it is called is seen at one of the table's timesteps: it takes no other."""
    dit_compress.prune(folder, modulation={"table": list(SCHEDULE)}, out=tmp_path / "out")
    loaded = dit_compress.load(tmp_path / "out")
    dit_compress.prune(loaded, remove={"head": 1})
    assert timetable_of(loaded).times == tuple(sorted(SCHEDULE))
    assert loaded.transformer_blocks[0].attn.to_q.out_features == 48, "three heads of four"


def test_timesteps_are_no_sigmas_of_a_table(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a table's rows are sigmas, from 0 to 1, and 1000, 750 are none. Write noise"):
        dit_compress.prune(folder, modulation={"table": [1000, 750, 0.5]}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_memory_equals_the_one_on_disk(folder: Path, tmp_path: Path) -> None:
    live = dit_compress.prune(folder, modulation={"table": list(SCHEDULE)})
    dit_compress.save(live.to(torch.bfloat16), tmp_path / "live")
    written = dit_compress.prune(folder, modulation={"table": list(SCHEDULE)}, out=tmp_path / "out")
    saved = dit_compress.load(tmp_path / "live")
    assert all(torch.equal(value, written.state_dict()[name]) for name, value in saved.state_dict().items())
    assert len(log_of(saved)) == 1


def test_a_plan_is_of_one_checkpoint(folder: Path, tmp_path: Path) -> None:
    dit_compress.prune(folder, modulation={"rank": 8}, out=tmp_path / "out")
    with pytest.raises(UserError, match="out of the weights of one checkpoint"):
        prune_by_plan(tmp_path / "out", folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


LORAS = {
    "the modulation": ("transformer_blocks.1.img_mod.1", ("rank", "table")),
    "what stands before it": ("time_text_embed.timestep_embedder.linear_2", ("table",)),
    "an attention": ("transformer_blocks.1.attn.to_q", ()),
}


@pytest.mark.parametrize("place", LORAS)
@pytest.mark.parametrize("modulation", [{"rank": 8}, {"table": list(SCHEDULE)}])
def test_a_lora_follows_or_is_refused_by_name(
    folder: Path, tmp_path: Path, place: str, modulation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refused = LORAS[place]
    dit_compress.prune(folder, modulation=modulation, out=tmp_path / "out")
    weight = build(QWEN)[0].get_submodule(path).weight
    tensors = {
        f"transformer.{path}.lora_A.weight": torch.ones(2, weight.shape[1]),
        f"transformer.{path}.lora_B.weight": torch.ones(weight.shape[0], 2),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    arguments = [
        "prune",
        str(tmp_path / "lora.safetensors"),
        "--plan",
        str(tmp_path / "out"),
        "--out",
        str(tmp_path / "l.safetensors"),
    ]
    monkeypatch.setattr(sys, "argv", ["dit-compress", *arguments])
    if next(iter(modulation)) in refused:
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        assert not (tmp_path / "l.safetensors").exists()
    else:
        cli.main()
        assert load_file(tmp_path / "l.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank=8", "modulation: 8 linears → rank 8"),
        ("table=1.0,0.75", "modulation: 8 linears → tables of 2 timesteps"),
        ("table=x", "--modulation takes rank=N or table=SIGMA,…"),
        ("64", "--modulation takes rank=N or table=SIGMA,…"),
    ],
)
def test_the_command(
    folder: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dit-compress", "prune", str(folder), "--dry-run", "--modulation", text])
    status = 0
    try:
        cli.main()
    except SystemExit as left:
        status = int(left.code or 0)
    printed = capsys.readouterr()
    assert said in printed.out + quiet(printed.err)
    assert status == (2 if "takes" in said else 0)


def test_flux_goes_by_rank_on_disk_and_in_memory(tmp_path: Path) -> None:
    module, inputs = build(FLUX)
    denoiser, _ = denoiser_of(_observed(module, tmp_path))
    pruned = dit_compress.prune(denoiser, modulation={"rank": 4}, out=tmp_path / "out")
    saved = dit_compress.load(tmp_path / "out")
    state = saved.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pruned.state_dict().items())
    assert relative_error(*(called(item, inputs, "timestep", 0.5) for item in (pruned, saved))) < 1e-6


def _observed(module: Any, folder: Path) -> Any:
    """The module as the plugin loads it: it knows its convention then."""
    module.save_pretrained(folder / "model")
    return part("model", "diffusers", path=str(folder / "model")).create()
