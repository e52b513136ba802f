"""Averages of the weights over training: EDM's half-life, and power functions of any width after the fact."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from scoregen.errors import UserError
from scoregen.ranges import Positive, PositiveInt
from scoregen.sharding import local, parted
from scoregen.training.weights import write_weights

MAX_SIGMA_REL = 12**-0.5  # the width of the flat average, gamma = 0
SNAPSHOTS = "ema_snapshots"  # folder in a run
FP16_MAX = 65504.0


class EMA(ABC):
    """Averages the parameters of one module in float32, in one or more tracks; buffers are not averaged.

    Where parameters are sharded, so are their averages.

    ema <- ema + (1 - beta) (parameters - ema), beta of each track by the subclass.

    A track is named as its file is: `ema` is the first, the one to sample from; others are `ema_<name>`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._module: nn.Module | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._tracks: dict[str, list[Tensor]] = {}
        self._is_float32 = True
        self._averaged: dict[str, str] = {}  # key in the module's state to name of the parameter

    @abstractmethod
    def betas(self, nimg: int, batch: int) -> tuple[float, ...]:
        """The share of itself that each track keeps in the step from nimg to nimg + batch images."""

    def attach(self, module: nn.Module) -> Self:
        """Start all tracks at the parameters of `module`, on their device, and follow it from now on."""
        self._module = module
        self._parameters = dict(module.named_parameters())
        self._is_float32 = all(p.dtype == torch.float32 for p in self._parameters.values())
        # A parameter that two modules share has two keys in the state and one average.
        names = {id(p): name for name, p in self._parameters.items()}
        self._averaged = {key: names[id(p)] for key, p in module.named_parameters(remove_duplicate=False)}
        self._tracks = {
            name: [p.detach().to(torch.float32, copy=True) for p in self._parameters.values()]
            for name in self._names
        }
        return self

    @torch.no_grad()
    def update(self, *, nimg: int, batch: int, applied: Tensor | None = None) -> None:
        """Move the tracks towards the parameters after the step from `nimg` to `nimg + batch` images.

        `applied` [] is 1, or 0 for a step that was skipped, which then leaves the tracks as they are. It
        stays on the device, so that the host need not wait; the parameters must be finite.
        """
        ends = [local(p) for p in self._parameters.values()]
        if not self._is_float32:
            ends = [end.to(torch.float32) for end in ends]
        for averages, beta in zip(self._tracks.values(), self.betas(nimg, batch), strict=True):
            track = [local(average) for average in averages]
            if applied is None:
                torch._foreach_lerp_(track, ends, 1 - beta)
            else:
                weight = (1 - beta) * applied.to(torch.float32)
                torch._foreach_lerp_(track, ends, [weight] * len(track))

    def tracks(self) -> dict[str, dict[str, Tensor]]:
        """The averages themselves, float32: track name to parameter name to tensor, the first track first."""
        return {name: dict(zip(self._parameters, track, strict=True)) for name, track in self._tracks.items()}

    @torch.no_grad()
    def load(self, tracks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore `tracks()` or `weights()` bit for bit; UserError for other tracks, parameters or shapes."""
        for name, track in self.tracks().items():
            saved = tracks.get(name, {})
            wrong = [key for key, own in track.items() if key not in saved or saved[key].shape != own.shape]
            if wrong:
                raise UserError(
                    f"The saved averages do not hold the track '{name}' of this configuration: {len(wrong)} "
                    f"parameters are missing or of another shape (first: {wrong[0]}); saved are the tracks "
                    f"{', '.join(tracks) or 'none'}. Keep the `ema` and `network` that the run began with."
                )
        for name, track in self.tracks().items():
            for key, own in track.items():
                own.copy_(parted(tracks[name][key], own))

    def averaged_keys(self) -> tuple[str, ...]:
        """The keys of `weights()` that are averages; the others are buffers."""
        return tuple(self._averaged)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """What a weights file of each track holds: the averages, and the module's buffers as they are."""
        assert self._module is not None, "attach a module first"
        averaged = self._averaged
        state = {key: value.detach() for key, value in self._module.state_dict().items()}
        return {
            name: {key: track[averaged[key]] if key in averaged else value for key, value in state.items()}
            for name, track in self.tracks().items()
        }

    @torch.no_grad()
    def copy_to(self, module: nn.Module, track: str = "ema") -> None:
        """Overwrite the parameters of `module`, built like the attached one, with a track."""
        source = self.tracks()[track]
        target: dict[str, Tensor] = dict(module.named_parameters())
        assert list(target) == list(source), "another module than the attached one"
        torch._foreach_copy_(list(target.values()), list(source.values()))

    @contextmanager
    def swapped(self, module: nn.Module, track: str = "ema") -> Iterator[None]:
        """Within it `module` computes with a track's weights; its own come back bit for bit."""
        parameters: list[Tensor] = list(module.parameters())
        with torch.no_grad():
            own = [p.clone() for p in parameters]
        self.copy_to(module, track)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, own)


