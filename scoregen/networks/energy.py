"""Energy-based networks: a score that is the gradient of a scalar, exactly."""

import torch
from torch import Tensor

from scoregen.networks.base import Network
from scoregen.networks.layers import twice_differentiable
from scoregen.networks.mlp import MLP
from scoregen.networks.unet_song import DDPMpp


class EnergyNetwork(Network):
    """F(x) = -grad E(x) with the energy E(x) = -<x, B(x)> of the network B that it is mixed into.

    A subclass names this first and B second, and has the constructor and the weights of B. Preconditioning
    scales x and F by numbers, so the score of the denoiser, too, is a gradient: of `log_density`. A forward
    costs a forward and a backward of B; training differentiates both, which torch.compile cannot.
    """

    def energy(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """E [B] at x [B, *shape]."""
        with twice_differentiable():
            base: Tensor = super().forward(x, noise_labels, cond, augment_labels)
        return -(x * base.to(x.dtype)).flatten(1).sum(1)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        cond: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        trained = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.energy(x, noise_labels, cond, augment_labels)
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=trained)
        return -slope


class EnergyMLP(EnergyNetwork, MLP):
    """The energy network of an `MLP`."""


class EnergyDDPMpp(EnergyNetwork, DDPMpp):
    """The energy network of a `DDPMpp`."""
