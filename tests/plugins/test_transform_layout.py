"""``transform: attention`` with a layout: prices, tables, a whole step with a small search, the file given back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dit_compress.core.errors import UserError
from dit_compress.measure.blocks import choices_of, counted, read_layout_table, with_seconds
from dit_compress.measure.latency import machine
from dit_compress.measure.memory import peak_bytes
from dit_compress.model.figures import count_flops, count_parameters
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.report.layouts import layout_pictures, read_layout
from dit_compress.structure.choices import LayoutProblem, row
from dit_compress.testing.steps import tiny_bundle, tiny_context
from dit_compress_plugins.transform_attention.places import replaceable

SIZE = (2, 4, 4)
BLOCKS = [f"transformer_blocks.{index}" for index in range(3)]


def step(**options):
    return make_part("transform", {"use": "attention", "fit": 1, **options}, installed()).build()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("layouts") / "bundle")


@pytest.fixture(scope="module")
def search(bundle):
    """A search over three blocks, each full, linconv or stride."""
    denoiser = bundle.denoiser()
    made = step(layout="dp", budget={"flops": "99%", "size": SIZE}, offer=["linconv", "stride"])
    return made.search(denoiser, replaceable(denoiser))


def test_prices_of_blocks_add_up_to_those_of_the_whole(search) -> None:
    """Of every layout of mixed kinds, exactly: parameters, FLOPs, bytes of weights and of the fullest moment."""
    choices, rest = choices_of(search.outline, search.kinds, SIZE)
    problem = LayoutProblem(choices, {}, rest=rest)
    layout = dict(zip(BLOCKS, ("stride", "linconv", "full"), strict=True))
    predicted, whole = problem.prices(layout), search.outline(layout)
    assert predicted.params == count_parameters(whole.module)
    assert predicted.flops == count_flops(whole, SIZE)
    example = whole.typical(1, SIZE, text_length=32)
    with torch.no_grad():
        peak = peak_bytes(whole.module, lambda: whole(*example))
    assert predicted.memory == peak / 2, "float32 here, bf16 there"
    assert counted(whole, [], SIZE)[1] == predicted


def table(**changes) -> dict:
    """Seconds by kind; the second block's linconv does not fit into the memory."""
    seconds = {block: {"full": 2.0, "linconv": 1.0, "stride": 1.5} for block in BLOCKS}
    seconds[BLOCKS[1]]["linconv"] = None
    return {"machine": "phone", "size": list(SIZE), "rest": 0.5, "blocks": seconds, **changes}


def test_a_table_of_another_machine_size_or_model_is_refused(search, tmp_path) -> None:
    file = tmp_path / "table.json"

    def refused(data: object, machine_name: str | None = "phone") -> str:
        file.write_text(json.dumps(data), "utf-8")
        with pytest.raises(UserError) as caught:
            read_layout_table(file, search.kinds, SIZE, machine_name)
        return str(caught.value).replace(f"{file}: ", "")

    assert refused(table(), None) == (
        f"the table was measured on 'phone', the budget is for {machine()!r}. "
        "Measure it there, or say 'machine: phone' beside 'table' if that is what is meant"
    )
    assert "for latents of [2, 4, 8] (T, H, W), the recipe's video has [2, 4, 4]" in refused(table(size=[2, 4, 8]))
    other = {block: kinds for block, kinds in table()["blocks"].items() if block != BLOCKS[2]}
    assert refused(table(blocks=other)) == (
        f"the table has no seconds of 'full' in {BLOCKS[2]!r}. "
        "Measure it for this model; null says that it does not fit into the memory"
    )
    assert refused([]).startswith("no latency table of layouts. Give")
    never = table(blocks={block: dict.fromkeys(kinds) for block, kinds in table()["blocks"].items()})
    with pytest.raises(UserError, match=f"no kind of '{BLOCKS[0]}' fits into the memory"):
        with_seconds(*choices_of(search.outline, search.kinds, SIZE), never)


