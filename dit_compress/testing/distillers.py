"""The contract of distillers, as a class of tests: subclass it, make yours, run pytest.

from dit_compress.testing.distillers import DistillerContract

class TestMine(DistillerContract):
    def objective(self): return MyObjective(...)
    def batch(self): return ...            # at least two samples, equal for equal calls
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.randomness import Streams
from dit_compress.train.objective import Batch
from dit_compress.train.trainee import trainees_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_compress.train.objective import Objective, Phase
    from dit_compress.train.trainee import Trainee

EMA = 0.5
RTOL, ATOL = 2e-4, 2e-6


class DistillerContract:
    """Gradient routing, averages, means over samples, stateless randomness."""

    def objective(self) -> Objective:
        """Make roles, phases and losses over tiny models, anew at each call."""
        raise NotImplementedError

    def batch(self) -> Batch:
        """Return a batch of at least two samples."""
        raise NotImplementedError

    # -- who gets a gradient

    def test_only_the_roles_of_a_phase_get_gradients(self) -> None:
        """No generator gradient in the discriminator's phase, none of the discriminator's in the generator's."""
        objective = self.objective()
        trainees = unclipped(objective)
        for phase in objective.phases:
            backward(objective, trainees, phase, self.batch())
            moving = {id(value) for name in phase.updates for value in trainees[name].parameters.values()}
            for name, role in objective.roles.items():
                given = {
                    key
                    for key, value in role.module.named_parameters()
                    if value.grad is not None and id(value) not in moving
                }
                assert not given, f"phase {phase.name!r} gives {name!r} gradients: {given}"
            silent = [name for name in phase.updates if not graded(trainees[name])]
            assert not silent, f"phase {phase.name!r} gives no gradient to {silent}"
            clear(objective)

    def test_every_trainable_role_is_updated_by_a_phase(self) -> None:
        """A role with a rate that no phase names would never move."""
        objective = self.objective()
        named = {name for phase in objective.phases for name in phase.updates}
        assert {name for name, role in objective.roles.items() if role.lr is not None} == named

    def test_what_is_frozen_never_changes(self) -> None:
        """Frozen roles, and the frozen parts and buffers of trained ones, after an update of every phase."""
        objective = self.objective()
        trainees = unclipped(objective)
        before = {name: state(role.module) for name, role in objective.roles.items()}
        for phase in objective.phases:
            backward(objective, trainees, phase, self.batch())
            for name in phase.updates:
                trainees[name].update(1.0)
        trained = {id(value) for trainee in trainees.values() for value in trainee.parameters.values()}
        for name, role in objective.roles.items():
            moving = {key for key, value in role.module.named_parameters() if id(value) in trained}
            changed = {k for k, value in state(role.module).items() if not torch.equal(value, before[name][k])}
            assert changed <= moving, f"{name}: {sorted(changed - moving)} changed and should not"
            assert name not in trainees or changed & set(trainees[name].parameters), f"{name}: nothing changed"

    def test_an_average_moves_only_with_its_role(self) -> None:
        """After each phase the averages of its roles have gone half the way, all others are where they were."""
        objective = self.objective()
        for role in objective.roles.values():
            role.ema = EMA if role.lr is not None else None
        trainees = unclipped(objective)
        for phase in objective.phases:
            before = {name: copy.deepcopy(trainee.average) for name, trainee in trainees.items()}
            backward(objective, trainees, phase, self.batch())
            for name in phase.updates:
                trainees[name].update(1.0)
            for name, trainee in trainees.items():
                for key, value in trainee.average.items():
                    now = trainee.parameters[key].detach()
                    expected = (1 - EMA) * now + EMA * before[name][key] if name in phase.updates else before[name][key]
                    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
            clear(objective)

    # -- what a loss is a function of

    def test_a_loss_is_a_mean_over_samples(self) -> None:
        """So that parts of a batch, and processes, add up to the whole; gradients too."""
        objective, batch = self.objective(), self.batch()
        trainees = unclipped(objective)
        for phase in objective.phases:
            whole = backward(objective, trainees, phase, batch)
            expected = gradients(objective)
            clear(objective)
            parts = [part_of(batch, index) for index in range(len(batch.sample))]
            losses = [backward(objective, trainees, phase, part, len(parts)) for part in parts]
            mean = sum(losses) / len(losses)
            torch.testing.assert_close(torch.tensor(mean), torch.tensor(whole), rtol=RTOL, atol=ATOL)
            for key, value in gradients(objective).items():
                torch.testing.assert_close(
                    value, expected[key], rtol=RTOL, atol=ATOL, msg=f"phase {phase.name!r}, {key}"
                )
            clear(objective)

    def test_a_loss_draws_from_the_streams_alone(self) -> None:
        """Equal when computed again, whatever torch's own generator did meanwhile."""
        objective = self.objective()
        trainees = unclipped(objective)
        for phase in objective.phases:
            batch = self.batch()
            first = backward(objective, trainees, phase, batch)
            clear(objective)
            state_before = torch.get_rng_state()
            torch.rand(3)
            moved = torch.get_rng_state()
            again = backward(objective, trainees, phase, batch)
            assert again == first, (
                f"phase {phase.name!r} gives another loss when it is computed again: draw from batch.streams"
            )
            clear(objective)
            assert torch.equal(torch.get_rng_state(), moved), f"phase {phase.name!r} draws from torch's generator"
            torch.set_rng_state(state_before)

    def test_a_loss_stays_on_the_batchs_device(self) -> None:
        """On the meta device, where a tensor left on the CPU is an error: so it is on a GPU."""
        objective, batch = self.objective(), self.batch()
        unclipped(objective)
        for role in objective.roles.values():
            role.module.to("meta")
        for phase in objective.phases:
            objective.loss(phase, batch.to(torch.device("meta")))["loss"].backward()

    def test_a_phase_logs_plain_numbers(self) -> None:
        """``loss`` and every other entry are scalars."""
        objective = self.objective()
        for phase in objective.phases:
            losses = objective.loss(phase, self.batch())
            assert "loss" in losses
            assert {name: value.ndim for name, value in losses.items() if value.ndim} == {}