class HalfLifeEMA(EMA):
    """Exponential average with a half-life in images, shortened at the start of training.

    beta = 0.5^(B / min(H, r n)), n the images before the step; beta = 0 at n = 0.

    Args:
        half_life: H, images.
        ramp: r, the largest half-life as a fraction of the images seen; null does not shorten.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, T. Karras, M. Aittala, T. Aila,
    S. Laine, 2022, arXiv 2206.00364; the rule as in its code.
    """

    def __init__(self, half_life: PositiveInt, ramp: Positive | None = 0.05) -> None:
        super().__init__(["ema"])
        self.half_life, self.ramp = half_life, ramp

    def betas(self, nimg: int, batch: int) -> tuple[float]:
        """beta in the step from nimg to nimg + batch images."""
        half_life = self.half_life if self.ramp is None else min(self.half_life, self.ramp * nimg)
        return (0.5 ** (batch / half_life) if half_life > 0 else 0.0,)


class PowerEMA(EMA):
    """Averages whose weight at training time tau grows as tau^gamma, as wide as `sigma_rels`.

    beta = (1 - B / t)^(gamma + 1), t the images after the step; beta = 0 in the first.
    Two tracks and their snapshots along the run suffice to reconstruct any width between them.

    Args:
        sigma_rels: standard deviations of the profiles relative to training time, the first to sample from.

    Source: Analyzing and Improving the Training Dynamics of Diffusion Models, T. Karras, M. Aittala,
    J. Lehtinen, J. Hellsten, T. Aila, S. Laine, 2024, arXiv 2312.02696; the rule as in its code.
    """

    def __init__(self, sigma_rels: tuple[Positive, ...] = (0.05, 0.10)) -> None:
        names = [f"ema_{sigma_rel:.3f}" for sigma_rel in sigma_rels]
        exact = all(round(sigma_rel, 3) == sigma_rel for sigma_rel in sigma_rels)
        if not (names and exact and len(set(names)) == len(names)):
            given = list(sigma_rels)
            raise UserError(f"ema.sigma_rels={given}: give one or more different widths of three decimals")
        super().__init__(["ema", *names[1:]])
        self.sigma_rels = tuple(sigma_rels)
        self.gammas = tuple(power_gamma(sigma_rel) for sigma_rel in sigma_rels)

    def betas(self, nimg: int, batch: int) -> tuple[float, ...]:
        """beta of each track in the step from nimg to nimg + batch images."""
        return tuple((1 - batch / (nimg + batch)) ** (gamma + 1) for gamma in self.gammas)


def power_gamma(sigma_rel: float) -> float:
    """The exponent of the profile of relative width sigma_rel; UserError outside (0, 12^-1/2).

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved for the largest real root.
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise UserError(f"sigma_rel={sigma_rel} must be more than 0 and less than {MAX_SIGMA_REL:.4f}")
    precision = sigma_rel**-2
    roots = np.roots([1, 7, 16 - precision, 12 - precision])
    return float(roots[np.abs(roots.imag) < 1e-8].real.max())


def power_coefficients(
    times: Sequence[float], gammas: Sequence[float], time: float, gamma: float
) -> np.ndarray:
    """Weights [n] of stored profiles (times, gammas) whose sum comes nearest to the profile (time, gamma).

    Solves A X = b with the inner products A of the stored profiles and b with the target, in float64, and
    normalises X to sum 1. Coefficients may be negative and large.
    """
    t, g, t_wanted, g_wanted = (np.asarray(a, np.float64) for a in (times, gammas, time, gamma))
    products = _inner_product(t[:, None], g[:, None], t, g)
    solution = np.linalg.solve(products, _inner_product(t, g, t_wanted, g_wanted))
    return np.asarray(solution / solution.sum())


def _inner_product(t_a: np.ndarray, g_a: np.ndarray, t_b: np.ndarray, g_b: np.ndarray) -> np.ndarray:
    """<a, b> = (g_a+1)(g_b+1) / ((g_a+g_b+1) max(t_a, t_b)) (t_a/t_b)^(g_b if t_a < t_b else -g_a)."""
    exponent = np.where(t_a < t_b, g_b, -g_a)
    scale = (g_a + 1) * (g_b + 1) / ((g_a + g_b + 1) * np.maximum(t_a, t_b))
    return np.asarray(scale * (t_a / t_b) ** exponent)


def snapshot_path(run_dir: Path, nimg: int, sigma_rel: float) -> Path:
    """The file of one track at one time."""
    return run_dir / SNAPSHOTS / f"{nimg:012d}_{sigma_rel:.3f}.safetensors"


def save_snapshot(
    run_dir: Path,
    ema: PowerEMA,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    nimg: int,
    metadata: Mapping[str, str],
) -> list[Path]:
    """Store every track of `weights()`, whole, for post-hoc reconstruction; one process calls it.

    Averages are stored in float16, those beyond its range in float32, and buffers as they are.
    """
    paths = []
    averaged = ema.averaged_keys()
    for sigma_rel, tensors in zip(ema.sigma_rels, weights.values(), strict=True):
        stored = {key: _half(value) if key in averaged else value for key, value in tensors.items()}
        own = {"nimg": str(nimg), "sigma_rel": repr(sigma_rel), "averaged": "\n".join(averaged)}
        paths.append(snapshot_path(run_dir, nimg, sigma_rel))
        write_weights(paths[-1], stored, {**metadata, **own})
    return paths


def _half(value: Tensor) -> Tensor:
    return value.half() if value.numel() == 0 or value.abs().max() <= FP16_MAX else value
