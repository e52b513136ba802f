"""Langevin dynamics: down the noise levels from noise, or at one small level from the data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scoregen.data.base import Dataset, labels_of, to_model_range
from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step, expand
from scoregen.errors import UserError
from scoregen.ranges import Positive
from scoregen.rng import Rng
from scoregen.samplers.base import Sampler, Step, draw_like, level_tensor, round_sigmas


@dataclass(frozen=True)
class LangevinSampler(Sampler):
    """x <- x + h s + sqrt(2 h) z with the score s = (D - x) / sigma^2 at each level, h = step_size sigma^2.

    From noise, N - 1 steps go down the grid, one at each level (annealed). From data, N - 1 steps stay at the
    grid's sigma_min and start at training samples, a fresh one for each chain, with noise of that level: few
    steps, about one relaxation time of a mode, keep the weights of the modes, which the score of a small
    level does not know; more steps lose them (early stopping is a small `steps`). The last step, to 0,
    returns D.

    The bias is that of the unadjusted algorithm: variance v becomes v / (1 - h / (2 v)). `metropolis` accepts
    x -> y with probability min(1, e^{h/4 (||s(x)||^2 - ||s(y)||^2)}): that of MALA with the difference of log
    densities taken along the line by the trapezoidal rule, exact for Gaussians.

    Args:
        step_size: h in units of sigma^2, below 2.
        init: where the chains start.
        data: the samples to start from; needed for init=data.
        metropolis: correct the bias, for one evaluation more a step where the level changes.

    Raises:
        UserError: for init=data without data, of another shape, or a class that they do not have.

    Source: Song and Ermon, Generative Modeling by Estimating Gradients of the Data Distribution, 2019, arXiv
    1907.05600 (annealed); Koehler and Vuong, Sampling Multimodal Distributions with the Vanilla Score, 2023,
    arXiv 2310.01762 (from data; only its abstract was read, step and level are inferred).
    """

    step_size: Positive = 0.3
    init: Literal["noise", "data"] = "noise"
    data: Dataset | None = field(default=None, repr=False, compare=False)
    metropolis: bool = False

    order: ClassVar[float | None] = None
    reference: ClassVar[str] = (
        "Song and Ermon 2019, arXiv 1907.05600; Koehler and Vuong 2023, arXiv 2310.01762"
    )

    def nfe(self, steps: int | None = None) -> int:
        """N; 2 N - 1 from noise with the Metropolis correction."""
        steps = self.steps if steps is None else steps
        return 2 * steps - 1 if self.metropolis and self.init == "noise" else steps

    def sigmas(self, denoiser: Denoiser) -> list[float]:
        """The grid, or N times its lowest level and 0."""
        if self.init == "noise":
            return super().sigmas(denoiser)
        lowest = self.grid.within(denoiser.sigma_min, denoiser.sigma_max).sigma_min
        return round_sigmas(denoiser, [lowest] * self.steps + [0.0])

    def begin(
        self, denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], cond: Cond, rng: Rng | None
    ) -> Tensor:
        """Noise of the first level, alone or added to data: [B, *shape]."""
        x = super().begin(denoiser, noise, sigmas, cond, rng)
        return x if self.init == "noise" else self._pick(noise, cond, rng) + x

    def integrate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Sequence[float],
        cond: Cond = None,
        rng: Rng | None = None,
    ) -> Iterator[Step]:
        """Step from the state x [B, *shape] at sigmas[0] through levels that do not rise."""
        levels, known = level_tensor(sigmas, x), None
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            denoise = denoiser_for_step(denoiser, sigma)
            denoised = denoise(x, levels[i], cond).to(x.dtype) if known is None else known
            known = None
            if sigma_next == 0:
                x = denoised
            else:
                proposal = torch.lerp(x, denoised, self.step_size)
                proposal.add_(draw_like(x, rng), alpha=sqrt(2 * self.step_size) * sigma)
                if self.metropolis:
                    there = denoise(proposal, levels[i], cond).to(x.dtype)
                    keep = self._rejected(x - denoised, proposal - there, sigma, rng)
                    denoised = torch.where(keep, denoised, there)
                    proposal = torch.where(keep, x, proposal)
                    known = denoised if sigma_next == sigma else None
                x = proposal
            yield Step(i, sigma_next, x, denoised)

    def _rejected(self, here: Tensor, there: Tensor, sigma: float, rng: Rng | None) -> Tensor:
        """Which proposals fail [B, 1, ...], from x - D before and after."""
        assert rng is not None  # noise was drawn from it
        gain = (here.flatten(1).double().square() - there.flatten(1).double().square()).sum(1)
        log_uniform = torch.special.log_ndtr(rng.randn(dtype=torch.float64))
        return expand(log_uniform >= self.step_size / (4 * sigma**2) * gain, here)

    def _pick(self, noise: Tensor, cond: Cond, rng: Rng | None) -> Tensor:
        """A training sample for each row, drawn from its own stream, of its class where it has one."""
        if self.data is None or tuple(self.data.shape) != tuple(noise.shape[1:]):
            given = "none are given" if self.data is None else f"those given have shape {self.data.shape}"
            raise UserError(f"init=data needs training data of shape {tuple(noise.shape[1:])}; {given}")
        u = torch.special.ndtr(draw_like(noise.new_empty(len(noise), dtype=torch.float64), rng)).cpu()
        choice = (u * len(self.data)).long() if cond is None else self._of_class(u, cond.cpu())
        return to_model_range(self.data.fetch(choice).x).to(noise.device, noise.dtype)

    def _of_class(self, u: Tensor, cond: Tensor) -> Tensor:
        """Indices [B] of data of the classes cond [B], for uniforms u."""
        assert self.data is not None
        labels = labels_of(self.data) if self.data.num_classes else torch.zeros(0, dtype=torch.long)
        counts = labels.bincount(minlength=int(cond.max()) + 1)
        if (counts[cond] == 0).any():
            raise UserError("init=data: the data given have no samples of a class that is asked for")
        order, ends = labels.argsort(stable=True), counts.cumsum(0)
        return order[ends[cond] - counts[cond] + (u * counts[cond]).long()]
