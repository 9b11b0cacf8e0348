"""The one training loop: rates, averages, clipping, phases, checkpoints; values worked by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.context import Context
from dit_compress.step.workplace import Stopped
from dit_compress.step.world import World
from dit_compress.train import checkpoint
from dit_compress.train.loop import fit, learning_rate
from dit_compress.train.objective import Phase, Role
from dit_compress.train.options import TrainOptions
from dit_compress.train.trainee import Trainee

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dit_compress.train.objective import Batch

LR = 0.1


def context_in(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(
        name="step",
        seed=0,
        folder=folder,
        cache=folder,
        bundles={},
        names={},
        parts={},
        record={},
        video=None,
        trackers=[make_part("tracker", "jsonl", installed())],
    )


def samples() -> Samples:
    return Samples(np.linspace(-1, 1, 8, dtype=np.float32).reshape(8, 1), [""] * 8, {}, pixels=False)


def curves(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


class Weight(nn.Module):
    """A few numbers."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(values or (0.0,)))


class Noisy:
    """Two roles; each phase pulls its own weight to the batch, with noise of the batch's streams."""

    def __init__(
        self, *, start: int = 0, ema: float | None = 0.75, watch: Callable[[int], None] = lambda _: None
    ) -> None:
        self.roles = {
            "first": Role(Weight(1.0, 2.0), lr=LR, ema=ema),
            "second": Role(Weight(3.0), lr=LR, ema=ema),
            "teacher": Role(Weight(9.0)),
        }
        self.phases = (Phase("a", ("first",)), Phase("b", ("second",), start=start))
        self.watch = watch
        self.required: list[tuple[str, ...]] = []

    def weight(self, role: str) -> Tensor:
        return self.roles[role].module.value

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        self.watch(batch.step)
        self.required.append(tuple(name for name in self.roles if self.weight(name).requires_grad))
        target = batch.x0.mean() + batch.streams.normal("noise", ()).mean() + self.weight("teacher").sum()
        return {"loss": sum((self.weight(name) - target).square().sum() for name in ("first", "second"))}


def options(steps: int, **more: Any) -> TrainOptions:
    return TrainOptions(steps=steps, batch=2, warmup=0, **more)


# ------------------------------------------------------------------ the rate


def test_the_rate_rises_then_falls_along_a_cosine() -> None:
    given = TrainOptions(steps=14, warmup=4, decay=0.1)
    assert [learning_rate(step, Phase("a", ()), given) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert learning_rate(9, Phase("a", ()), given) == pytest.approx(0.1 + 0.9 / 2)
    assert learning_rate(14, Phase("a", ()), given) == pytest.approx(0.1)


def test_a_phase_that_starts_later_warms_up_on_its_own() -> None:
    given = TrainOptions(steps=24, warmup=4, decay=0.1)
    assert learning_rate(10, Phase("a", (), 10), given) == pytest.approx(0.2)
    assert learning_rate(19, Phase("a", (), 10), given) == pytest.approx(0.1 + 0.9 / 2)


def test_without_decay_the_rate_stays() -> None:
    given = TrainOptions(steps=3, warmup=0)
    assert [learning_rate(step, Phase("a", ()), given) for step in range(3)] == [1.0, 1.0, 1.0]


# ------------------------------------------------------------------ one role


def trained(*gradients: float, ema: float | None = None, clip: float | None = None) -> Trainee:
    trainee = Trainee("role", Role(Weight(0.0), lr=LR, ema=ema, clip=clip))
    for gradient in gradients:
        trainee.parameters["value"].grad = torch.tensor([gradient])
        trainee.update(1.0)
    return trainee


def test_adamw_under_a_constant_gradient_steps_by_the_rate() -> None:
    assert trained(1.0, 1.0).parameters["value"].item() == pytest.approx(-2 * LR, rel=1e-5)


def test_the_rates_factor_scales_the_step() -> None:
    trainee = trained()
    trainee.parameters["value"].grad = torch.tensor([1.0])
    trainee.update(0.25)
    assert trainee.parameters["value"].item() == pytest.approx(-LR / 4, rel=1e-5)


def test_the_moving_average_accumulates() -> None:
    """Weights -lr, -2lr; averages 0.75·0 + 0.25·(-lr) = -0.25lr, then 0.75·(-0.25lr) + 0.25·(-2lr) = -0.6875lr."""
    trainee = trained(1.0, 1.0, ema=0.75)
    assert trainee.average["value"].item() == pytest.approx(-0.6875 * LR, rel=1e-5)
    trainee.use_average()
    assert trainee.parameters["value"].item() == pytest.approx(-0.6875 * LR, rel=1e-5)


@pytest.mark.parametrize(("ema", "said"), [(0.99, [("first", "97%"), ("second", "98%")]), (0.5, []), (None, [])])
def test_an_average_over_more_steps_than_there_are_is_told(
    tmp_path: Path, ema: float | None, said: list[tuple[str, str]]
) -> None:
    """Three steps, two of the second role: 0.99³ and 0.99² are left; 0.5² and 0.5³ are little."""
    context = context_in(tmp_path)
    fit(Noisy(start=0 if ema == 0.5 else 1, ema=ema), samples(), options(3), context)
    assert context.notes == [
        f"warning, after 3 steps the moving average of {role!r} will still be {share} the weights it began with. "
        f"Lower 'ema' (now {ema}), or raise 'steps'"
        for role, share in said
    ]


def test_gradients_are_clipped_to_the_norm_and_the_norm_is_told() -> None:
    trainee = Trainee("role", Role(Weight(0.0, 0.0), lr=LR, clip=1.0))
    parameter = trainee.parameters["value"]
    parameter.grad = torch.tensor([3.0, 4.0])
    assert trainee.update(1.0) == pytest.approx(5.0)
    assert trainee.optimizers[0].state[parameter]["exp_avg"].tolist() == pytest.approx([0.06, 0.08], rel=1e-4)


class Net(nn.Module):
    """A linear in a block, one outside."""

    def __init__(self) -> None:
        super().__init__()
        self.lead_in = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3))])


