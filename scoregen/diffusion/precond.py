"""Preconditioning: a denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) around a raw network F.

Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
arXiv 2206.00364.
"""

from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from scoregen.data.codec import LogCodec
from scoregen.diffusion import schedules
from scoregen.ranges import NonNegative, Positive, PositiveInt


class Coefficients(NamedTuple):
    """The four preconditioning coefficients, each of the shape of sigma, at least float32."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor  # what the network is told about the noise level


class Precond(Protocol):
    """A function sigma -> Coefficients, good for sigma in [sigma_min, sigma_max]."""

    channel_factor: ClassVar[int]  # the network emits factor x channels; the denoiser keeps the first part

    @property
    def sigma_min(self) -> float:
        """The lowest noise level that the parametrisation is good for."""
        ...

    @property
    def sigma_max(self) -> float:
        """The highest noise level that the parametrisation is good for."""
        ...

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        ...

    def round(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network was trained on."""
        ...


def wide(sigma: Tensor) -> Tensor:
    """Noise levels in float32, or in float64 where they are given so."""
    return sigma if sigma.dtype == torch.float64 else sigma.float()


class Continuous:
    """A parametrisation for every noise level of its range."""

    channel_factor: ClassVar[int] = 1

    def round(self, sigma: Tensor) -> Tensor:
        """The identity."""
        return sigma


@dataclass(frozen=True)
class EDMPrecond(Continuous):
    """Keeps the input and the training target of F at unit variance for data of std sigma_data.

    c_skip = sd^2 / (sigma^2 + sd^2),  c_out = sigma sd / sqrt(sigma^2 + sd^2),
    c_in = 1 / sqrt(sigma^2 + sd^2),  c_noise = ln(sigma) / 4.
    """

    sigma_data: Positive = 0.5
    sigma_min: NonNegative = 0.0
    sigma_max: Positive = inf

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        sigma = wide(sigma)
        total = sigma.square() + self.sigma_data**2
        return Coefficients(
            skip=self.sigma_data**2 / total,
            out=sigma * self.sigma_data * total.rsqrt(),
            input=total.rsqrt(),
            noise=sigma.log() / 4,
        )


@dataclass(frozen=True)
class VPPrecond(Continuous):
    """Reads F as the noise prediction of the VP process (Song et al., 2021, arXiv 2011.13456).

    c_skip = 1,  c_out = -sigma,  c_in = 1 / sqrt(sigma^2 + 1),  c_noise = (M - 1) t(sigma).
    """

    beta_d: Positive = schedules.VP_BETA_D
    beta_min: Positive = schedules.VP_BETA_MIN
    epsilon_t: Positive = 1e-5  # the smallest training time
    levels: PositiveInt = 1000  # M, the time steps of the discrete process that c_noise counts in

    @property
    def sigma_min(self) -> float:
        """sigma(epsilon_t)."""
        return schedules.vp_level(self.epsilon_t, beta_d=self.beta_d, beta_min=self.beta_min)

    @property
    def sigma_max(self) -> float:
        """sigma(1)."""
        return schedules.vp_level(1.0, beta_d=self.beta_d, beta_min=self.beta_min)

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        sigma = wide(sigma)
        time = schedules.vp_time(sigma, beta_d=self.beta_d, beta_min=self.beta_min)
        return Coefficients(
            skip=torch.ones_like(sigma),
            out=-sigma,
            input=(sigma.square() + 1).rsqrt(),
            noise=(self.levels - 1) * time,
        )


@dataclass(frozen=True)
class DDPMPrecond(Continuous):
    """Reads F as what a DDPM of T time steps predicts, at its own noise levels and between them.

    epsilon: D = x - sigma F,  v_prediction: D = (x - sigma sqrt(sigma^2 + 1) F) / (sigma^2 + 1),
    sample: D = F,  c_in = 1 / sqrt(sigma^2 + 1),  c_noise = t(sigma), time steps interpolated in ln(sigma).

    Args:
        prediction: what F predicts. schedule, beta_start, beta_end, levels: as for `schedules.ddpm_sigmas`.

    Source: Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv 2006.11239; Salimans
    and Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022, arXiv 2202.00512.
    """

    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    schedule: schedules.BetaSchedule = "linear"
    beta_start: Positive = 1e-4
    beta_end: Positive = 0.02
    levels: PositiveInt = 1000

    @property
    def sigma_min(self) -> float:
        """The level of time step 0."""
        return float(self._table("cpu")[0])

    @property
    def sigma_max(self) -> float:
        """The level of the last time step."""
        return float(self._table("cpu")[-1])

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        sigma = wide(sigma)
        total = sigma.square() + 1
        skip, out = {
            "epsilon": (torch.ones_like(sigma), -sigma),
            "v_prediction": (total.reciprocal(), -sigma * total.rsqrt()),
            "sample": (torch.zeros_like(sigma), torch.ones_like(sigma)),
        }[self.prediction]
        return Coefficients(skip=skip, out=out, input=total.rsqrt(), noise=self._time(sigma))

    def _time(self, sigma: Tensor) -> Tensor:
        """The time step whose level is sigma, a fraction between two of them."""
        table = self._table(sigma.device).log()
        at = sigma.double().log().clamp(table[0], table[-1])
        above = torch.searchsorted(table, at).clamp(1, self.levels - 1)
        low, high = table[above - 1], table[above]
        return (above - 1 + (at - low) / (high - low)).to(sigma.dtype)

    def _table(self, device: torch.device | str) -> Tensor:
        ends = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        return schedules.ddpm_sigmas(self.schedule, **ends, levels=self.levels, device=device)


