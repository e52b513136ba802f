"""The exact denoiser of a mixture of isotropic Gaussians."""

from math import inf

import torch
from torch import Tensor, nn

from scoregen.denoisers.base import SIGMA_TINY, Cond
from scoregen.errors import UserError


def count_classes(labels: Tensor | None) -> int:
    """The number of classes in int64 labels [K] that use every id from 0 up; 0 for None.

    Raises UserError where an id is negative or has no member.
    """
    if labels is None:
        return 0
    if labels.min() < 0 or (labels.bincount() == 0).any():
        raise UserError("labels must use every class id from 0 to the largest at least once")
    return int(labels.max()) + 1


def log_membership(cond: Cond, labels: Tensor | None, num_classes: int) -> Tensor | float:
    """[B, K]: 0 where component k is of the class asked for, else -inf; the null class asks for all."""
    if cond is None or labels is None:
        return 0.0
    member = (cond[:, None] == labels) | (cond[:, None] == num_classes)
    return torch.zeros_like(member, dtype=torch.float32).masked_fill(~member, -inf)


class GaussianMixtureDenoiser(nn.Module):
    """Denoises x0 ~ sum_k w_k N(mu_k, v_k I) exactly.

    D(x; sigma) = sum_k r_k (mu_k + v_k / (v_k + sigma^2) (x - mu_k)),
    r_k proportional to w_k N(x; mu_k, (v_k + sigma^2) I)

    Given a class, x0 is of the components of that class. The work is done in the wider of the dtypes of x and
    means; memory is B K d numbers.

    Args:
        means: mu [K, *shape].
        variances: v [K] or [].
        weights: w [K] up to a factor; None is uniform.
        labels: the class of each component, int64 [K]; None is unconditional.

    Raises:
        UserError: for a negative variance or weight, a class of no weight, or labels that skip a class.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor
    labels: Tensor | None

    def __init__(
        self, means: Tensor, variances: Tensor, *, weights: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        super().__init__()
        weights = torch.ones(len(means), dtype=means.dtype) if weights is None else weights
        if (variances < 0).any() or (weights < 0).any():
            raise UserError("GaussianMixtureDenoiser: variances and weights must not be negative")
        self.shape, self.num_classes = tuple(means.shape[1:]), count_classes(labels)
        groups = torch.zeros_like(weights, dtype=torch.long) if labels is None else labels
        mass = weights.new_zeros(max(self.num_classes, 1)).index_add(0, groups, weights)
        if not mass.all():
            raise UserError("GaussianMixtureDenoiser: every class needs a component of weight above 0")
        self.sigma_min, self.sigma_max = 0.0, inf
        self.register_buffer("means", means)
        self.register_buffer("variances", variances.expand(len(means)))
        self.register_buffer("log_weights", weights.log())
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        """E[x0 | x] for x [B, *shape], sigma [] or [B], cond [B]."""
        dtype = torch.promote_types(x.dtype, self.means.dtype)
        means, variances = self.means.to(dtype).flatten(1), self.variances.to(dtype)
        offset = x.to(dtype).flatten(1)[:, None] - means  # [B, K, d]
        noise = sigma.to(dtype).reshape(-1, 1).clamp(min=SIGMA_TINY).square()
        total = variances + noise  # [B or 1, K]
        logits = self.log_weights - offset.square().sum(-1) / (2 * total) - means.shape[1] / 2 * total.log()
        responsibility = (logits + log_membership(cond, self.labels, self.num_classes)).softmax(1)
        posterior = means + (variances / total)[..., None] * offset
        return (responsibility[..., None] * posterior).sum(1).reshape(x.shape).to(x.dtype)