def test_muon_moves_the_blocks_matrices_along_an_orthogonal_matrix() -> None:
    """Of a gradient that is orthogonal up to its scale, the orthogonal factor is itself; all else steps by AdamW."""
    torch.manual_seed(0)
    net = Net()
    trainee = Trainee("net", Role(net, lr=LR, muon_lr=0.5, clip=None))
    rotation = torch.linalg.qr(torch.randn(3, 3))[0]
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    for name, value in net.named_parameters():
        value.grad = 7 * rotation if name == "blocks.0.0.weight" else torch.ones_like(value)
    trainee.update(0.5)
    moved = {name: before[name] - value for name, value in net.named_parameters()}
    matrix = moved.pop("blocks.0.0.weight")
    scale = float(matrix.norm() / rotation.norm())
    assert 0.25 * 0.65 < scale < 0.25 * 1.25  # Newton-Schulz in five steps leaves singular values of 0.7 … 1.2
    torch.testing.assert_close(matrix / scale, rotation, atol=0.02, rtol=0)
    for value in moved.values():
        torch.testing.assert_close(value, torch.full_like(value, LR / 2), rtol=1e-3, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(UserError, match="the gradient of role 'role' is not finite. Lower the learning rate"):
        trained(float("nan"))


@pytest.mark.parametrize(
    ("given", "mend"),
    [
        ({"lr": 1e-4 * 1000, "weight_decay": 1e9}, "look at 'lr: 0.1', and at the model that goes in"),
        ({"lr": 1e-4 * 999}, "look at the options of this step, and at the model that goes in"),
    ],
)
def test_a_first_loss_that_is_not_finite_names_the_options_that_are_far_out(
    given: dict[str, Any], mend: str, tmp_path: Path
) -> None:
    """From a thousand times the default on, where that is no zero; clips and learning rate are not blamed."""
    objective: Any = Noisy()
    objective.loss = lambda phase, batch: {"loss": torch.tensor(float("nan"), requires_grad=True)}
    with pytest.raises(UserError, match="is nan at step 0. Nothing was trained yet: ") as caught:
        fit(objective, samples(), TrainOptions(steps=2, batch=2, **given), context_in(tmp_path))
    assert mend in str(caught.value)


def test_half_precision_masters_are_refused() -> None:
    with pytest.raises(UserError, match=r"role 'student' would train \['torch.bfloat16'\] weights"):
        Trainee("student", Role(Weight().to(torch.bfloat16), lr=LR))


def test_a_rate_without_weights_is_a_mistake_in_the_code() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        Trainee("student", Role(Weight().requires_grad_(requires_grad=False), lr=LR))


# ------------------------------------------------------------------ phases


def test_only_the_roles_of_a_phase_move(tmp_path: Path) -> None:
    objective = Noisy(start=99, ema=None)
    fit(objective, samples(), options(3), context_in(tmp_path))
    assert objective.required == [("first",)] * 3
    assert objective.weight("second").tolist() == [3.0]
    assert objective.weight("teacher").tolist() == [9.0]
    assert objective.weight("first").tolist() != [1.0, 2.0]


def test_a_phase_runs_from_its_start(tmp_path: Path) -> None:
    objective = Noisy(start=2)
    fit(objective, samples(), options(4), context_in(tmp_path))
    assert objective.required == [("first",)] * 2 + [("first",), ("second",)] * 2
    assert ["b/loss" in line for line in curves(tmp_path)] == [False, False, True, True]


def test_an_average_moves_only_with_its_own_role(tmp_path: Path) -> None:
    """Adam's first step is ±lr, whatever the gradient: 3 → 3 + lr, and the average a quarter of it, once."""
    objective = Noisy(start=3)
    fit(objective, samples(), options(4), context_in(tmp_path))
    assert objective.weight("second").tolist() == pytest.approx([3 + LR / 4], rel=1e-5)


def test_dropout_is_off_since_it_would_draw_from_torchs_state(tmp_path: Path) -> None:
    objective = Noisy()
    objective.roles["first"].module.add_module("dropout", nn.Dropout(0.5))
    fit(objective, samples(), options(1), context_in(tmp_path))
    assert objective.roles["first"].module.dropout.p == 0.0


def test_a_loss_that_is_not_finite_is_an_error_with_phase_and_step(tmp_path: Path) -> None:
    objective = Noisy()
    with torch.no_grad():
        objective.weight("teacher").fill_(float("inf"))
    with pytest.raises(UserError, match="the loss of phase 'a' is inf at step 0"):
        fit(objective, samples(), options(2), context_in(tmp_path))


# ------------------------------------------------------------------ checkpoints


def killer(step: int) -> Callable[[int], None]:
    def watch(now: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    return watch


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Noisy(start=2)
    fit(whole, samples(), options(7, checkpoint_every=2), context_in(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Noisy(start=2, watch=killer(5)), samples(), options(7, checkpoint_every=2), context_in(tmp_path / "killed"))
    steps: list[int] = []
    again = Noisy(start=2, watch=steps.append)
    fit(again, samples(), options(7, checkpoint_every=2), context_in(tmp_path / "killed"))
    assert sorted(set(steps)) == [4, 5, 6]
    for role in whole.roles:
        assert torch.equal(whole.weight(role), again.weight(role))
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")
    assert [line["step"] for line in curves(tmp_path / "killed")] == list(range(7))


class Convolved(Noisy):
    """As VAEs train fastest: weights in channels_last, whose moments must lie in memory as they do."""

    def __init__(self, watch: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(watch=watch)
        module = Weight()
        values = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        module.value = nn.Parameter(values)
        self.roles = {"first": Role(module, lr=LR, ema=0.5), "teacher": Role(Weight(9.0))}
        self.phases = (Phase("a", ("first",)),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        self.watch(batch.step)
        return {"loss": (self.weight("first") - batch.streams.normal("noise", (2, 3, 2, 2)).mean(0)).square().sum()}


def test_a_resumed_training_keeps_the_memory_format(tmp_path: Path) -> None:
    """A fused AdamW walks through memory: moments in another order would meet the wrong weights."""
    whole, again = Convolved(), Convolved()
    fit(whole, samples(), options(7, checkpoint_every=2), context_in(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Convolved(watch=killer(5)), samples(), options(7, checkpoint_every=2), context_in(tmp_path / "killed"))
    fit(again, samples(), options(7, checkpoint_every=2), context_in(tmp_path / "killed"))
    assert torch.equal(whole.weight("first"), again.weight("first"))


class Matrix(Noisy):
    """A block's matrix under Muon and what stands outside under AdamW."""

    def __init__(self, watch: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(watch=watch)
        torch.manual_seed(0)
        self.net = Net()
        self.roles = {"first": Role(self.net, lr=LR, muon_lr=0.02, ema=0.5), "teacher": Role(Weight(9.0))}
        self.phases = (Phase("a", ("first",)),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        self.watch(batch.step)
        hidden = self.net.lead_in(batch.streams.normal("noise", (3,)))
        return {"loss": (self.net.blocks[0](hidden) - 1).square().mean()}


def test_a_resumed_training_under_muon_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, again = Matrix(), Matrix()
    fit(whole, samples(), options(7, checkpoint_every=2), context_in(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Matrix(watch=killer(5)), samples(), options(7, checkpoint_every=2), context_in(tmp_path / "killed"))
    fit(again, samples(), options(7, checkpoint_every=2), context_in(tmp_path / "killed"))
    for one, other in zip(whole.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(one, other)


class Remembering(Noisy):
    """What a discriminator may be made of: layers that remember things from pass to pass."""

    def __init__(self, watch: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(watch=watch)
        torch.manual_seed(0)
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(norm(nn.Linear(3, 3)), nn.BatchNorm1d(3), nn.Linear(3, 3))
        self.net.register_buffer("constant", torch.zeros(2), persistent=False)
        self.roles = {"first": Role(self.net, lr=LR, ema=0.5), "teacher": Role(Weight(9.0))}
        self.phases = (Phase("a", ("first",)),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        self.watch(batch.step)
        return {"loss": (self.net(batch.streams.normal("noise", (4, 3)).flatten(0, 1)) - 1).square().mean()}


def test_a_resumed_training_remembers_what_layers_do(tmp_path: Path) -> None:
    whole, again = Remembering(), Remembering()
    fit(whole, samples(), options(7, checkpoint_every=2), context_in(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(Remembering(watch=killer(5)), samples(), options(7, checkpoint_every=2), context_in(tmp_path / "killed"))
    fit(again, samples(), options(7, checkpoint_every=2), context_in(tmp_path / "killed"))
    one, other = whole.net.state_dict(), again.net.state_dict()
    assert int(one["1.num_batches_tracked"]) == 7
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def killed_at_5(folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        fit(Noisy(watch=killer(5)), samples(), options(7, checkpoint_every=2), context_in(folder))
    return folder / "checkpoints"


def test_two_checkpoints_stay(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(Noisy(watch=killer(8)), samples(), options(9, checkpoint_every=2), context_in(tmp_path))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize("damage", ["cut", "changed", "state"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    place = killed_at_5(tmp_path) / "step-00000004"
    tensors = next(place.glob("*.safetensors"))
    if damage == "state":
        (place / "state.json").write_text("{")
    else:
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content if damage == "changed" else content[:-4])
    said: list[str] = []
    found = checkpoint.newest(tmp_path / "checkpoints", None, World(), said.append)
    assert found is not None
    assert found.step == 2
    seen = {
        "cut": f"{tensors.name} has {tensors.stat().st_size} bytes, {tensors.stat().st_size + 4} were written",
        "changed": f"the checksum of {tensors.name} differs",
        "state": "not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    }
    assert said == [f"checkpoint step-00000004 is damaged ({seen[damage]}); looking for the one before it"]


@pytest.mark.parametrize(("was", "now"), [('"step": 4', '"step": 6'), ('"format": 3', '"format": 1'), ("{", "[")])
def test_a_changed_byte_among_the_scalars_is_damage(tmp_path: Path, was: str, now: str) -> None:
    """Neither are steps left out in silence, nor is it taken for another version's."""
    state = killed_at_5(tmp_path) / "step-00000004" / "state.json"
    text = state.read_text()
    assert was in text
    state.write_text("[1]" if now == "[" else text.replace(was, now))
    said: list[str] = []
    found = checkpoint.newest(tmp_path / "checkpoints", None, World(), said.append)
    assert found is not None
    assert found.step == 2
    assert said == [
        "checkpoint step-00000004 is damaged (the checksum of state.json differs); looking for the one before it"
    ]


def test_no_whole_checkpoint_is_an_error_not_a_silent_fresh_start(tmp_path: Path) -> None:
    for place in killed_at_5(tmp_path).iterdir():
        next(place.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint here is whole. Delete .* to start the step afresh"):
        fit(Noisy(), samples(), options(7, checkpoint_every=2), context_in(tmp_path))


def test_a_checkpoint_of_other_roles_is_refused(tmp_path: Path) -> None:
    killed_at_5(tmp_path)
    other = Noisy()
    other.roles["third"] = Role(Weight(), lr=LR)
    with pytest.raises(UserError, match=r"the checkpoint has roles \['first', 'second'\]"):
        fit(other, samples(), options(7), context_in(tmp_path))


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    folder = killed_at_5(tmp_path)
    (folder / "step-00000006.partial").mkdir()
    found = checkpoint.newest(folder, None, World(), lambda _: None)
    assert found is not None
    assert found.step == 4


def test_a_stop_saves_at_once_and_can_be_continued(tmp_path: Path) -> None:
    context = context_in(tmp_path)

    def ask(step: int) -> None:
        context.stopping.asked = context.stopping.asked or step == 3

    with pytest.raises(Stopped):
        fit(Noisy(watch=ask), samples(), options(7), context)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    again, whole = Noisy(), Noisy()
    fit(again, samples(), options(7), context_in(tmp_path))
    fit(whole, samples(), options(7), context_in(tmp_path / "whole"))
    assert torch.equal(again.weight("first"), whole.weight("first"))
