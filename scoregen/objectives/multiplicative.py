"""Multiplicative denoising score matching: positive data under geometric Brownian motion."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoregen.data.augment import Augment
from scoregen.data.codec import LogCodec
from scoregen.denoisers.base import Cond, Denoise
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.noise import BrownianSigma
from scoregen.errors import UserError
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import DenoisingLoss, InverseVarianceWeight, Weight
from scoregen.ranges import Positive
from scoregen.rng import BatchRng

WEIGHTS: dict[str, Weight] = {"variance": InverseVarianceWeight(), "paper": torch.ones_like}


@dataclass(frozen=True)
class MultiplicativeLoss:
    """lambda(sigma) (h - h_cond)^2 of the Hyvarinen score h = y * grad log p(y), sigma^2 uniform.

    The published loss, with mu = s^2 / 2 the drift, s the volatility and sigma = s sqrt(t), is
        (s^2 t h + ln y_t - ln y_0 - mu t + 3/2 s^2 t)^2 = sigma^4 (h - h_cond)^2,  h_cond = -1 - n / sigma.
    In the logarithms u = ln y, where D = u_t + sigma^2 (1 + h), that is the plain error (D - u_0)^2. So
    this is `DenoisingLoss` of logarithms, for both parametrisations: precond=log and precond=hyvarinen.

    Args:
        sigma_min: s / sqrt(N) for N time steps. The published code draws t from {1, ..., N - 1} / N, this
            uniformly from [1 / N, T].
        sigma_max: s sqrt(T).
        weight: `paper`, lambda = sigma^4; or `variance`, lambda = sigma^2, which weighs the noise prediction
            evenly (inferred).

    Source: Shetty, Prasath and Seelamantula, Dale meets Langevin: A Multiplicative Denoising Diffusion Model,
    2025, arXiv 2510.02730. Its code evaluates the loss one time step late, which is not copied.
    """

    sigma_min: Positive = 0.0253
    sigma_max: Positive = 0.8
    weight: Literal["variance", "paper"] = "variance"

    def __call__(self, denoiser: Denoise, x0: Tensor, cond: Cond, rng: BatchRng) -> Loss:
        """The loss at the logarithms x0 [B, *shape] of clean data with class ids cond [B]."""
        loss = DenoisingLoss(BrownianSigma(self.sigma_min, self.sigma_max), WEIGHTS[self.weight])
        return loss(denoiser, x0, cond, rng)

    def check(self, denoiser: NetworkDenoiser, augment: Augment) -> None:
        """UserError where the model does not see logarithms, or is for other noise levels."""
        if not isinstance(denoiser.codec, LogCodec):
            raise UserError(
                "objective=multiplicative is for logarithms of positive data: choose precond=log, or "
                "precond=hyvarinen for the published parametrisation"
            )
        if (self.sigma_min, self.sigma_max) != (denoiser.sigma_min, denoiser.sigma_max):
            raise UserError(
                f"objective.sigma_min={self.sigma_min:g}, objective.sigma_max={self.sigma_max:g}: the model "
                f"would be sampled from precond.sigma_max={denoiser.sigma_max:g} down to precond.sigma_min="
                f"{denoiser.sigma_min:g}; set them to the same"
            )
