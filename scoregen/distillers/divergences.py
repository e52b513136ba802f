"""f-divergences D_f(p | q) = E_q f(r), r = p / q: for distillers that know the density ratio.

At any noise level the gradient in the generator is E[h(r) (s_f - s_t) dx0], h(r) = f''(r) r^2. Through a log
ratio l(x) held fixed as a function, it is the one of E[phi(l(x))] with phi'(l) = -h(e^l).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scoregen.errors import UserError

DivergenceName = Literal[
    "reverse_kl",
    "softened_reverse_kl",
    "jensen_shannon",
    "squared_hellinger",
    "forward_kl",
    "jeffreys",
    "neyman",
]


@dataclass(frozen=True)
class Divergence:
    """f, h of the ratio r = p / q, and phi of its logarithm; all elementwise."""

    f: Callable[[Tensor], Tensor]
    h: Callable[[Tensor], Tensor]
    phi: Callable[[Tensor], Tensor]


DIVERGENCES = {
    "reverse_kl": Divergence(lambda r: -r.log(), torch.ones_like, lambda log_r: -log_r),
    "softened_reverse_kl": Divergence(
        lambda r: (r + 1) * (0.5 + 0.5 / r).log(), lambda r: 1 / (r + 1), lambda log_r: F.softplus(-log_r)
    ),
    "jensen_shannon": Divergence(
        lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
        lambda r: r / (r + 1),
        lambda log_r: -F.softplus(log_r),
    ),
    "squared_hellinger": Divergence(
        lambda r: 1 - r.sqrt(), lambda r: r.sqrt() / 4, lambda log_r: -(log_r / 2).exp() / 2
    ),
    "forward_kl": Divergence(lambda r: r * r.log(), lambda r: r, lambda log_r: -log_r.exp()),
    "jeffreys": Divergence(lambda r: (r - 1) * r.log(), lambda r: r + 1, lambda log_r: -log_r - log_r.exp()),
    "neyman": Divergence(lambda r: (1 - r).square() / r, lambda r: 2 / r, lambda log_r: 2 * (-log_r).exp()),
}
"""The seven divergences of f-distill by name; reverse_kl seeks modes, forward_kl covers them.

jensen_shannon is twice the Jensen-Shannon divergence, softened_reverse_kl is 2 KL((p + q) / 2 | p); neyman
has infinite variance where q is more than twice as broad as p. Source: Xu et al., One-step Diffusion Models
with f-Divergence Distribution Matching, 2025, arXiv 2502.15681; phi is derived.
"""


def find_divergence(name: str) -> Divergence:
    """The divergence of that name; UserError for others."""
    if name not in DIVERGENCES:
        raise UserError(f"divergence={name}: no such divergence; allowed: {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name]
