"""Torch-Pruning's importances over our axes, against the formulas written out; what can't apply is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from planted import USELESS_CHANNELS, latents_in, planted, problem_of
from planted import search as planted_search

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem, Selection
from dit_compress.search.trial import trial
from dit_compress.step.workplace import Workplace
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress_plugins.search_torch_pruning.groups import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from dit_compress.structure.facts import Axis

FFN, HEAD = "ffn:transformer_blocks.0.ff", "head:transformer_blocks.2.attn1"
BLOCK = "block:transformer_blocks"


def search(folder: Path, problem: SearchProblem, **options: Any) -> Selection:
    part = make_part("search", {"use": "torch_pruning", **options}, installed())
    return part.build().search(problem, latents_in(folder))


def scores(folder: Path, problem: SearchProblem, name: str, **options: Any) -> Tensor:
    return torch.tensor(search(folder, problem, **options).history["scores"][name])


def by_hand(problem: SearchProblem, name: str, measure: Callable[[Tensor], float], least: int = 2) -> Tensor:
    """Of every tensor and unit ``[tensors, units]``: a measure of what the unit owns, its places gathered one by one."""
    axis = next(axis for axis in problem.axes if axis.name == name)
    module, table = problem.denoiser.module, []
    if axis.blocks:
        names = [key for key, value in module.get_submodule(axis.blocks.block(0)).named_parameters()]
        for key in names:
            values = [module.get_parameter(f"{block}.{key}").detach() for block in axis.blocks.blocks]
            if values[0].ndim >= least:
                table.append([measure(value) for value in values])
    for member in axis.members:
        value = module.get_parameter(member.tensor).detach()
        if value.ndim >= least:
            slices = [torch.stack([value.select(member.dim, int(i)) for i in places]) for places in member.indices]
            table.append([measure(part) for part in slices])
    return torch.tensor(table)


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", [BLOCK, HEAD, FFN])
@pytest.mark.parametrize("p", [1, 2])
def test_group_magnitude_by_hand(tmp_path: Path, name: str, p: int) -> None:
    """Σ|w|^p of every unit, the mean over tensors, over the mean of all units."""
    problem = problem_of(tiny_denoiser("video_dit"))
    norms = by_hand(problem, name, lambda part: float(part.abs().pow(p).sum())).mean(dim=0)
    found = scores(tmp_path, problem, name, p=p)
    torch.testing.assert_close(found, norms / norms.mean(), rtol=1e-5, atol=0)
    assert len(set(found.tolist())) == len(found)


@pytest.mark.parametrize(
    ("reduction", "reduced"),
    [
        ("sum", lambda table: table.sum(dim=0)),
        ("max", lambda table: table.max(dim=0).values),
        ("prod", lambda table: table.prod(dim=0)),
        ("first", lambda table: table[0]),
        ("gate", lambda table: table[-1]),
    ],
)
def test_reductions_by_hand(tmp_path: Path, reduction: str, reduced: Callable[[Tensor], Tensor]) -> None:
    problem = problem_of(tiny_denoiser("video_dit"))
    table = by_hand(problem, FFN, lambda part: float(part.square().sum()))
    assert table.shape == (2, 64)
    found = scores(tmp_path, problem, FFN, reduction=reduction, normalizer=None)
    torch.testing.assert_close(found, reduced(table), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("normalizer", "normal"),
    [
        ("sum", lambda x: x / x.sum()),
        ("max", lambda x: x / x.max()),
        ("standarization", lambda x: (x - x.min()) / (x.max() - x.min())),
        ("gaussian", lambda x: (x - x.mean()) / x.std()),
    ],
)
def test_normalizers_by_hand(tmp_path: Path, normalizer: str, normal: Callable[[Tensor], Tensor]) -> None:
    problem = problem_of(tiny_denoiser("video_dit"))
    norms = by_hand(problem, HEAD, lambda part: float(part.square().sum())).mean(dim=0)
    found = scores(tmp_path, problem, HEAD, normalizer=normalizer)
    torch.testing.assert_close(found, normal(norms), rtol=1e-4, atol=1e-5)


def test_vectors_count_where_they_are_asked_for(tmp_path: Path) -> None:
    problem = problem_of(tiny_denoiser("video_dit"))
    with torch.no_grad():
        for parameter in problem.denoiser.module.parameters():
            parameter.add_(0.1)
    norms = by_hand(problem, FFN, lambda part: float(part.square().sum()), least=1)
    assert len(norms) == 3, "the bias of the first projection is the channels' too"
    found = scores(tmp_path, problem, FFN, bias=True, normalizer=None)
    torch.testing.assert_close(found, norms.mean(dim=0), rtol=1e-5, atol=0)


def test_lamp_by_hand(tmp_path: Path) -> None:
    """A score over the sum of those that are not below it: the largest has 1."""
    problem = problem_of(tiny_denoiser("video_dit"))
    norms = by_hand(problem, HEAD, lambda part: float(part.square().sum())).mean(dim=0)
    expected = torch.stack([norm / norms[norms >= norm].sum() for norm in norms])
    found = scores(tmp_path, problem, HEAD, importance="lamp")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert float(found.max()) == pytest.approx(1)


def test_fpgm_by_hand(tmp_path: Path) -> None:
    """The sum of distances to all other units, of |w|^p, mean over tensors."""
    problem = problem_of(tiny_denoiser("video_dit"))
    axis = next(axis for axis in problem.axes if axis.name == HEAD)
    table = []
    for member in axis.members:
        value = problem.denoiser.module.get_parameter(member.tensor).detach()
        if value.ndim > 1:
            parts = [value.index_select(member.dim, torch.tensor(places)).square() for places in member.indices]
            table.append([sum(float((one - other).norm()) for other in parts) for one in parts])
    expected = torch.tensor(table).mean(dim=0)
    found = scores(tmp_path, problem, HEAD, importance="fpgm", normalizer=None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_axis_of_every_model_has_scores(tmp_path: Path, name: str) -> None:
    problem = problem_of(tiny_denoiser(name))
    kept = search(tmp_path, problem).kept
    assert {axis: len(units) for axis, units in kept.items()} == dict(problem.keep)


# ------------------------------------------------------------------ gradients


def test_taylor_is_our_taylor_where_the_formulas_coincide(tmp_path: Path) -> None:
    """One sample, the down projection alone, products summed before their absolute value: ``|∂L/∂m_u|``."""
    problem = problem_of(tiny_denoiser("video_dit"))
    ours = make_part("search", {"use": "taylor", "batches": 1, "batch": 1}, installed())
    wanted = ours.build().search(problem, latents_in(tmp_path / "ours")).history["scores"]
    options = {"importance": "taylor", "objective": "flow", "batches": 1, "batch": 1}
    found = search(tmp_path, problem, **options, multivariable=True, reduction="gate", normalizer=None)
    for index in range(3):
        name = f"ffn:transformer_blocks.{index}.ff"
        assert max(wanted[name]) > 0
        torch.testing.assert_close(
            torch.tensor(found.history["scores"][name]), torch.tensor(wanted[name]), rtol=1e-3, atol=1e-8
        )


def gradients_by_hand(folder: Path, problem: SearchProblem, names: list[str], **probe: int) -> list[list[Tensor]]:
    """Of every batch and tensor."""
    options = make_part("search", {"use": "taylor", **probe}, installed()).options
    with trial(problem, latents_in(folder), options.objective, options) as measured:
        weights = [measured.module.get_parameter(name).requires_grad_() for name in names]
        found = [list(torch.autograd.grad(measured._loss(batch), weights)) for batch in measured.batches]
        for weight in weights:
            weight.requires_grad_(False)
    return found


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_gradients_by_hand(tmp_path: Path, importance: str) -> None:
    """Σ|w·g| with the mean gradient; Σ w²·h with the mean of each sample's squared gradient, not the last one's."""
    problem = problem_of(tiny_denoiser("video_dit"))
    names = [f"transformer_blocks.0.ff.net.{place}.weight" for place in ("0.proj", "2")]
    probe = {"batches": 2, "batch": 2} if importance == "taylor" else {"batches": 4, "batch": 1}
    each = gradients_by_hand(tmp_path / "hand", problem, names, **probe)
    up, down = (problem.denoiser.module.get_parameter(name).detach() for name in names)
    if importance == "taylor":
        means = [torch.stack(gradients).mean(dim=0) for gradients in zip(*each, strict=True)]
        table = [(up * means[0]).abs().sum(dim=1), (down * means[1]).abs().sum(dim=0)]
    else:
        means = [torch.stack(gradients).square().mean(dim=0) for gradients in zip(*each, strict=True)]
        table = [(up.square() * means[0]).sum(dim=1), (down.square() * means[1]).sum(dim=0)]
    options = {"importance": importance, "objective": "flow", "batches": 2, "batch": 2, "normalizer": None}
    found = scores(tmp_path, problem, FFN, **options)
    assert float(found.max()) > 0
    torch.testing.assert_close(found, torch.stack(table).mean(dim=0), rtol=1e-3, atol=1e-12)


def test_planted_channels_go_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    problem = problem_of(planted())
    before = {key: value.clone() for key, value in problem.denoiser.state_dict().items()}
    options = {"importance": "taylor", "objective": "flow", "batches": 2, "batch": 4, "reduction": "prod"}
    kept = search(tmp_path, problem, **options, normalizer=None).kept
    for index, channels in USELESS_CHANNELS.items():
        assert set(range(64)) - set(kept[f"ffn:transformer_blocks.{index}.ff"]) == set(channels)
    assert all(torch.equal(value, before[key]) for key, value in problem.denoiser.state_dict().items())
    assert not any(value.requires_grad or value.grad is not None for value in problem.denoiser.parameters())


def test_what_is_settled_stays_settled(tmp_path: Path) -> None:
    problem = problem_of(tiny_denoiser("video_dit"))
    fixed = replace(problem, fixed={BLOCK: (0, 2)})
    found = search(tmp_path, fixed, importance="taylor", objective="flow", batches=1, batch=2, normalizer=None)
    assert found.kept[BLOCK] == (0, 2)
    assert BLOCK not in found.history["scores"]
    assert set(found.history["scores"]["ffn:transformer_blocks.1.ff"]) == {0.0}, "a removed block has no gradient"


def test_groupwise_begins_from_it(tmp_path: Path) -> None:
    problem = problem_of(tiny_denoiser("video_dit"))
    init = make_part("search", "torch_pruning", installed())
    options = {"steps": 1, "lr": 1e-3, "groups": {"block": 1, "head": 1, "ffn": 1}, "init": init.as_data()}
    found = planted_search(tmp_path / "groupwise", problem, "groupwise", **options)
    assert found.kept == search(tmp_path, problem).kept


# ------------------------------------------------------------------ what can't apply


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "taylor"}, "'taylor' reads gradients: give 'objective', a distill part such as flow"),
        ({"importance": "hessian"}, "'hessian' reads gradients"),
        ({"importance": "fpgm", "objective": "flow"}, "'fpgm' takes no 'objective': it goes with taylor, hessian"),
        ({"importance": "hessian", "objective": "flow", "p": 1}, "'hessian' takes no 'p'"),
        ({"multivariable": True}, "'magnitude' takes no 'multivariable': it goes with taylor"),
        ({"importance": "lamp", "normalizer": "max"}, "'lamp' is a normalizer itself"),
        ({"importance": "activation"}, "'magnitude', 'taylor', 'hessian', 'lamp' or 'fpgm'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_part("search", {"use": "torch_pruning", **options}, installed())


def test_gradients_without_data_are_refused(tmp_path: Path) -> None:
    part = make_part("search", {"use": "torch_pruning", "importance": "taylor", "objective": "flow"}, installed())
    place = Workplace(name="prune", seed=0, folder=tmp_path)
    with pytest.raises(UserError, match="'taylor' looks at data, and a call without a recipe has none. Take one that"):
        part.build().search(problem_of(tiny_denoiser("video_dit")), place)


def test_a_loss_without_a_gradient_is_refused(tmp_path: Path) -> None:
    """A model that is its own teacher stands at a minimum: with exact zeros every normalised score is 0 / 0."""
    problem = problem_of(tiny_denoiser("video_dit"))
    fixed = replace(problem, fixed={BLOCK: (0, 2)})
    with pytest.raises(UserError, match=r"blocks\.1\.\S+: taylor gives scores that are not finite: the gradient of"):
        search(tmp_path, fixed, importance="taylor", objective="flow", batches=1, batch=2)


def test_distances_between_blocks_of_different_sizes_are_refused(tmp_path: Path) -> None:
    problem = problem_of(tiny_denoiser("video_dit"))
    block = problem.denoiser.module.transformer_blocks[1]
    block.ff.net[2].weight = torch.nn.Parameter(block.ff.net[2].weight[:, :32].detach())
    with pytest.raises(
        UserError, match=r"fpgm measures distances between blocks, and they differ in 'ff.net.2.weight'"
    ):
        search(tmp_path, blocks_of(problem), importance="fpgm")
    found = scores(tmp_path, blocks_of(problem), BLOCK, normalizer=None)
    norms = by_hand(problem, BLOCK, lambda part: float(part.square().sum())).mean(dim=0)
    torch.testing.assert_close(found, norms, rtol=1e-5, atol=0)


def blocks_of(problem: SearchProblem) -> SearchProblem:
    return replace(problem, axes=tuple(axis for axis in problem.axes if axis.blocks))


def test_units_without_matrices_are_refused(tmp_path: Path) -> None:
    problem = problem_of(tiny_denoiser("video_dit"))
    axis: Axis = next(axis for axis in problem.axes if axis.name == FFN)
    vectors = tuple(member for member in axis.members if member.tensor.endswith("bias"))
    bare = replace(problem, axes=(replace(axis, members=vectors),))
    with pytest.raises(UserError, match=rf"{FFN}: its units own no matrix that magnitude could score"):
        search(tmp_path, bare)
    assert scores(tmp_path, bare, FFN, bias=True, normalizer=None).shape == (64,)


def test_rows_are_what_units_own() -> None:
    """Of ``[2, 6]``, units of columns (0, 3) and (1, 4)."""
    from dit_compress.structure.facts import Axis, Member

    weight = torch.arange(12.0).reshape(2, 6)
    member = Member("w", 1, torch.tensor([[0, 3], [1, 4]]).numpy())
    (rows,) = rows_of({"w": weight}, Axis("x:w", "x", 2, "s", 0, (member,)), vectors=False).values()
    assert rows.tolist() == [[0, 6, 3, 9], [1, 7, 4, 10]]