def unclipped(objective: Objective) -> dict[str, Trainee]:
    """Make trainees as the loop does, but for the clipping."""
    for role in objective.roles.values():
        role.clip = None
    return trainees_of(objective.roles)


def backward(objective: Objective, trainees: dict[str, Trainee], phase: Phase, batch: Batch, parts: int = 1) -> float:
    """Compute the gradients of one phase on one of ``parts`` parts of a batch; return its loss."""
    for name, trainee in trainees.items():
        trainee.train_only(name in phase.updates)
    loss = objective.loss(phase, batch)["loss"]
    (loss / parts).backward()
    return float(loss.detach())


def part_of(batch: Batch, index: int) -> Batch:
    """Return one sample of a batch, with its own streams."""
    tokens = {name: value[index : index + 1] for name, value in batch.tokens.items()}
    streams = Streams(batch.streams.seed, batch.step, [batch.sample[index]])
    captions = list(batch.captions)[index : index + 1]
    return Batch(batch.step, [batch.sample[index]], batch.x0[index : index + 1], streams, captions, tokens)


def gradients(objective: Objective) -> dict[str, Tensor]:
    """Return all gradients there are, by role and parameter."""
    return {
        f"{name}.{key}": value.grad.clone()
        for name, role in objective.roles.items()
        for key, value in role.module.named_parameters()
        if value.grad is not None
    }


def graded(trainee: Trainee) -> bool:
    """Tell whether any of its parameters has a gradient that is not zero."""
    return any(value.grad is not None and bool(value.grad.any()) for value in trainee.parameters.values())


def clear(objective: Objective) -> None:
    """Forget every gradient."""
    for role in objective.roles.values():
        role.module.zero_grad(set_to_none=True)


def state(module: nn.Module) -> dict[str, Any]:
    """Return a copy of a module's tensors."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