@dataclass(frozen=True)
class VEPrecond(Continuous):
    """Reads F as minus the noise prediction of the VE process (Song et al., 2021, arXiv 2011.13456).

    c_skip = 1,  c_out = sigma,  c_in = 1,  c_noise = ln(sigma / 2).
    """

    sigma_min: Positive = 0.02
    sigma_max: Positive = 100.0

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        sigma = wide(sigma)
        one = torch.ones_like(sigma)
        return Coefficients(skip=one, out=sigma, input=one, noise=(sigma / 2).log())


@dataclass(frozen=True)
class FlowPrecond(Continuous):
    """Reads F as the velocity n - x0 of the straight way z = (1 - t) x0 + t n: flow matching.

    c_skip = c_in = 1 / (1 + sigma),  c_out = -t,  c_noise = M t,  t = sigma / (1 + sigma), since
    z = x / (1 + sigma) and z - t (n - x0) = x0.

    Source: Lipman et al., Flow Matching for Generative Modeling, 2022, arXiv 2210.02747; Liu, Gong and Liu,
    Flow Straight and Fast, 2022, arXiv 2209.03003.
    """

    sigma_min: NonNegative = 0.0
    sigma_max: Positive = inf
    levels: PositiveInt = 1000  # M, in which c_noise counts the time

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        sigma = wide(sigma)
        share = 1 / (1 + sigma)
        time = sigma * share
        return Coefficients(skip=share, out=-time, input=share, noise=self.levels * time)


@dataclass(frozen=True)
class LogPrecond(EDMPrecond):
    """EDM's coefficients for the logarithms of positive data under geometric Brownian motion.

    dX = mu X dt + s X dW has ln X_t = ln X_0 + (mu - s^2 / 2) t + s sqrt(t) n. That drift is known, so
    u = ln X without it is u_0 + sigma n, sigma = s sqrt(t), as every denoiser takes it. The defaults are the
    paper's s = 0.8, T = 1, and the first of its 1,000 time steps.

    Args:
        sigma_data: standard deviation of the logarithms.
        sigma_min: s / sqrt(N) for N time steps. sigma_max: s sqrt(T).
        codec: how samples become logarithms.

    Source: Shetty, Prasath and Seelamantula, Dale meets Langevin: A Multiplicative Denoising Diffusion Model,
    2025, arXiv 2510.02730 (of which abstract and code were read). The coefficients are ours.
    """

    sigma_data: Positive = 0.24
    sigma_min: Positive = 0.0253
    sigma_max: Positive = 0.8
    codec: LogCodec = LogCodec()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class HyvarinenPrecond(Continuous):
    """Reads F as the score of the positive values y = e^u themselves, as published; see `HyvarinenDenoiser`.

    c_skip = 1,  c_out = sigma,  c_in = e^(-sigma^2), which multiplies y,  c_noise = ln(sigma) / 4.

    The published network sees 2 y - 1 at every sigma; c_in, which keeps the second moment of y, and c_out are
    inferred. Arguments and source as for `LogPrecond`.
    """

    sigma_min: Positive = 0.0253
    sigma_max: Positive = 0.8
    codec: LogCodec = LogCodec()  # noqa: RUF009 - frozen

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        sigma = wide(sigma)
        return Coefficients(
            skip=torch.ones_like(sigma),
            out=sigma,
            input=(-sigma.square()).exp(),
            noise=sigma.log() / 4,
        )


@dataclass(frozen=True)
class IDDPMPrecond:
    """Reads the first half of F's channels as the noise prediction of a discrete iDDPM or ADM model.

    c_skip = 1,  c_out = -sigma,  c_in = 1 / sqrt(sigma^2 + 1),  c_noise = M - 1 - argmin_j |u_j - sigma|;
    the second half of the channels, the variance head, is dropped. Levels u_j: `schedules.iddpm_sigmas`.
    """

    levels: PositiveInt = schedules.IDDPM_LEVELS  # M
    c1: Positive = schedules.IDDPM_C1
    c2: Positive = schedules.IDDPM_C2
    channel_factor: ClassVar[int] = 2

    @property
    def sigma_min(self) -> float:
        """u_{M-1}, the lowest level above zero."""
        return float(self._table("cpu")[-2])

    @property
    def sigma_max(self) -> float:
        """u_0."""
        return float(self._table("cpu")[0])

    def __call__(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma [] or [B]."""
        sigma = wide(sigma)
        return Coefficients(
            skip=torch.ones_like(sigma),
            out=-sigma,
            input=(sigma.square() + 1).rsqrt(),
            noise=(self.levels - 1 - self._index(sigma)).to(sigma.dtype),
        )

    def round(self, sigma: Tensor) -> Tensor:
        """The nearest levels u_j, at least float32."""
        return self._table(sigma.device)[self._index(sigma)].to(wide(sigma).dtype)

    def _table(self, device: torch.device | str) -> Tensor:
        return schedules.iddpm_sigmas(levels=self.levels, c1=self.c1, c2=self.c2, device=device)

    def _index(self, sigma: Tensor) -> Tensor:
        return schedules.iddpm_index(sigma, levels=self.levels, c1=self.c1, c2=self.c2)
