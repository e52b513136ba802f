"""The denoising loss on held-out images with fixed noise: the one training curve that shows overfitting."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoregen.data.base import Batch, Dataset, to_model_range
from scoregen.data.codec import codec_of
from scoregen.denoisers.base import Denoise, expand
from scoregen.ranges import Positive, PositiveInt
from scoregen.rng import BatchRng, generator
from scoregen.training.hooks.base import Hook

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer


class HeldoutHook(Hook):
    """Measure E[lambda(sigma) (D(x0 + sigma n; sigma) - x0)^2] on held-out images, paired, by noise level.

    A fixed bank of (image, sigma, noise), averaged weights and no augmentation make evaluations comparable
    image by image: an improvement counts when the mean paired difference to the best so far exceeds its
    standard error, for the mean of all levels, on which patience waits, and for each level: small ones
    overfit first. The same bank on training images gives the generalisation gap. No model of the population
    has a loss under its floor; a training loss that is lower, by more than three standard errors, than the
    lowest held-out loss so far, which stands for the floor, means that the network memorises there.
    lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.

    Source: early stopping as in "Neural Network-Based Score Estimation in Diffusion Models: Optimization and
    Generalization", Y. Han, M. Razaviyayn, R. Xu, 2024, arXiv 2401.15604 (of which the abstract was read);
    bank, levels, the one-standard-error criterion and the monitor of memorisation are this project's.

    Args:
        every: images between two evaluations.
        images: size of the bank, from the test split and again from the training split.
        levels: noise levels, log-spaced in [sigma_min, sigma_max].
        draws: noise draws for each image and level.
        batch: images at a time on one process.
        patience: evaluations without improvement after which the run stops; null never stops it.
        sigma_data: standard deviation of the data in the weight.
    """

    def __init__(
        self,
        every: PositiveInt | None = None,
        *,
        images: PositiveInt = 128,
        levels: PositiveInt = 16,
        draws: PositiveInt = 4,
        sigma_min: Positive = 0.01,
        sigma_max: Positive = 50.0,
        batch: PositiveInt = 64,
        patience: PositiveInt | None = None,
        sigma_data: Positive = 0.5,
    ) -> None:
        super().__init__(every)
        self.images, self.draws, self.batch = images, draws, batch
        self.patience, self.sigma_data = patience, sigma_data
        self.sigmas = torch.logspace(torch.tensor(sigma_min).log10(), torch.tensor(sigma_max).log10(), levels)
        # One column a level, then their mean: the losses [images, levels + 1] at the best evaluation of each
        # column, and the evaluations since.
        self._best: Tensor | None = None
        self._stale = torch.zeros(levels + 1, dtype=torch.long)

    def __call__(self, trainer: "Trainer") -> None:
        with trainer.averaged_denoiser() as denoiser:
            assert trainer.heldout is not None, "the test split is read where this hook is active"
            heldout = self.evaluate(denoiser, trainer.heldout, trainer)
            train = self.evaluate(denoiser, trainer.stream.dataset, trainer)
        self._judge(heldout)
        assert self._best is not None
        memorised = is_memorised(train, self._best[:, :-1])
        trainer.heldout_loss = float(heldout.mean())
        trainer.log(
            {
                "heldout_loss": _rounded(heldout.mean().item()),
                "heldout_loss_by_sigma": self._by_level(heldout.mean(0)),
                "heldout_gap_by_sigma": self._by_level(heldout.mean(0) - train.mean(0)),
                "heldout_improved": self._stale[-1].item() == 0,
                "heldout_stale_by_sigma": self._by_level(self._stale[:-1]),
                "heldout_memorised_by_sigma": self._by_level(memorised),
            }
        )
        if trainer.parallel.is_main:
            print(f"{trainer.nimg:>12,} {self._line(trainer.heldout_loss, memorised)}", flush=True)

    def _by_level(self, values: Tensor) -> dict[str, float]:
        """Values [levels] for the log, each under its place and noise level: `4_0.0974`."""
        names = (f"{k}_{sigma:.3g}" for k, sigma in enumerate(self.sigmas.tolist()))
        return {name: _rounded(value) for name, value in zip(names, values.tolist(), strict=True)}

    def _line(self, loss: float, memorised: Tensor) -> str:
        """The evaluation in words."""
        stale = int(self._stale[-1])
        since = f"no better for {stale} evaluation{'s' * (stale > 1)}" if stale else "the best so far"
        where = ", ".join(f"{sigma:.2g}" for sigma in self.sigmas[memorised].tolist())
        return f"held-out loss {loss:.4f}, {since}" + (f"; memorises at sigma {where}" if where else "")

    @property
    def stop_reason(self) -> str | None:
        """That patience has run out."""
        stale = int(self._stale[-1])
        if self.patience is None or stale < self.patience:
            return None
        return f"the held-out loss has not improved for {stale} evaluations"

    def evaluate(self, denoiser: Denoise, data: Dataset, trainer: "Trainer") -> Tensor:
        """Weighted losses [images, levels], float64 on the CPU, the same in every process."""
        count, parallel = min(self.images, len(data)), trainer.parallel
        order = torch.randperm(len(data), generator=generator("heldout", "images"))[:count]
        mine = slice(parallel.rank * count // parallel.world, (parallel.rank + 1) * count // parallel.world)
        losses = torch.zeros(count, len(self.sigmas), dtype=torch.float64)
        for start in range(mine.start, mine.stop, self.batch):
            rows = slice(start, min(start + self.batch, mine.stop))
            losses[rows] = self._losses(denoiser, data.fetch(order[rows]), count, rows, parallel.device).cpu()
        return parallel.sum(losses)

    @torch.no_grad()
    def _losses(
        self, denoiser: Denoise, batch: Batch, count: int, rows: slice, device: torch.device
    ) -> Tensor:
        """Weighted losses [rows, levels] of these images, averaged over the draws of noise."""
        x0 = codec_of(denoiser).encode(to_model_range(batch.x.to(device)))
        cond = None if batch.label is None else batch.label.to(device)
        levels = []
        for level, sigma in enumerate(self.sigmas.tolist()):
            # Drawn on the CPU, so that the bank is the same on every device.
            banks = (BatchRng("heldout", level, draw, size=count, rows=rows) for draw in range(self.draws))
            noises = (bank.randn(*x0.shape[1:]).to(device) for bank in banks)
            draws = [self._loss(denoiser, x0, noise, sigma, cond) for noise in noises]
            levels.append(torch.stack(draws).mean(0))
        return torch.stack(levels, 1)

    def _loss(
        self, denoiser: Denoise, x0: Tensor, noise: Tensor, sigma: float, cond: Tensor | None
    ) -> Tensor:
        levels = torch.full((len(x0),), sigma, device=x0.device)
        error = denoiser(x0 + expand(levels, x0) * noise, levels, cond) - x0
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return weight * error.square().flatten(1).mean(1)

    def _judge(self, losses: Tensor) -> None:
        """Compare losses [images, levels] and their mean to the best so far, and keep the better columns."""
        losses = torch.cat([losses, losses.mean(1, keepdim=True)], 1)
        if self._best is None:
            self._best = losses
            return
        gain = self._best - losses
        spread = gain.std(0, correction=min(1, len(gain) - 1))  # of one image 0: it is judged by its sign
        improved = gain.mean(0) > spread / len(gain) ** 0.5
        self._stale = torch.where(improved, 0, self._stale + 1)
        self._best = torch.where(improved, losses, self._best)

    def state(self) -> dict[str, Any]:
        """The best losses by image and level, and the evaluations since."""
        return {"best": None if self._best is None else self._best.tolist(), "stale": self._stale.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        best = state["best"]
        self._best = None if best is None else torch.tensor(best, dtype=torch.float64)
        self._stale = torch.tensor(state["stale"])


def is_memorised(train: Tensor, heldout: Tensor) -> Tensor:
    """Whether training losses [images, levels] are three standard errors under held-out ones, by level.

    Of one image alone no standard error is known, and nothing is said to be memorised.
    """
    if min(len(train), len(heldout)) < 2:
        return torch.zeros(train.shape[1], dtype=torch.bool)
    error = (train.var(0) / len(train) + heldout.var(0) / len(heldout)).sqrt()
    return heldout.mean(0) - train.mean(0) > 3 * error


def _rounded(value: float) -> float:
    """A number for the log, with 8 digits; counts and answers as they are."""
    return float(f"{value:.8g}") if isinstance(value, float) else value
