"""Blocks by measured removals where Taylor misleads, the rest as by Taylor alone; what groupwise and budgets make of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from planted import USELESS_BLOCK, latents_in, made, overshooting, problem_of, searching

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.importance import top
from dit_compress.search.problem import Selection
from dit_compress.search.trial import trial
from dit_compress_plugins.prune_trilevel.evidence import ranked

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.plugin.options import Part
    from dit_compress.search.problem import SearchProblem

BLOCKS = "block:transformer_blocks"
RIGHT = tuple(index for index in range(3) if index != USELESS_BLOCK)


def mixed(**inner: Any) -> Part:
    part = make_part("search", {"use": "mixed"}, installed())
    return replace(part, options=part.options.model_copy(update=inner))


@pytest.fixture(scope="module")
def problem() -> SearchProblem:
    return problem_of(overshooting())


@pytest.fixture(scope="module")
def found(problem: SearchProblem, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Selection]:
    """What each search gives by the same loss and the same batches."""
    folder = tmp_path_factory.mktemp("found")
    taylor, greedy = (searching(use, "Halfway", batches=2) for use in ("taylor", "greedy"))
    blocks = replace(problem, axes=problem.axes[:1])
    return {
        "taylor": taylor.build().search(problem, latents_in(folder / "taylor")),
        "greedy": greedy.build().search(blocks, latents_in(folder / "greedy")),
        "mixed": mixed(blocks=greedy, rest=taylor).build().search(problem, latents_in(folder / "mixed")),
    }


def test_removing_the_block_that_taylor_would_keep_first_is_free(problem: SearchProblem, tmp_path: Path) -> None:
    part = searching("greedy", "Halfway", batches=2)
    with trial(problem, latents_in(tmp_path), part.options.objective, part.options) as measured:
        whole = measured.loss({})
        without = [measured.loss({BLOCKS: tuple({0, 1, 2} - {index})}) for index in range(3)]
        by = {word: ranked(measured, word) for word in ("taylor", "removals")}
    assert without[USELESS_BLOCK] == pytest.approx(whole, rel=1e-3)
    assert min(without[index] for index in RIGHT) > 10 * whole
    assert int(by["taylor"][BLOCKS].argmax()) == USELESS_BLOCK
    assert top(by["removals"][BLOCKS], 2) == RIGHT
    assert measured.count == 1 + 3 + 3 + 2, "three blocks, then two; the last one is not measured"
    for name in by["taylor"].keys() - {BLOCKS}:
        assert torch.equal(by["taylor"][name], by["removals"][name])


def test_blocks_by_one_search_and_the_rest_by_the_other(found: dict[str, Selection]) -> None:
    taylor, greedy, both = found["taylor"], found["greedy"], found["mixed"]
    assert USELESS_BLOCK in taylor.kept[BLOCKS]
    assert both.kept == {**taylor.kept, BLOCKS: RIGHT}
    scores = both.history["scores"]
    assert scores == {**taylor.history["scores"], BLOCKS: greedy.history["scores"][BLOCKS]}
    assert top(torch.tensor(scores[BLOCKS]), 2) == greedy.kept[BLOCKS] == RIGHT
    assert both.history["blocks"] == {key: greedy.history[key] for key in ("removed", "losses_measured")}
    assert both.history["blocks"]["losses_measured"] == 3


def test_a_learned_search_begins_from_it(problem: SearchProblem, tmp_path: Path) -> None:
    """After one step of a small rate the first logits decide: from Taylor they keep the block that is not needed."""
    taylor, greedy = (searching(use, "Halfway", batches=2) for use in ("taylor", "greedy"))
    kept = {}
    for name, init in (("taylor", taylor), ("mixed", mixed(blocks=greedy, rest=taylor))):
        options = {"use": "groupwise", "objective": "flow", "steps": 1, "lr": 1e-3, "batch": 4, "groups": {"block": 1}}
        part = make_part("search", {**options, "lora": None, "compare": None}, installed())
        given = part.options.model_copy(update={"objective": made("Halfway"), "init": init})
        kept[name] = replace(part, options=given).build().search(problem, latents_in(tmp_path / name)).kept[BLOCKS]
    assert USELESS_BLOCK in kept["taylor"]
    assert kept["mixed"] == RIGHT


def test_what_has_nothing_to_choose_is_not_asked(problem: SearchProblem, tmp_path: Path) -> None:
    """No loss is measured of blocks that all stay, or are settled: the rest is Taylor's with these."""
    part, context = mixed(), latents_in(tmp_path)
    keep = {**problem.keep, BLOCKS: 3}
    assert [name for name, *_ in part.build().asked(replace(problem, keep=keep))] == ["rest"]
    settled = replace(problem, fixed={BLOCKS: (0, 1)})
    found = part.build().search(settled, context)
    assert found.kept == make_part("search", "taylor", installed()).build().search(settled, context).kept
    assert found.kept[BLOCKS] == (0, 1)
    assert "blocks" not in found.history


def test_a_search_that_trains_is_refused() -> None:
    learnt = {"use": "groupwise", "objective": "flow"}
    with pytest.raises(UserError, match="'groupwise' trains, for all levels together: name one that is not learnt"):
        make_part("search", {"use": "mixed", "rest": learnt}, installed())
