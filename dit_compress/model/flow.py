"""The one flow convention and the one schedule.

``x_sigma = (1 - sigma)·x0 + sigma·noise`` (Eq. 1); velocity = ``noise - x0`` (Eq. 2); sigma in [0, 1].
Nothing else in the toolkit knows another convention: model adapters convert.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.plugin import defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser


def expand(sigma_B: Tensor, like: Tensor) -> Tensor:
    """Shape sigma ``[B]`` (or ``[B,T]``) to multiply a latent ``[B,C,T,H,W]``."""
    if sigma_B.ndim == 2:
        return sigma_B[:, None, :, None, None].to(like.dtype)
    return sigma_B.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def interpolate(x0: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """Return ``(1 - sigma)·x0 + sigma·noise`` (Eq. 1)."""
    sigma = expand(sigma_B, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """Return ``noise - x0``, the target of Eq. 2."""
    return noise - x0


def predict_x0(x_sigma: Tensor, velocity: Tensor, sigma_B: Tensor) -> Tensor:
    """Return the clean latent a velocity points to: ``x_sigma - sigma·v``."""
    return x_sigma - expand(sigma_B, x_sigma) * velocity


def jump(x_sigma: Tensor, velocity: Tensor, sigma_B: Tensor, to_B: Tensor) -> Tensor:
    """Return one Euler step, ``x_t + (t' - t)·v`` (the generated sample of Eq. 7)."""
    return x_sigma + expand(to_B - sigma_B, x_sigma) * velocity


@dataclass(frozen=True)
class Flow:
    """Flow settings of a bundle: one object for training and sampling.

    shift: ``s·u / (1 + (s-1)·u)`` moves sigmas towards noise.
    num_steps, guidance: how the bundle is meant to be sampled. sampler: by which plugin, as a recipe would say it
    (``{"use": name, option: value}``); Euler where it is None.
    between: the sigmas, lowest and highest, that the model is for, where it is one of several experts.
    """

    shift: float = 3.0
    num_steps: int = 40
    guidance: float = 4.0
    sampler: Mapping[str, Any] | None = field(default=None, hash=False)
    between: tuple[float, float] | None = None

    def warp(self, u: Any) -> Any:
        """Map a uniform position to sigma; a number or a tensor."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def place(self, sigma: float) -> float:
        """Return the uniform position of a sigma: :meth:`warp` the other way."""
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def drawn(self, u: Any) -> Any:
        """Map a uniform position to a sigma for training: one that the model is for. A number or a tensor."""
        if self.between is None:
            return self.warp(u)
        low, high = (self.place(sigma) for sigma in self.between)
        return self.warp(low + (high - low) * u)

    def has(self, sigma: float) -> bool:
        """Tell whether a sigma is one that the model is called at: its lowest is, its highest is where it is 1."""
        low, high = self.between or (0.0, 1.0)
        return low <= sigma and (sigma < high or high == 1)

    def calls(self) -> tuple[float, ...]:
        """Return the sigmas that the model is called at, T1 … TN; of an expert those that it is for.

        Raises:
            UserError: there are none.
        """
        found = tuple(sigma for sigma in self.sigmas()[:-1] if self.has(sigma))
        if not found:
            low, high = self.between or (0.0, 1.0)
            raise UserError(
                f"none of the {self.num_steps} steps falls to this expert, for sigmas from {low:g} to {high:g}",
                mend="Raise 'sampling_steps', or the shift for the expert of much noise",
            )
        return found

    def need_whole(self, what: str) -> None:
        """Raise UserError where the model is one of several experts, which can't be sampled alone from noise."""
        if self.between is not None:
            low, high = self.between
            raise UserError(
                f"{what} samples from noise to data, and this model is an expert for sigmas from {low:g} to {high:g}",
                mend="Train an expert by a step that draws noise levels, without 'watch'; sample all of them together",
            )

    def sigmas(self, num_steps: int | None = None) -> tuple[float, ...]:
        """Return ``num_steps + 1`` decreasing sigmas from 1 to 0; the grid T1 … TN of Eq. 7 and a final 0."""
        count = num_steps or self.num_steps
        return tuple(self.warp(1 - i / count) for i in range(count + 1))

    def as_data(self) -> dict[str, Any]:
        """Return the settings as bundle.json holds them, the sigmas included."""
        own = {name: value for name, value in asdict(self).items() if value is not None}
        own |= {} if self.between is None else {"between": list(self.between)}
        return {**own, "sigmas": list(self.sigmas())}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Flow:
        """Read settings back from bundle.json."""
        between = data.get("between")
        return cls(
            data["shift"], data["num_steps"], data["guidance"], data.get("sampler"), tuple(between) if between else None
        )

    def sample(self) -> Callable[..., Tensor]:
        """Return the named sampler's ``sample``; UserError where its plugin is not installed or takes other options."""
        if self.sampler is None:
            self.need_whole("its sampler")
            return euler
        sample: Callable[..., Tensor] = self._part().sample
        return sample

    def _part(self) -> Any:
        """Make the named sampler."""
        from dit_compress.plugin.registry import installed
        from dit_compress.recipe import make_part

        return make_part("sampler", dict(self.sampler or {}), installed(), "the bundle's sampler").build()

    @property
    def by_steps(self) -> bool:
        """Tell whether a loop of Euler steps is what the bundle is sampled by."""
        return self.sampler is None or self.sampler["use"] == defaults.SAMPLER

    def need_euler(self) -> None:
        """Raise UserError where a loop of Euler steps would not be what the bundle is sampled by."""
        self.need_whole("an exported package")
        if not self.by_steps:
            raise UserError(
                f"the bundle is sampled by {self._named()}, and such a folder by Euler steps alone",
                mend="Export the bundle from before the step that named the sampler",
            )

    def fixed(self, denoiser: Callable[[], Denoiser]) -> Fixed | None:
        """Return the sampling as one graph; None where a loop of Euler steps does, UserError where nothing does.

        denoiser: makes it, where it is looked at.
        """
        self.need_whole("an exported package")
        if self.by_steps:
            return None
        found: Fixed | None = self._part().fixed(denoiser(), self.sigmas())
        if found is None:
            raise UserError(
                f"the bundle is sampled by {self._named()}, and an exported package by Euler steps, or by a sampler "
                "whose calls no value decides",
                mend=f"Name another under 'export': 'sampler: {defaults.SAMPLER}' computes all of each step",
            )
        return found

    def _named(self) -> str:
        return repr((self.sampler or {}).get("use", defaults.SAMPLER))


@dataclass(frozen=True)
class Fixed:
    """A sampling whose calls no value decides: one graph, from noise to a clean latent.

    sample: as a sampler's. note: what is left out, for ``plan`` and the report.
    """

    sample: Callable[..., Tensor]
    note: str = ""


def guided(denoiser: Denoiser, x: Tensor, sigma_B: Tensor, cond: Cond, guidance: float) -> Tensor:
    """Return the velocity with classifier-free guidance as one doubled batch; plain at guidance 1."""
    import torch

    if guidance == 1.0:
        return denoiser(x, sigma_B, cond)
    everything = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    both = denoiser(torch.cat([x, x]), torch.cat([sigma_B, sigma_B]), cond.cat(cond.drop(everything)))
    with_text, without = both.chunk(2)
    return without + guidance * (with_text - without)


def euler(denoiser: Denoiser, noise: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float = 1.0) -> Tensor:
    """Sample by Euler steps from noise at ``sigmas[0]`` to ``sigmas[-1]``; differentiable."""
    import torch

    x = noise
    for now, then in itertools.pairwise(sigmas):
        sigma_B = torch.full((x.shape[0],), now, dtype=x.dtype, device=x.device)
        x = x + (then - now) * guided(denoiser, x, sigma_B, cond, guidance)
    return x
