"""The training set itself as a denoiser."""

from math import inf

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond
from scoregen.denoisers.mixture import count_classes, log_membership
from scoregen.ranges import PositiveInt

_SIGMA_TINY = 1e-12  # below it the denoiser is its limit, the nearest neighbour


class EmpiricalDenoiser(nn.Module):
    """Denoises x0 ~ U{x_1, ..., x_N} exactly: what training reaches by memorising the data.

    D(x; sigma) = sum_i softmax_i(-||x - x_i||^2 / (2 sigma^2)) x_i

    Given a class, x0 is of the data of that class. Distances and sums are float64 matrix products, because
    the expanded square in float32 is wrong by tens of nats at small sigma; a running log-sum-exp over
    chunks of the data bounds the memory to chunk (d + B) numbers beside the data.

    Args:
        data: [N, *shape] in the model's range, of any floating dtype; kept as it is.
        labels: class ids int64 [N]; None is unconditional.
        chunk: data rows a time.

    Raises:
        UserError: for labels that skip a class.

    Source: Scarvelis, Saez de Ocariz Borde and Solomon, Closed-Form Diffusion Models, 2023, arXiv 2310.12395.
    """

    data: Tensor
    labels: Tensor | None

    def __init__(self, data: Tensor, labels: Tensor | None = None, *, chunk: PositiveInt = 4096) -> None:
        super().__init__()
        self.shape, self.num_classes = tuple(data.shape[1:]), count_classes(labels)
        self.sigma_min, self.sigma_max = 0.0, inf
        self.chunk = chunk
        self.register_buffer("data", data)
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape], sigma [] or [B], cond [B]."""
        query = x.flatten(1).double()
        variance = sigma.double().reshape(-1, 1).clamp(min=_SIGMA_TINY).square()
        top = torch.full_like(query[:, :1], torch.finfo(torch.float64).min)
        mass, total = torch.zeros_like(top), torch.zeros_like(query)
        for start in range(0, len(self.data), self.chunk):
            rows = self.data[start : start + self.chunk].flatten(1).double()
            labels = None if self.labels is None else self.labels[start : start + self.chunk]
            logits = (query @ rows.T - rows.square().sum(1) / 2) / variance  # less a constant of the query
            logits = logits + log_membership(cond, labels, self.num_classes)
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            weights, keep = (logits - new_top).exp(), (top - new_top).exp()
            mass = mass * keep + weights.sum(1, keepdim=True)
            total, top = total * keep + weights @ rows, new_top
        return (total / mass).reshape(x.shape).to(x.dtype)
