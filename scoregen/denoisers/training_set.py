"""A small training set as a denoiser, for distillers that differentiate their teachers."""

from math import inf

from torch import Tensor, nn

from scoregen.denoisers.base import SIGMA_TINY, Cond
from scoregen.denoisers.mixture import count_classes, log_membership


class TrainingSetDenoiser(nn.Module):
    """D(x; sigma) = sum_i w_i x_i, w = softmax(-|x - x_i|^2 / (2 sigma^2)).

    It equals EmpiricalDenoiser, which is for large sets: here are two products in float64, of which each call
    does the same whether or not it is differentiated; memory is B N numbers. At sigma = 0 it is the limit.

    Args:
        data: the samples x_i [N, *shape].
        labels: their classes, int64 [N]; None is unconditional.
    """

    data: Tensor
    labels: Tensor | None

    def __init__(self, data: Tensor, labels: Tensor | None = None) -> None:
        super().__init__()
        self.shape, self.num_classes = tuple(data.shape[1:]), count_classes(labels)
        self.sigma_min, self.sigma_max = 0.0, inf
        self.register_buffer("data", data.flatten(1).double())
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape], sigma [] or [B], cond [B]."""
        query = x.flatten(1).double()
        # |x|^2 is the same for all samples.
        distances = self.data.square().sum(1) - 2 * query @ self.data.T
        logits = -distances / (2 * sigma.double().reshape(-1, 1).clamp(min=SIGMA_TINY).square())
        weights = (logits + log_membership(cond, self.labels, self.num_classes)).softmax(1)
        return (weights @ self.data).reshape(x.shape).to(x.dtype)
