"""A function as a denoiser: networks that were trained elsewhere, formulas, mixtures of models."""

from collections.abc import Callable, Sequence
from math import inf

from torch import Tensor

from scoregen.denoisers.base import Cond


class FunctionDenoiser:
    """Gives a function D(x, sigma) or D(x, sigma, cond) what samplers, guidance and metrics ask for.

    Args:
        function: E[x0 | x0 + sigma n = x] for x [B, *shape], sigma [] or [B], and class ids cond [B] where
            there are classes.
        shape: of one sample.
        sigma_min, sigma_max: the noise levels that the function is good for; samplers keep to them.
        num_classes: 0 is a function that is told no class.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        shape: Sequence[int],
        *,
        sigma_min: float = 0.0,
        sigma_max: float = inf,
        num_classes: int = 0,
    ) -> None:
        self.function, self.shape, self.num_classes = function, tuple(shape), num_classes
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """The function's value, [B, *shape]."""
        return self.function(x, sigma, cond) if self.num_classes else self.function(x, sigma)
