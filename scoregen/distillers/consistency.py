"""Consistency tuning and distillation: the denoiser becomes the map to the end of its probability flow."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise, expand
from scoregen.diffusion.noise import LogNormalSigma, SigmaDistribution
from scoregen.distillers.generator import perturb
from scoregen.objectives.base import Loss
from scoregen.ranges import NonNegative, NonNegativeInt, Positive
from scoregen.rng import BatchRng


@dataclass(frozen=True)
class ConsistencyLoss:
    """(sqrt(mean (D(x_t; t) - sg D(x_r; r))^2 + c^2) - c) / (t - r), the mean over elements, D(x; 0) = x.

    r = t max(0, 1 - q^-(stage + 1) (1 + k sigmoid(-b t))) for the noise level t. Tuning takes x_r = x0 + r n
    with the noise of x_t = x0 + t n; distillation takes a Heun step of the teacher's flow from x_t to r. Both
    evaluations drop the same units.

    Args:
        sigma: the distribution of t.
        q: by how much a stage shrinks the step. k, b: by how much more it is shrunk at high noise.
        c: of the pseudo-Huber norm, per element; 0 is the plain norm.

    Source: Geng et al., Consistency Models Made Easy, 2024, arXiv 2406.14548; distillation as in Song et al.,
    Consistency Models, 2023, arXiv 2303.01469, with these levels.
    """

    sigma: SigmaDistribution = LogNormalSigma(-1.1, 2.0)  # noqa: RUF009 - frozen
    q: Positive = 2.0
    k: NonNegative = 8.0
    b: Positive = 1.0
    c: NonNegative = 0.0

    def __call__(
        self,
        student: Denoise,
        x0: Tensor,
        cond: Cond,
        rng: BatchRng,
        *,
        stage: NonNegativeInt = 0,
        teacher: Denoise | None = None,
    ) -> Loss:
        """The loss at clean data x0 [B, *shape] of the classes cond [B]; without a teacher it is tuning."""
        _, x, t = perturb(x0, self.sigma, rng)
        r = self.earlier(t, stage)
        with torch.no_grad():
            x_r = x0 + expand(r / t, x0) * (x - x0) if teacher is None else heun(teacher, x, t, r, cond)
            # Dropout draws from the global generators, which are as before on leaving.
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                target = _at_end(student, x_r, r, cond)
        error = (student(x, t, cond) - target).flatten(1)
        return Loss((self._norm(error) - self.c) / (t - r), t)

    def earlier(self, t: Tensor, stage: int) -> Tensor:
        """r [B], below t [B]."""
        shrink = (1 + self.k * torch.sigmoid(-self.b * t)) * self.q ** -(stage + 1)
        return t * (1 - shrink).clamp(min=0)

    def _norm(self, error: Tensor) -> Tensor:
        """sqrt(mean error^2 + c^2), [B]; unlike a square root it has a gradient at 0, which is 0."""
        constant = torch.full_like(error[:, :1], self.c)
        norm: Tensor = torch.linalg.vector_norm(
            torch.cat([error / error.shape[1] ** 0.5, constant], 1), dim=1
        )
        return norm


def heun(denoiser: Denoise, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
    """One step of the probability flow from x [B, *shape] at noise levels t [B] to r [B]; Euler's to 0."""
    step = expand(r - t, x)
    slope = (x - denoiser(x, t, cond)) / expand(t, x)
    euler = x + step * slope
    later = (euler - _at_end(denoiser, euler, r, cond)) / expand(r.clamp(min=1e-20), x)
    return torch.where(expand(r, x) > 0, x + step * (slope + later) / 2, euler)


def _at_end(denoiser: Denoise, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    """D(x; sigma), and x itself where sigma = 0, which networks cannot be asked for."""
    positive = sigma > 0
    denoised = denoiser(x, torch.where(positive, sigma, 1.0), cond)
    return torch.where(expand(positive, x), denoised, x)
