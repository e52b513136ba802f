"""Guidance away from a reference: the same model without its class, or a weaker model."""

from typing import Self

import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoiser, denoiser_for_step, denoiser_for_trajectory
from scoregen.denoisers.guidance.base import Guidance, Interval, check_shape, evaluations
from scoregen.errors import UserError
from scoregen.rng import Rng


class ClassifierFreeGuidance(Guidance):
    """Push a class-conditional denoiser away from what it says of no class, D_0(x) = D(x; null class).

    D_w = D_0 + w (D - D_0)

    Both are one batched forward. Nothing is pushed without class ids. The model must have learned the null
    class, id num_classes (`trainer.label_dropout` above 0).

    Args:
        denoiser: a conditional one.
        weight: w; 1 is neutral. Ho and Salimans' own w is ours less 1.
        interval: (sigma_low, sigma_high]; None is everywhere.

    Raises UserError for an unconditional denoiser.
    Source: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv 2207.12598.
    """

    def __init__(self, denoiser: Denoiser, weight: float, interval: Interval | None = None) -> None:
        super().__init__(denoiser, weight, interval)
        if denoiser.num_classes == 0:
            raise UserError(
                "classifier-free guidance needs a model with classes, and this one has none; train one with "
                "data.conditional=true trainer.label_dropout=0.1, or guide it by a weaker model "
                "(autoguidance), a classifier or a discriminator"
            )

    @property
    def neutral(self) -> bool:
        """Whether w = 1."""
        return self.weight == 1

    @property
    def evaluations(self) -> int:
        """2 for a plain denoiser, 1 at w = 1."""
        return evaluations(self.denoiser) * (1 if self.neutral else 2)

    def push(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """D and (w - 1) (D - D_0)."""
        if cond is None:
            return self.denoiser(x, sigma, None), None
        both = torch.cat([cond, torch.full_like(cond, self.num_classes)])
        sigmas = sigma if sigma.ndim == 0 else torch.cat([sigma, sigma])
        denoised, reference = self.denoiser(torch.cat([x, x]), sigmas, both).chunk(2)
        return denoised, (self.weight - 1) * (denoised - reference)


class Autoguidance(Guidance):
    """Push a denoiser away from a weaker one, D_0, that errs in the same directions, with the same labels.

    D_w = D_0 + w (D - D_0)

    Args:
        denoiser: any.
        weaker: of the same samples and classes: smaller, less trained, or of another EMA length.
        weight: w; 1 is neutral.
        interval: (sigma_low, sigma_high]; None is everywhere.

    Raises UserError where the weaker denoiser is of other samples or classes.
    Source: Karras et al., Guiding a Diffusion Model with a Bad Version of Itself, 2024, arXiv 2406.02507.
    """

    def __init__(
        self, denoiser: Denoiser, weaker: Denoiser, weight: float, interval: Interval | None = None
    ) -> None:
        super().__init__(denoiser, weight, interval)
        check_shape("the weaker model", weaker, denoiser)
        if weaker.num_classes != denoiser.num_classes:
            raise UserError(
                f"autoguidance: the weaker model knows {weaker.num_classes} classes, the guided one "
                f"{denoiser.num_classes}; give an earlier checkpoint or another EMA of the same run"
            )
        self.weaker = weaker
        if not self.neutral:
            self.sigma_min = max(self.sigma_min, weaker.sigma_min)
            self.sigma_max = min(self.sigma_max, weaker.sigma_max)

    @property
    def neutral(self) -> bool:
        """Whether w = 1."""
        return self.weight == 1

    @property
    def evaluations(self) -> int:
        """One of each, 1 at w = 1."""
        return evaluations(self.denoiser) + (0 if self.neutral else evaluations(self.weaker))

    def push(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """D and (w - 1) (D - D_0)."""
        denoised = self.denoiser(x, sigma, cond)
        return denoised, (self.weight - 1) * (denoised - self.weaker(x, sigma, cond))

    def for_trajectory(self, rng: Rng) -> Self:
        """The same around both denoisers with random numbers of each sample's own, if they have any."""
        return super().for_trajectory(rng).replaced(weaker=denoiser_for_trajectory(self.weaker, rng))

    def within(self, sigma: float) -> Denoiser:
        """This guidance in a step from sigma that it guides throughout."""
        denoiser, weaker = denoiser_for_step(self.denoiser, sigma), denoiser_for_step(self.weaker, sigma)
        return self.replaced(denoiser=denoiser, weaker=weaker, interval=None)
