"""Phases that run each k-th step; roles that train a part of a module, or share one; values worked by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_loop import LR, Noisy, Weight, context_in, curves, killer, options, samples
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.train.loop import batch_index, fit, learning_rate
from dit_compress.train.memory import state_bytes
from dit_compress.train.objective import Phase, Role
from dit_compress.train.options import TrainOptions
from dit_compress.train.trainee import Trainee, trainees_of
from dit_compress.train.validation import _averaged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dit_compress.train.objective import Batch

# ------------------------------------------------------------------ each k-th step


def test_a_phase_runs_at_its_start_and_each_kth_step_after_it() -> None:
    phase = Phase("a", (), start=2, every=3)
    assert [step for step in range(12) if phase.runs(step)] == [2, 5, 8, 11]
    assert [phase.updates_before(step) for step in (0, 2, 3, 5, 6, 12)] == [0, 0, 1, 1, 2, 4]


def test_the_rate_counts_the_phases_own_updates() -> None:
    """Steps 10, 12, 14 … 28 are ten updates: four of warm-up, then the cosine over the other six."""
    given, phase = TrainOptions(steps=30, warmup=4, decay=0.1), Phase("a", (), start=10, every=2)
    assert [learning_rate(step, phase, given) for step in (10, 12, 14, 16, 18)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1]
    )
    assert learning_rate(24, phase, given) == pytest.approx(0.1 + 0.9 / 2)


class Seldom(Noisy):
    """The second role moves at steps 1, 3, 5 …"""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.phases = (Phase("a", ("first",)), Phase("b", ("second",), start=1, every=2))


def test_optimiser_and_average_count_the_phases_own_updates(tmp_path: Path) -> None:
    """Of four steps two are the second role's, ±lr each: 3 + lr, 3 + 2lr; average 3 + 0.25lr, then 3 + 0.6875lr."""
    objective = Seldom()
    fit(objective, samples(), options(4), context_in(tmp_path))
    assert objective.required == [("first",), ("first",), ("second",), ("first",), ("first",), ("second",)]
    assert ["b/loss" in line for line in curves(tmp_path)] == [False, True, False, True]
    assert objective.weight("second").tolist() == pytest.approx([3 + 0.6875 * LR], rel=1e-3)


def test_a_moving_average_over_more_updates_than_there_are_is_told(tmp_path: Path) -> None:
    """Five steps of the first role, two of the second: 0.7⁵ is little, 0.7² is not."""
    context = context_in(tmp_path)
    fit(Seldom(ema=0.7), samples(), options(5), context)
    assert [note.partition(" will")[0] for note in context.notes] == [
        "warning, after 5 steps the moving average of 'second'"
    ]
    assert "still be 49% the weights" in context.notes[0]


