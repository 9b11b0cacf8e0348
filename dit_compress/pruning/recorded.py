"""Any module behind the engine's convention, seen through one recorded call of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.model.denoiser import Cond, Denoiser
from dit_compress.structure.observe.discover import observe
from dit_compress.structure.record import tensors_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_compress.structure.facts import Structure
    from dit_compress.structure.record import Call

_HALF = (torch.float16, torch.bfloat16)


def size_of(call: Call) -> tuple[int, int, int]:
    """Return the last three dimensions of a call's first tensor: by them a table of latencies knows the call."""
    first = next(iter(tensors_in((call.args, call.kwargs))), torch.empty(1))
    sizes = (1, 1, 1, *first.shape)[-3:]
    return sizes[0], sizes[1], sizes[2]


class RecordedDenoiser(Denoiser):
    """A module whose structure can be found, that can be pruned and proven: it repeats the recorded call.

    It can't be sampled or trained: nobody has said what the call's arguments mean.
    """

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__(module)
        self.recorded = call
        if not call.recorded:
            raise UserError(
                "nothing was recorded",
                where=type(module).__name__,
                mend="Run 'with dit_compress.record(model) as call'",
            )

    def forward(self, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> Any:  # noqa: ARG002 - they are the call's
        """Run the module on the recorded call, wherever the module stands; half precision comes out as float32."""
        like = next(self.module.parameters())
        low = like.dtype in _HALF

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(like.device, torch.float32 if tensor.dtype in _HALF and not low else tensor.dtype)

        return self.recorded.map(moved).replay(self.module)

    def structure(self) -> Structure:
        """Return the structure, as seen on the recorded call."""
        if self._structure is None:
            self._structure = observe(self.module, self.recorded)
        return self._structure

    def example(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Cond]:
        """Return nothing: the call has its arguments."""
        return torch.empty(0), torch.empty(0), Cond({}, {})

    def example_call(self) -> Call:
        """Return the call that was recorded."""
        return self.recorded

    def example_calls(self) -> list[Call]:
        """Return that one alone."""
        return [self.recorded]

    def timesteps(self, *_: Any) -> dict[int | str, tuple[float, ...]]:
        """Return nothing: nobody has said which argument is the timestep, and what it is at a sigma."""
        return {}

    def call(self, *_: Any, **__: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raise a UserError: see the class."""
        raise self._unknown()

    def velocity(self, *_: Any, **__: Any) -> Tensor:
        """Raise a UserError: see the class."""
        raise self._unknown()

    @property
    def channels(self) -> int:
        """UserError: see the class."""
        raise self._unknown()

    @property
    def patch(self) -> tuple[int, int, int]:
        """One: any size is taken for what it is."""
        return 1, 1, 1

    @property
    def example_size(self) -> tuple[int, int, int]:
        """That of the call."""
        return size_of(self.recorded)

    def _unknown(self) -> UserError:
        return UserError(
            f"{type(self.module).__name__} is known by one recorded call only", mend="Write a model plugin for it"
        )