def test_a_supplied_table_and_scores_settle_the_layout_in_the_plan(bundle, tmp_path) -> None:
    """Seconds 6.5 as it is, 5.0 allowed: linconv in block 0 and stride in block 1 do it; block 1 can't be linconv."""
    (tmp_path / "table.json").write_text(json.dumps(table()), "utf-8")
    scores = {block: {"linconv": 0.01 * (2 + i), "stride": 0.01 * (1 + i // 2)} for i, block in enumerate(BLOCKS)}
    (tmp_path / "scores.json").write_text(json.dumps(scores), "utf-8")
    budget = {"seconds": 5.0, "table": str(tmp_path / "table.json"), "machine": "phone", "size": SIZE}
    layout = {"use": "dp", "scores": str(tmp_path / "scores.json")}
    planned = step(layout=layout, budget=budget, offer=["linconv", "stride"]).plan(bundle.spec)
    assert planned.notes == ("layout LSF (F full, L linconv, S stride): 5 of 5 seconds",)
    assert [place["kind"] for place in planned.denoiser.log[-1]["data"]["places"]] == ["linconv", "stride"]
    with pytest.raises(
        UserError, match="no layout comes within the budget of 1 seconds; the nearest, LSL, takes 4 sec"
    ):
        step(layout=layout, budget={**budget, "seconds": 1}, offer=["linconv", "stride"]).plan(bundle.spec)


@pytest.fixture(scope="module")
def done(bundle, tmp_path_factory):
    """One step with a measured search, killed after its third layout and gone on with."""
    folder = tmp_path_factory.mktemp("searched")
    trial = {"steps": 1, "batch": 4, "samples": 2}
    given = step(layout="dp", budget={"flops": "99.8%", "seconds": 1000}, offer=["stride"], trial=trial)
    context = tiny_context(folder / "step", input=bundle)
    return given, context, given.run(context)


def test_a_step_writes_its_layout_with_predicted_and_measured_cost(done) -> None:
    _, context, result = done
    data = json.loads((context.folder / "layout.json").read_text("utf-8"))
    assert result.files == {"attention": "attention.json", "latency": "latency.json", "layout": "layout.json"}
    for name in ("params", "flops", "memory"):
        assert data["predicted"][name] == data["measured"][name]
    assert data["predicted"]["flops"] <= data["budget"]["flops"]
    assert min(data["measured"][name] for name in ("seconds", "present_seconds")) > 0
    kinds = [place["kind"] for place in result.bundle.spec.denoiser.log[-1]["data"]["places"]]
    assert data["row"].count("S") == len(kinds) == list(data["layout"].values()).count("stride") > 0
    assert len((context.folder / "trials.jsonl").read_text("utf-8").splitlines()) == 4 + (data["row"].count("S") > 1)


def test_a_layout_given_back_plans_and_logs_the_same_step(done, bundle) -> None:
    _, context, result = done
    again = step(layout={"use": "given", "path": str(context.folder / "layout.json")}, offer=["stride"])
    planned = again.plan(bundle.spec)
    assert list(planned.denoiser.log) == json.loads(json.dumps(result.bundle.spec.denoiser.log))
    data = json.loads((context.folder / "layout.json").read_text("utf-8"))
    assert planned.notes[0].startswith(f"layout {data['row']} (")


def test_measured_layouts_are_not_measured_again(done, bundle, monkeypatch) -> None:
    """What a killed step had measured lies in its folder; the search goes on from there to the same answer."""
    given, context, _ = done
    denoiser = bundle.denoiser()
    search = given.search(denoiser, replaceable(denoiser))
    monkeypatch.setattr(type(search), "loss", lambda _self, _context: lambda layout: pytest.fail(f"again: {layout}"))
    monkeypatch.setattr(
        "dit_compress_plugins.transform_attention.search.timed_table", lambda *_: pytest.fail("timed again")
    )
    before = json.loads((context.folder / "layout.json").read_text("utf-8"))
    layout, _ = search.settled(replace(bundle.spec, video=context.video), context)
    after = json.loads((context.folder / "layout.json").read_text("utf-8"))
    assert layout == before["layout"]
    assert after["prices"] == before["prices"]


def test_the_report_draws_blocks_and_front(done, tmp_path) -> None:
    _, context, _ = done
    data = json.loads((context.folder / "layout.json").read_text("utf-8"))
    data["front"] = [{"row": data["row"], "loss": 0.5, "flops": 1e6}, {"row": "SSS", "loss": 0.6, "flops": 9e5}]
    (tmp_path / "layout.json").write_text(json.dumps(data), "utf-8")
    blocks, front = layout_pictures(read_layout(tmp_path), "step")
    assert f'aria-label="Layout: {data["row"]}"' in blocks
    assert "S stride" in blocks
    assert 'aria-label="Loss against flops of 2 layouts"' in front
    assert read_layout(tmp_path / "none") is None


@pytest.mark.parametrize(("given", "why"), [
    ({}, "give either 'blocks' or 'layout'"),
    ({"layout": "dp", "blocks": {"*": "stride"}}, "give either 'blocks' or 'layout'"),
    ({"blocks": {"*": "stride"}, "budget": {"flops": 1}}, "'budget' belongs to 'layout'"),
    ({"layout": "dp", "budget": {"size": [1, 2, 2]}}, "give at least one of 'params', 'flops', 'seconds', 'memory'"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(given: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        step(**given)


def test_every_block_has_the_kinds_that_are_offered(search) -> None:
    assert search.kinds == dict.fromkeys(BLOCKS, ("full", "linconv", "stride"))
    choices, _ = choices_of(search.outline, search.kinds, SIZE)
    assert row(choices, dict.fromkeys(BLOCKS, "linconv")) == "LLL"
