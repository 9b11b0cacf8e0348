"""Losses of the paper as pure functions of tensors; means over samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def per_sample(value: Tensor) -> Tensor:
    """Average over everything but the batch."""
    return value.flatten(1).mean(dim=1)


def flow_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of the velocity (Eq. 2)."""
    return F.mse_loss(predicted, target)


def cosine_distance(student_BSD: Tensor, teacher_BSD: Tensor) -> Tensor:
    """Return ``1 - cos`` per token, averaged: the default ``sim`` of Eq. 5."""
    return (1 - F.cosine_similarity(student_BSD.float(), teacher_BSD.float(), dim=-1)).mean()


def squared_distance(student_BSD: Tensor, teacher_BSD: Tensor) -> Tensor:
    """Return the mean squared difference of features: ``sim`` of Eq. 5 that sees lengths, too."""
    return F.mse_loss(student_BSD.float(), teacher_BSD.float())


def relative_squared_distance(student_BSD: Tensor, teacher_BSD: Tensor) -> Tensor:
    """Return the same over the teacher's mean square, per sample, averaged: features of any scale count alike."""
    teacher = teacher_BSD.float()
    scale_B = per_sample(teacher.square()).clamp_min(torch.finfo(teacher.dtype).tiny)
    return (per_sample((student_BSD.float() - teacher).square()) / scale_B).mean()


def pseudo_huber_norm(predicted: Tensor, target: Tensor, c: float) -> Tensor:
    """Return ``sqrt(‖d‖² + c²) - c`` per sample, averaged (below Eq. 9). Beyond c its slope has the length 1."""
    squares = (predicted - target).float().square().flatten(1).sum(dim=1)
    return (torch.sqrt(squares + c * c) - c).mean()


def pseudo_huber_mean(predicted: Tensor, target: Tensor, c: float) -> Tensor:
    """Return the same of the mean square, ``1/sqrt(D)`` of it: c means the same at every size D of a sample."""
    squares = per_sample((predicted - target).float().square())
    return (torch.sqrt(squares + c * c) - c).mean()


def pseudo_huber_elements(predicted: Tensor, target: Tensor, c: float) -> Tensor:
    """Return ``sqrt(d² + c²) - c`` of every element, averaged: nearer to an absolute error where errors are uneven."""
    return (torch.sqrt((predicted - target).float().square() + c * c) - c).mean()


HUBERS = {"norm": pseudo_huber_norm, "mean": pseudo_huber_mean, "elements": pseudo_huber_elements}
"""Pseudo-Huber losses, by what is taken of a sample's difference."""


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return Eq. 8 in the paper's sign: real logits go to -1 and below, fake ones to 1 and above."""
    return F.relu(1 + real).mean() + F.relu(1 - fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Return Eq. 9: the generator lowers the logits of what it makes."""
    return fake.mean()


def r1_exact(logits_BS: Tensor, point: Tensor) -> Tensor:
    """Return ``‖∇ D‖²`` of each sample's mean logit by ``point`` (leading B), averaged over samples; differentiable.

    Mescheder et al., "Which training methods for GANs do actually converge?", Eq. 9 without its factor γ/2.
    """
    (slope,) = torch.autograd.grad(logits_BS.mean(dim=1).sum(), point, create_graph=True)
    return slope.square().flatten(1).sum(dim=1).mean()


def r1_approximate(logits_BS: Tensor, nearby_BS: Tensor, scale: float) -> Tensor:
    """Return the squared slope in the inputs by a difference: ``nearby`` are logits of inputs with noise of ``scale``.

    Both get one sigma: logits of two noise levels differ for a reason that is no slope. Expected value for a
    linear discriminator: exactly ``‖∇ D‖²`` (Lin et al., "Diffusion adversarial post-training", section 3.3, over
    scale²).
    """
    return ((nearby_BS - logits_BS).mean(dim=1) / scale).square().mean()
