"""A denoiser averaged over fixed perturbations of its input: closed-form diffusion beyond its own data."""

from copy import copy
from typing import Self

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_trajectory, expand, settled_rows
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.errors import UserError
from scoregen.ranges import NonNegative, PositiveInt
from scoregen.rng import Rng, generator


class SmoothedDenoiser(nn.Module):
    """Averages a denoiser over M perturbations of its input, which are fixed along a trajectory.

    D_s(x; sigma) = 1/M sum_m D(x + sigma_s (1 + sigma) eps_m; sigma),  eps_m ~ N(0, I)

    Over the training set, trajectories then end at means of M training samples, those nearest to the end
    moved by each sigma_s eps_m, instead of on one sample. With `resample`, which draws anew in every call,
    that does not hold.

    Args:
        inner: the denoiser, as a rule the empirical one or an estimate of it.
        sigma_s: the standard deviation of the perturbation at sigma = 0, in units of the data.
        noises: M; a call costs M calls of `inner`.
        resample: draw in every call rather than once a trajectory.
        seed: of the noise where no trajectory has drawn its own; it is then shared by all samples.

    Source: Scarvelis, Saez de Ocariz Borde and Solomon, Closed-Form Diffusion Models, 2023, arXiv 2310.12395,
    in EDM coordinates. Whether the authors fix or renew the noise is not known to us; the theorem about
    means needs it fixed.
    """

    def __init__(
        self,
        inner: Denoiser,
        *,
        sigma_s: NonNegative = 0.3,
        noises: PositiveInt = 4,
        resample: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.inner, self.sigma_s, self.noises, self.resample, self.seed = (
            inner,
            sigma_s,
            noises,
            resample,
            seed,
        )
        self.shape, self.num_classes = inner.shape, inner.num_classes
        self.sigma_min, self.sigma_max = inner.sigma_min, inner.sigma_max
        self.noise = torch.randn(1, noises, *self.shape, generator=generator("smoothing", seed))
        self.rng: Rng | None = None

    @property
    def training_set(self) -> EmpiricalDenoiser:
        """The training set that the inner denoiser holds."""
        return training_set(self.inner)

    def for_trajectory(self, rng: Rng) -> Self:
        """The same with noise of each sample's own, for the rows of the rng; so is the inner denoiser."""
        drawn = copy(self)
        drawn._modules = {**self._modules}  # of which the copy would share the table
        drawn.noise, drawn.rng = rng.randn(self.noises, *self.shape), rng if self.resample else None
        drawn.inner = denoiser_for_trajectory(self.inner, rng)
        return drawn

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """The mean over the perturbations, [B, *shape], for x [B, *shape], sigma [] or [B], cond [B]."""
        noise = self.noise if self.rng is None else self.rng.randn(self.noises, *self.shape)
        each = sigma.expand(len(x))
        spread = self.sigma_s * (1 + expand(each, x).to(x.dtype))
        moved = x + spread * settled_rows(noise.to(x), len(x)).transpose(0, 1)  # [M, B, *shape]
        classes = None if cond is None else cond.repeat(self.noises)
        denoised = self.inner(moved.flatten(0, 1), each.repeat(self.noises), classes)
        return denoised.view(moved.shape).mean(0)


def training_set(denoiser: Denoiser) -> EmpiricalDenoiser:
    """The training set behind a closed-form denoiser; UserError for one that holds no data."""
    found = denoiser if isinstance(denoiser, EmpiricalDenoiser) else getattr(denoiser, "training_set", None)
    if not isinstance(found, EmpiricalDenoiser):
        raise UserError(
            f"{type(denoiser).__name__} holds no training data; closed-form diffusion needs a denoiser made "
            "of them (scoregen.denoisers.closed_form), or a sampler that starts from noise"
        )
    return found
