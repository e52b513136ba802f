"""Statistics of a denoiser along its own trajectories, from which DPM-Solver-v3 takes its coefficients."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step
from scoregen.errors import UserError
from scoregen.rng import generator
from scoregen.samplers.base import level_tensor, round_sigmas
from scoregen.samplers.multistep import DPMpp2MSampler

_STILL = 1e-10  # variance of f, in units of x squared, that float32 rounding may make of a constant


@dataclass(frozen=True, eq=False)  # known by identity: rules are cached for it
class ModelStatistics:
    """l, s and b at knots of lambda = -ln sigma; float64, on the CPU.

    With f = sigma eps - l x: l = E[diag(sigma d eps / d x)], and s, b are those of the regression
    df/dlambda = s f + b, each per coordinate, over trajectories of the model.
    """

    knots: Tensor  # lambda [n], increasing
    values: Tensor  # l, s, b: [3, n, *shape]

    def __call__(self, at: Tensor) -> Tensor:
        """l, s, b [3, m, *shape] at lambda [m], by cubic Hermite interpolation.

        Raises UserError outside the knots.
        """
        low, high = float(self.knots[0]), float(self.knots[-1])
        if at.min() < low - 1e-6 or at.max() > high + 1e-6:
            raise UserError(
                f"dpm_v3: the statistics cover noise levels from {_level(high):.3g} to {_level(low):.3g}, "
                f"the steps reach from {_level(float(at.max())):.3g} to {_level(float(at.min())):.3g}: "
                "estimate them over that range"
            )
        right = torch.searchsorted(self.knots, at).clamp(1, len(self.knots) - 1)
        left, width = right - 1, self.knots.diff()[right - 1]
        t, width = (_column(v, self.values[0]) for v in ((at - self.knots[left]) / width, width))
        slopes = _gradient(self.values, self.knots)
        bends = (slopes[:, left] * width, slopes[:, right] * width)
        value = (1 + 2 * t) * (1 - t) ** 2 * self.values[:, left] + t**2 * (3 - 2 * t) * self.values[:, right]
        return value + t * (1 - t) ** 2 * bends[0] - t**2 * (1 - t) * bends[1]

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file."""
        from safetensors.torch import save_file

        save_file({"knots": self.knots, "values": self.values}, path)

    @classmethod
    def load(cls, path: str | Path) -> "ModelStatistics":
        """Read what `save` wrote; UserError where there is no such file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
            return cls(tensors["knots"], tensors["values"])
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"dpm_v3: {path} is no file of model statistics: {error}") from error


def estimate_statistics(
    denoiser: Denoiser,
    sigma_min: float,
    sigma_max: float,
    *,
    knots: int = 60,
    count: int = 64,
    device: torch.device | str = "cpu",
) -> ModelStatistics:
    """Estimate a denoiser's statistics on `count` trajectories from sigma_max to sigma_min.

    The trajectories are those of DPM-Solver++(2M) on the knots, from noise of a fixed seed and classes in
    turn; l is Hutchinson's estimate with one Rademacher probe a sample, df/dlambda a central difference. It
    costs 2 knots evaluations of `count` samples and knots gradients.

    Source: Zheng et al., DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics, 2023,
    arXiv 2310.13268; the estimator is derived (the authors' repository leaves it out).
    """
    ramp = torch.linspace(0, 1, knots, dtype=torch.float64)
    levels = round_sigmas(denoiser, (sigma_max * (sigma_min / sigma_max) ** ramp).tolist())
    levels = sorted(set(levels), reverse=True)
    random = generator("dpm_v3")
    noise = torch.randn(count, *denoiser.shape, generator=random).to(device)
    classes = denoiser.num_classes
    cond = (torch.arange(count) % classes).to(device) if classes else None
    x, states, denoised, slopes = levels[0] * noise, [], [], []
    tensor = level_tensor(levels, x)
    for i, step in enumerate(DPMpp2MSampler().integrate(denoiser, x, [*levels, 0.0], cond)):
        probe = torch.randint(2, x.shape, generator=random).to(x) * 2 - 1
        slopes.append(_diagonal(denoiser, x, levels[i], tensor[i], cond, probe).double().cpu())
        states.append(x.double().cpu())
        denoised.append(step.denoised.double().cpu())
        x = step.x
    at = -torch.tensor(levels, dtype=torch.float64).log()
    return regress(at, torch.stack(states), torch.stack(denoised), 1 - torch.stack(slopes))


def regress(at: Tensor, x: Tensor, denoised: Tensor, slope: Tensor) -> ModelStatistics:
    """Statistics from states and D [n, count, *shape] at lambda [n] and l [n, *shape]."""
    f = (1 - slope)[:, None] * x - denoised
    rate = _gradient(f[None], at)[0]
    mean, mean_rate = f.mean(1), rate.mean(1)
    variance = (f - mean[:, None]).square().mean(1)
    covariance = ((f - mean[:, None]) * (rate - mean_rate[:, None])).mean(1)
    still = variance <= _STILL * x.square().mean(1)
    s = torch.where(still, 0.0, covariance / variance.clamp(min=torch.finfo(torch.float64).tiny))
    return ModelStatistics(at, torch.stack([slope, s, mean_rate - s * mean]))


def _diagonal(
    denoiser: Denoiser, x: Tensor, sigma: float, level: Tensor, cond: Cond, probe: Tensor
) -> Tensor:
    """The mean over samples of diag(dD/dx), [*shape], from v * (v^T dD/dx) for probes v."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = denoiser_for_step(denoiser, sigma)(x, level, cond)
        (gradient,) = torch.autograd.grad((out * probe).sum(), x)
    return (probe * gradient).mean(0)


def _gradient(values: Tensor, at: Tensor) -> Tensor:
    """d/dlambda of values [k, n, ...] given at lambda [n], by differences of second order."""
    (slopes,) = torch.gradient(values, spacing=(at,), dim=1, edge_order=2)
    return slopes


def _column(v: Tensor, like: Tensor) -> Tensor:
    """v [m] to broadcast against [m, *shape]."""
    return v.reshape(-1, *(1,) * (like.ndim - 1))


def _level(at: float) -> float:
    return float(torch.tensor(-at, dtype=torch.float64).exp())
