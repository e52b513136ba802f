"""A masked autoregressive flow on a few features."""

from collections.abc import Mapping
from itertools import pairwise
from math import log, pi
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoregen.detection.base import Detector, Standard, check_features
from scoregen.rng import generator

_EPOCHS, _BATCH, _LR = 60, 256, 2e-3
_LOG_SCALE = 6.0  # bounds |a|, so that what lies far out has a finite density, too


class MaskedNetwork(nn.Module):
    """Autoregressive shifts m_i and log scales a_i that see x_1, ..., x_{i-1} only.

    Source: Germain et al., MADE: Masked Autoencoder for Distribution Estimation, 2015, arXiv 1502.03509.
    """

    def __init__(self, dim: int, hidden: int, g: torch.Generator) -> None:
        super().__init__()
        degrees = [torch.arange(1, dim + 1), *[torch.arange(hidden) % max(dim - 1, 1) + 1] * 2]
        widths = [dim, hidden, hidden, 2 * dim]
        degrees.append(torch.arange(dim).repeat(2))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            scale = 0.0 if i == 2 else inputs**-0.5  # starts as the base density
            self.weights.append(scale * torch.randn(outputs, inputs, generator=g))
            self.biases.append(torch.zeros(outputs))
            self.register_buffer(
                f"mask{i}", (degrees[i + 1][:, None] >= degrees[i]).float(), persistent=False
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """m and a, [n, L] each, of x [n, L]."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(F.elu(x) if i else x, weight * getattr(self, f"mask{i}"), bias)
        shift, log_scale = x.chunk(2, 1)
        return shift, _LOG_SCALE * (log_scale / _LOG_SCALE).tanh()


class FlowDetector(Detector):
    """Scores a feature vector by -ln p under an autoregressive flow, fitted to standardised inliers.

    ln p(x) = sum_i ln N((x_i - m_i) exp(-a_i); 0, 1) - a_i, with m_i, a_i of x_1, ..., x_{i-1}

    Source: Papamakarios, Pavlakou and Murray, Masked Autoregressive Flow for Density Estimation, 2017, arXiv
    1705.07057; two hidden layers of 128 as in the code of Mahmood, Oliva and Styner, 2021, arXiv 2010.13132,
    on unscaled features and for 1,000 epochs of Adadelta there; standardising and 60 epochs of Adam are ours.
    """

    def __init__(self, standard: Standard, network: MaskedNetwork) -> None:
        super().__init__()
        self.standard, self.network = standard, network

    @classmethod
    def fit(cls, features: Tensor, *, seed: int = 0) -> Self:
        """Maximise the likelihood of the inliers [n, L]."""
        check_features(features, 2)
        g = generator("flow", seed)
        flow = cls(Standard(features.double()), MaskedNetwork(features.shape[1], 128, g))
        x = flow.standard(features).float()
        optimizer = torch.optim.Adam(flow.network.parameters(), lr=_LR)
        steps = _EPOCHS * max(1, len(x) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            batch = x[torch.randint(len(x), (_BATCH,), generator=g)]
            optimizer.zero_grad()
            (-flow._log_density(batch).mean()).backward()
            optimizer.step()
            schedule.step()
        return flow.eval()

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The detector whose `state_dict` this is."""
        mean = tensors["standard.mean"]
        flow = cls(Standard(mean.expand(2, -1)), MaskedNetwork(len(mean), 128, generator("flow")))
        flow.load_state_dict(dict(tensors))
        return flow.eval()

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """-ln p [m] of features [m, L]."""
        return -self._log_density(self.standard(features).float()).double()

    def _log_density(self, x: Tensor) -> Tensor:
        shift, log_scale = self.network(x)
        z = (x - shift) * (-log_scale).exp()
        nats: Tensor = -(z.square() / 2 + log_scale).sum(1) - x.shape[1] / 2 * log(2 * pi)
        return nats
