"""The noise schedules sigma(t) of the VP, DDPM and iDDPM processes, in EDM coordinates x = x0 + sigma n."""

from functools import lru_cache
from itertools import pairwise
from math import cos, pi, sin, sqrt
from typing import Literal

import torch
from torch import Tensor

VP_BETA_D, VP_BETA_MIN = 19.9, 0.1
IDDPM_LEVELS, IDDPM_C1, IDDPM_C2 = 1000, 0.001, 0.008
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]  # named as in diffusers


def vp_sigma(t: Tensor, *, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN) -> Tensor:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) for VP times t of any shape."""
    return (beta_d / 2 * t**2 + beta_min * t).expm1().sqrt()


def vp_level(t: float, *, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN) -> float:
    """`vp_sigma` of one Python float."""
    at = torch.tensor(t, dtype=torch.float64, device="cpu")  # a value even where the default device is meta
    return float(vp_sigma(at, beta_d=beta_d, beta_min=beta_min))


def vp_time(sigma: Tensor, *, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN) -> Tensor:
    """The inverse t = 2 L / (sqrt(beta_min^2 + 2 beta_d L) + beta_min), L = ln(1 + sigma^2), of `vp_sigma`.

    The root is rationalised: the usual difference of nearly equal numbers loses digits at small sigma.
    """
    log_variance = sigma.square().log1p()
    return 2 * log_variance / ((beta_min**2 + 2 * beta_d * log_variance).sqrt() + beta_min)


@lru_cache
def iddpm_sigmas(
    *,
    levels: int = IDDPM_LEVELS,
    c1: float = IDDPM_C1,
    c2: float = IDDPM_C2,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The iDDPM noise levels u_0 > ... > u_M = 0, [M + 1] float64, cached on `device`.

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, c1) - 1),  abar_j = sin^2(pi j / (2 M (c2 + 1))).

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
    arXiv 2206.00364, after Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021,
    arXiv 2102.09672.
    """
    abar = [sin(pi / 2 * j / levels / (c2 + 1)) ** 2 for j in range(levels + 1)]
    sigmas = [0.0]
    for j in range(levels, 0, -1):
        sigmas.append(sqrt((sigmas[-1] ** 2 + 1) / max(abar[j - 1] / abar[j], c1) - 1))
    return torch.tensor(sigmas[::-1], dtype=torch.float64, device=device)


def iddpm_index(
    sigma: Tensor, *, levels: int = IDDPM_LEVELS, c1: float = IDDPM_C1, c2: float = IDDPM_C2
) -> Tensor:
    """The index argmin_j |u_j - sigma| of the nearest level, int64, the shape of sigma."""
    table = iddpm_sigmas(levels=levels, c1=c1, c2=c2, device=sigma.device)
    return (sigma[..., None].double() - table).abs().argmin(-1)


@lru_cache
def ddpm_sigmas(
    schedule: BetaSchedule,
    *,
    beta_start: float,
    beta_end: float,
    levels: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The noise levels of DDPM's time steps 0, ..., T - 1, increasing, [T] float64, cached on `device`.

    sigma_t = sqrt(1 / abar_t - 1),  abar_t = prod_{s <= t} (1 - beta_s), where beta is linear between its
    ends, or so is its root (scaled_linear), or beta_t = min(1 - f(t + 1) / f(t), 0.999) with
    f(t) = cos^2(pi / 2 (t / T + 0.008) / 1.008) (squaredcos_cap_v2).

    Source: Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv 2006.11239; Nichol and
    Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv 2102.09672.
    """
    if schedule == "squaredcos_cap_v2":
        f = [cos(pi / 2 * (t / levels + 0.008) / 1.008) ** 2 for t in range(levels + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in pairwise(f)]
        beta = torch.tensor(betas, dtype=torch.float64, device="cpu")
    else:
        power = 2 if schedule == "scaled_linear" else 1
        ends = beta_start ** (1 / power), beta_end ** (1 / power)
        beta = torch.linspace(*ends, levels, dtype=torch.float64, device="cpu") ** power
    return ((1 - beta).cumprod(0).reciprocal() - 1).sqrt().to(device)