@pytest.mark.parametrize("died", [4, 5])
def test_a_resume_between_two_updates_equals_an_uninterrupted_training(tmp_path: Path, died: int) -> None:
    given = options(8, checkpoint_every=died, decay=0.1)
    whole, again = Seldom(), Seldom()
    fit(whole, samples(), given, context_in(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Seldom(watch=killer(died + 1)), samples(), given, context_in(tmp_path / "killed"))
    fit(again, samples(), given, context_in(tmp_path / "killed"))
    for role in whole.roles:
        assert torch.equal(whole.weight(role), again.weight(role))
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")


# ------------------------------------------------------------------ what a phase logged


class Told(Noisy):
    """The second phase remembers its losses, and keeps one from the curves."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[dict[str, float], float]] = []
        self.phases = (Phase("a", ("first",)), Phase("b", ("second",), every=2, tell=self.remember))

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        return {**super().loss(phase, batch), "place": torch.tensor(batch.sample, dtype=torch.float32).mean()}

    def remember(self, values: dict[str, float]) -> None:
        self.told.append((dict(values), float(self.weight("second").detach())))
        values.pop("place")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_phase_is_told_the_means_of_the_whole_batch_after_its_update(tmp_path: Path, accumulate: int) -> None:
    objective = Told()
    fit(objective, samples(), options(3, accumulate=accumulate), context_in(tmp_path))
    lines, drawn = curves(tmp_path), [batch_index(len(samples()), 2, 0, step, range(2)) for step in range(3)]
    assert [line["a/place"] for line in lines] == [sum(index) / 2 for index in drawn]
    assert [values["place"] for values, _ in objective.told] == [lines[0]["a/place"], lines[2]["a/place"]]
    assert not any("b/place" in line for line in lines)
    assert set(objective.told[0][0]) == {"loss", "place", "grad_second"}
    first, second = (weight for _, weight in objective.told)
    assert first == pytest.approx(3 + LR, rel=1e-3)
    assert second == pytest.approx(3 + 2 * LR, rel=1e-3)


# ------------------------------------------------------------------ a part of a module


class Net(nn.Module):
    """Two scales and a buffer that each call moves."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.gate = Weight(1.0, 2.0), Weight(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self) -> Tensor:
        self.calls += 1
        return self.base.value.sum() * self.gate.value.sum()


def test_names_decide_what_is_trained() -> None:
    net = Net().requires_grad_(requires_grad=False)
    trainee = trainees_of({"net": Role(net, lr=LR, only=("gate.*",), ema=0.5)})["net"]
    assert list(trainee.parameters) == list(trainee.average) == ["gate.value"]
    assert [name for name, value in net.named_parameters() if value.requires_grad] == ["gate.value"]
    assert set(trainee.tensors()) == {"net/weight/gate.value", "net/average/gate.value", "net/buffer/calls"}


def test_what_is_not_trained_is_neither_clipped_nor_moved() -> None:
    """A gradient left on a frozen tensor has no part in the norm."""
    net = Net()
    trainee = trainees_of({"net": Role(net, lr=LR, only=("base.*",), clip=1.0)})["net"]
    net.base.value.grad, net.gate.value.grad = torch.tensor([3.0, 4.0]), torch.tensor([100.0])
    assert trainee.update(1.0) == pytest.approx(5.0)
    assert net.gate.value.tolist() == [0.5]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    said = r"^Net: no parameter is named like 'gates\.\*'\. The names are such as 'base\.value', 'gate\.value'$"
    with pytest.raises(UserError, match=said):
        Trainee("net", Role(Net(), lr=LR, only=("gate.*", "gates.*")))


# ------------------------------------------------------------------ one module, several roles

ROLES = {
    "gates": {"lr": LR, "only": ("gate.*",), "ema": 0.5},
    "weights": {"lr": LR / 2, "only": ("base.*",)},
    "frozen": {},
}


class Shared:
    """One module: a role trains its gate, another its base each second step, and one that is frozen reads it."""

    def __init__(self, order: tuple[str, ...] = tuple(ROLES), watch: Callable[[int], None] = lambda _: None) -> None:
        self.net, self.watch = Net(), watch
        self.roles = {name: Role(self.net, **ROLES[name]) for name in order}
        self.phases = (Phase("gate", ("gates",)), Phase("base", ("weights",), every=2))
        self.required: set[tuple[str, ...]] = set()

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        self.watch(batch.step)
        moving = (name for name, value in self.net.named_parameters() if value.requires_grad)
        self.required.add((phase.name, *moving))
        return {"loss": (self.net() - batch.streams.normal("noise", ()).mean()).square()}


@pytest.mark.parametrize("order", [("gates", "weights", "frozen"), ("frozen", "weights", "gates")])
def test_the_order_of_roles_does_not_matter(tmp_path: Path, order: tuple[str, ...]) -> None:
    fit(expected := Shared(), samples(), options(5), context_in(tmp_path / "expected"))
    fit(made := Shared(order), samples(), options(5), context_in(tmp_path / "made"))
    assert made.required == {("gate", "gate.value"), ("base", "base.value")}
    assert made.net.training
    for one, other in zip(expected.net.state_dict().values(), made.net.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_roles_of_one_module_resume_bit_for_bit_and_save_every_tensor_once(tmp_path: Path) -> None:
    whole, again = Shared(), Shared()
    fit(whole, samples(), options(7, checkpoint_every=3), context_in(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Shared(watch=killer(5)), samples(), options(7, checkpoint_every=3), context_in(tmp_path / "killed"))
    fit(again, samples(), options(7, checkpoint_every=3), context_in(tmp_path / "killed"))
    for one, other in zip(whole.net.state_dict().values(), again.net.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    trainees = trainees_of(Shared().roles)
    assert [name for trainee in trainees.values() for name in trainee.tensors()] == [
        "gates/weight/gate.value",
        "gates/average/gate.value",
        "gates/buffer/calls",
        "weights/weight/base.value",
    ]


def test_two_optimisers_of_one_tensor_are_refused(tmp_path: Path) -> None:
    made = Shared()
    made.roles["weights"].only = ("base.*", "*.value")
    said = (
        "^the roles 'gates' and 'weights' would both train 'gate.value'. Let each train a part of its own "
        r"\(Role.only\), or make them one role that both phases update$"
    )
    with pytest.raises(UserError, match=said):
        fit(made, samples(), options(1), context_in(tmp_path))


def test_shared_weights_are_counted_once() -> None:
    """Three weights of four bytes; gradient, two moments and an average of one, gradient and two moments of two."""
    assert state_bytes(Shared().roles) == {"gates": 3 * 4 + 4 * 4, "weights": 3 * 2 * 4, "frozen": 0}


def test_averages_of_roles_that_share_a_module_are_looked_at_together() -> None:
    made = Shared()
    trainees = trainees_of(made.roles)
    trainees["gates"].average["gate.value"].fill_(7.0)
    with _averaged(trainees):
        assert made.net.gate.value.tolist() == [7.0]
        assert not made.net.training
    assert made.net.gate.value.tolist() == [0.5]
    assert made.net.training
