"""Scores of class probabilities: the Inception score and the AM score."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.processes import Processes
from scoregen.evaluation.result import Score
from scoregen.evaluation.running import Arrays, InParts, Running, device_of_sums

SPLITS, SPLIT_SEED = 10, 2020


@dataclass(frozen=True)
class Classes:
    """What class probabilities come to: their mean [C], float64, and the mean of their entropies, in nats."""

    marginal: Tensor
    entropy: float
    n: int

    @property
    def inception_score(self) -> float:
        """exp(mean_x KL(p(y|x) || p(y))) = exp(H(p(y)) - mean_x H(p(y|x)))."""
        return float(torch.exp(entropy(self.marginal) - self.entropy))


class ClassSums:
    """Running sums of class probabilities and of their entropies, all float64.

    Args:
        dim: the number of classes.
        device: where the logits come out.
    """

    keys: ClassVar[tuple[str, ...]] = ("marginal", "entropy")

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        device = device_of_sums(device)
        self.n = torch.zeros((), dtype=torch.float64, device=device)
        self.probabilities = torch.zeros(dim, dtype=torch.float64, device=device)
        self.entropy = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, features: Tensor, index: np.ndarray | None = None) -> None:
        """Add logits [B, C]; B may be 0."""
        p = features.to(self.n.device, torch.float64).softmax(1)
        self.n += len(p)
        self.probabilities += p.sum(0)
        self.entropy += entropy(p).sum()

    def merge(self, other: "ClassSums") -> "ClassSums":
        """The sums of both."""
        pairs = zip(self._state(), other._state(), strict=True)
        return self._of([a + b for a, b in pairs])

    def reduce(self, processes: Processes) -> "ClassSums":
        """The sums over all processes."""
        return self._of([processes.sum(tensor.clone()) for tensor in self._state()])

    def summary(self) -> Classes:
        """The means, on the CPU.

        Raises:
            UserError: there are no images.
        """
        n = int(self.n)
        if not n:
            raise UserError("class scores need at least one image, and in each of their splits")
        return Classes((self.probabilities / n).cpu(), float(self.entropy / n), n)

    @staticmethod
    def write(summary: Classes) -> dict[str, np.ndarray]:
        """`marginal` [C] and `entropy`."""
        return {"marginal": summary.marginal.numpy(), "entropy": np.array(summary.entropy)}

    @staticmethod
    def read(arrays: Arrays, n: int | None) -> Classes:
        """`marginal` and `entropy`."""
        marginal = torch.from_numpy(np.asarray(arrays["marginal"], dtype=np.float64))
        if marginal.ndim != 1 or abs(float(marginal.sum()) - 1) > 1e-6:
            raise ValueError(f"marginal {tuple(marginal.shape)} is no distribution over classes")
        return Classes(marginal, float(arrays["entropy"]), n or 0)

    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.n, self.probabilities, self.entropy

    def _of(self, state: list[Tensor]) -> "ClassSums":
        new = type(self).__new__(type(self))
        new.n, new.probabilities, new.entropy = state
        return new


in_splits = partial(InParts, ClassSums, SPLITS, SPLIT_SEED)  # ten splits of the published score


def entropy(p: Tensor) -> Tensor:
    """-sum p ln p over the last axis, in nats."""
    nats: Tensor = torch.special.entr(p).sum(-1)
    return nats


def inception_score(splits: tuple[Running[Classes], ...]) -> Score:
    """The mean and `spread` of the Inception score over ten splits, dealt out at random with a fixed seed.

    Its bias falls as 1/n, so compare equal n only; it knows no real images.

    Source: T. Salimans et al., Improved Techniques for Training GANs, 2016, arXiv 1606.03498.

    Raises:
        UserError: fewer images than splits.
    """
    classes = [split.summary() for split in splits]
    scores = torch.tensor([one.inception_score for one in classes], dtype=torch.float64)
    return Score(float(scores.mean()), sum(one.n for one in classes), spread=float(scores.std(correction=0)))


def am_score(drawn: Classes, real: Classes) -> Score:
    """AM = KL(p_real(y) || p(y)) + mean_x H(p(y|x)); lower is better, in nats.

    Unlike the Inception score it asks for the classes that the data have. As published the classifier is one
    trained on the data; here it is the extractor's. Formula remembered, not read.

    Source: Z. Zhou et al., Activation Maximization Generative Adversarial Nets, 2018, arXiv 1703.02000.
    """
    p, q = real.marginal, drawn.marginal
    divergence = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()
    return Score(float(divergence) + drawn.entropy, drawn.n, floor=real.entropy)
