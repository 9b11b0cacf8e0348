"""How near blocks stay to what they were, and the few updates that bring them nearer, each attention by itself.

Shapes: B batch, S tokens, D width.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.structure.record import Call, map_tensors, tensors_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Stack

RATE = 1e-2

Rows = list[tuple[Any, ...]]
"""Latent, sigma and conditions, and whatever follows, of calls of a denoiser."""


@dataclass(frozen=True)
class Answer:
    """One call of a module, and what it gave."""

    call: Call
    output: Tensor

    def error(self, module: nn.Module, output: int | str | None = None) -> Tensor:
        """Return the squared error of what the module gives now, relative to the square of what it gave."""
        args, kwargs = self.call.args, self.call.kwargs
        found = main_output(module(*args, **kwargs), output)
        return (found - self.output).square().sum() / self.output.square().sum()


def main_output(given: Any, output: int | str | None = None) -> Tensor:
    """Return the stream of a block's output, or the first tensor of anything else's."""
    from dit_compress.structure.lookup import output_at

    found = given if output is None else output_at(given, output)
    tensor: Tensor = tensors_in(found)[0]
    return tensor


@torch.no_grad()
def answers(denoiser: Denoiser, rows: Rows, places: Mapping[str, int | str | None]) -> dict[str, list[Answer]]:
    """Return the calls that modules get in a run over all rows; by path, with the output that counts."""
    found: dict[str, list[Answer]] = defaultdict(list)

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            own, named = map_tensors(lambda value: value.detach().clone(), (args, kwargs))
            found[path].append(Answer(Call(own, named, recorded=True), main_output(output, places[path]).clone()))

        return hook

    hooks = [denoiser.module.get_submodule(path).register_forward_hook(keep(path), with_kwargs=True) for path in places]
    try:
        run(denoiser, rows)
    finally:
        for handle in hooks:
            handle.remove()
    return found


@torch.no_grad()
def run(denoiser: Denoiser, rows: Rows) -> list[Tensor]:
    """Return the velocities of all rows."""
    return [denoiser(*row[:3]) for row in rows]


@torch.no_grad()
def error(module: nn.Module, known: Sequence[Answer], output: int | str | None = None) -> float:
    """Return ``|new - old| / |old|`` over all calls, as the root of the mean square."""
    return float(torch.stack([answer.error(module, output) for answer in known]).mean().sqrt())


def fit(owner: nn.Module, mixer: nn.Module, known: Sequence[Answer], updates: int) -> None:
    """Train the mixer alone until the attention gives what it gave; where that fails, the start is kept."""
    learned = list(mixer.parameters())
    if not learned or not updates:
        return
    before, start = error(owner, known), [value.detach().clone() for value in learned]
    optimiser = torch.optim.Adam(learned, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for update in range(updates):
        with torch.enable_grad():
            loss = known[update % len(known)].error(owner)
            gradients = torch.autograd.grad(loss, learned, allow_unused=True)
        for value, gradient in zip(learned, gradients, strict=True):
            value.grad = gradient
        optimiser.step()
        schedule.step()
    optimiser.zero_grad()
    if not error(owner, known) < before:
        with torch.no_grad():
            for value, old in zip(learned, start, strict=True):
                value.copy_(old)


def outputs(stacks: Sequence[Stack]) -> dict[str, int | str | None]:
    """Return where each block gives its stream back."""
    return {block: stack.output for stack in stacks for block in stack.blocks}
