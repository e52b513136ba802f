"""Attacks on a classifier: small changes of an image that raise the loss of its own answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scoregen.errors import UserError
from scoregen.ranges import NonNegative, Positive, PositiveInt
from scoregen.rng import Rng

Classify = Callable[[Tensor], Tensor]  # x [B, *shape] -> logits [B, K]


@dataclass(frozen=True)
class Attack:
    """Ascends the cross-entropy against the answer at x, within a ball about x and within [-1, 1].

    g' = decay g' + g / mean |g|,  x' <- P(x' + step epsilon u(g')),  u = sign(g') in the norm inf, and
    sqrt(d) g' / ||g'|| in the norm 2, P the projection to the ball of epsilon or sqrt(d) epsilon: in both an
    element moves by epsilon at most, or in the root mean square.

    Args:
        epsilon: in the model's range, where a level of uint8 is 2 / 255.
        steps: how many. step: size of one, in units of epsilon.
        norm: of the ball. random_start: begin at a random point of it.
        decay: of the accumulated gradient; 0 keeps none.

    Raises:
        UserError: the classifier's logits are not finite.

    Source: the budget of the norm 2 is ours; see `ATTACKS` for the rest.
    """

    epsilon: Positive
    steps: PositiveInt = 1
    step: Positive = 1.0
    norm: Literal["inf", "2"] = "inf"
    random_start: bool = False
    decay: NonNegative = 0.0

    def __call__(self, classify: Classify, x: Tensor, rng: Rng) -> Tensor:
        """Adversarial images [B, *shape] for images x [B, *shape]; a row depends on its own noise only."""
        answer = _answer(classify, x)
        moved = x
        if self.random_start:
            uniform = 2 * torch.special.ndtr(rng.randn_like(x)) - 1
            moved = self._project(x + self.epsilon * uniform, x)
        direction = torch.zeros_like(x)
        for _ in range(self.steps):
            g = _gradient(classify, moved, answer)
            g = g / _each(g, g.abs().flatten(1).mean(1))
            direction = self.decay * direction + g
            moved = self._project(moved + self.step * self.epsilon * self._unit(direction), x)
        return moved

    def _unit(self, g: Tensor) -> Tensor:
        return g.sign() if self.norm == "inf" else g / _each(g, _rms(g))

    def _project(self, moved: Tensor, x: Tensor) -> Tensor:
        change = moved - x
        if self.norm == "inf":
            change = change.clamp(-self.epsilon, self.epsilon)
        else:
            change = change * _each(x, (self.epsilon / _rms(change)).clamp(max=1))
        return (x + change).clamp(-1, 1)


@torch.no_grad()
def _answer(classify: Classify, x: Tensor) -> Tensor:
    logits = classify(x)
    if not logits.isfinite().all():
        raise UserError(
            "the classifier's logits are not finite: it has diverged, or is asked outside its range"
        )
    return logits.argmax(1)


def _gradient(classify: Classify, x: Tensor, label: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(classify(x), label, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt().clamp(min=1e-30)


def _each(x: Tensor, values: Tensor) -> Tensor:
    """values [B] against x [B, ...], none of them zero."""
    return values.clamp(min=1e-30).reshape(-1, *(1,) * (x.ndim - 1))


# Five steps, as in the experiments of Zhang et al., 2023, arXiv 2305.16035 (its code); step sizes are ours.
ATTACKS: dict[str, Callable[[float], Attack]] = {
    # Goodfellow, Shlens and Szegedy, Explaining and Harnessing Adversarial Examples, 2014, arXiv 1412.6572
    "fgsm": lambda epsilon: Attack(epsilon),
    "fgsm_l2": lambda epsilon: Attack(epsilon, norm="2"),
    # Kurakin, Goodfellow and Bengio, Adversarial examples in the physical world, 2016, arXiv 1607.02533
    "bim": lambda epsilon: Attack(epsilon, steps=5, step=0.2),
    # Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2017, arXiv 1706.06083
    "pgd": lambda epsilon: Attack(epsilon, steps=5, step=0.5, random_start=True),
    "pgd_l2": lambda epsilon: Attack(epsilon, steps=5, step=0.5, random_start=True, norm="2"),
    # Dong et al., Boosting Adversarial Attacks with Momentum, 2017, arXiv 1710.06081
    "mim": lambda epsilon: Attack(epsilon, steps=5, step=0.2, decay=1.0),
}
