"""WaveGrad's sampler: ancestral sampling from noise of unit variance."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser
from scoregen.rng import Rng
from scoregen.samplers.ancestral import EulerAncestralSampler


@dataclass(frozen=True)
class WaveGradSampler(EulerAncestralSampler):
    """`EulerAncestralSampler` that starts at y_N ~ N(0, I), which is x = sqrt(1 + sigma_N^2) n.

    With eta = 1 a step is, in y = l x, the published
    y' = (y - beta / sqrt(1 - l^2) e) / sqrt(1 - beta) + sqrt((1 - l'^2) / (1 - l^2) beta) z.

    The other samplers start at sigma_N n. Both are the same where sigma_N is large. A short schedule ends
    where the data are still visible, and a start at N(0, I) is then of another noise level than the network
    is told: it leans on the conditioning.

    Source: Chen et al., WaveGrad: Estimating Gradients for Waveform Generation, 2020, arXiv 2009.00713 (two
    implementations were read).
    """

    reference: ClassVar[str] = "Chen et al. 2020, arXiv 2009.00713"

    def begin(
        self, denoiser: Denoiser, noise: Tensor, sigmas: Sequence[float], cond: Cond, rng: Rng | None
    ) -> Tensor:
        """Noise of unit variance as x, [B, *shape]."""
        return noise * sqrt(1 + sigmas[0] ** 2)
