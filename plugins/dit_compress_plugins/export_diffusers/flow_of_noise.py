"""Euler steps of a flow for a model that predicts noise, x0 or v of a variance-preserving process.

The latent is ``x = (1 - sigma)·x0 + sigma·noise``. The model was trained on ``a·x0 + s·noise`` with ``a² + s² = 1``:
that is x over ``n = sqrt((1 - sigma)² + sigma²)``, at the timestep where ``s/a = sigma/(1 - sigma)``.

This file lies in the ``scheduler/`` folder of a pipeline that dit-compress wrote; it needs torch and diffusers only.
Licence: Apache-2.0.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

SMALLEST = 1e-6
"""Bound of alpha-bar at both ends: a schedule of zero terminal SNR would divide by it."""


class FlowOfNoiseScheduler(SchedulerMixin, ConfigMixin):
    """Sigmas ``shift·u / (1 + (shift - 1)·u)`` for ``u = 1 … 1/n``, and 0.

    alphas_cumprod: alpha-bar of every timestep that the model was trained at. prediction: ``noise``, ``x0`` or ``v``.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        alphas_cumprod: tuple[float, ...] = (0.5,),
        prediction: str = "noise",  # noqa: ARG002 - diffusers keeps it in the config
        shift: float = 3.0,  # noqa: ARG002 - as well
    ) -> None:
        bar = torch.tensor(alphas_cumprod, dtype=torch.float64).clamp(SMALLEST, 1 - SMALLEST)
        self.trained = (1 - bar).sqrt() / (bar.sqrt() + (1 - bar).sqrt())
        self.set_timesteps(1)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Make sigmas and timesteps of a count of steps."""
        u = 1 - torch.arange(num_inference_steps + 1, dtype=torch.float64) / num_inference_steps
        shift = self.config.shift
        self.exact = shift * u / (1 + (shift - 1) * u)
        self.sigmas = self.exact.float().to(device)
        self.timesteps = self._timestep(self._known(self.exact[:-1])).float().to(device)
        self.num_inference_steps = num_inference_steps

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Return what the model was trained on: the latent over its norm."""
        sigma = float(self._known(self.exact[self._place(timestep)]))
        return sample / ((1 - sigma) ** 2 + sigma**2) ** 0.5

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        return_dict: bool = False,  # noqa: ARG002, FBT001, FBT002 - pipelines ask for none
    ) -> tuple[torch.Tensor]:
        """Return the latent at the next sigma."""
        place = self._place(timestep)
        sigma = float(self._known(self.exact[place]))
        n = ((1 - sigma) ** 2 + sigma**2) ** 0.5
        velocity = {
            "noise": lambda: (model_output - sample) / (1 - sigma),
            "x0": lambda: (sample - model_output) / sigma,
            "v": lambda: (
                (sigma * sample / n + (1 - sigma) * model_output) / n
                - ((1 - sigma) * sample / n - sigma * model_output) / n
            ),
        }[self.config.prediction]()
        return (sample + float(self.exact[place + 1] - self.exact[place]) * velocity,)

    def _place(self, timestep: Any) -> int:
        """Return how many steps were taken before a timestep."""
        return int((self.timesteps.cpu() - float(timestep)).abs().argmin())

    def _known(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return the nearest noise level that the model was trained on."""
        return sigma.clamp(float(self.trained[0]), float(self.trained[-1]))

    def _timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return the (fractional) timestep of a noise level; linear between neighbours."""
        above = torch.searchsorted(self.trained, sigma).clamp(1, len(self.trained) - 1)
        low, high = self.trained[above - 1], self.trained[above]
        return above - 1 + (sigma - low) / (high - low)
