"""The noise-conditional classifier or discriminator that a raw network and a preconditioner make."""

from torch import Tensor

from scoregen.denoisers.base import Cond, expand
from scoregen.denoisers.network import NetworkDenoiser


class NetworkClassifier(NetworkDenoiser):
    """Judge noisy samples with a network: logits F(c_in x; c_noise, cond, augment_labels), [B, K].

    It is a `NetworkDenoiser` in that it is built, trained, averaged and stored like one; only what a call
    returns differs, and no sampler takes it. With the VP preconditioner F sees x / sqrt(1 + sigma^2) and the
    VP time, as discriminators of the literature do.
    """

    def forward(
        self, x: Tensor, sigma: Tensor, cond: Cond = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, K] for x [B, *shape] and sigma [] or [B], float32 (float64 for a float64 network)."""
        x, c = self._prepare(x, sigma)
        with self._autocast(x.device.type):
            logits: Tensor = self.network(expand(c.input, x) * x, c.noise, cond, augment_labels)
        return logits.to(x.dtype)
