"""The network denoiser as a diffusers model, which saves and loads itself."""

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from scoregen.denoisers.network import NetworkDenoiser
from scoregen.export.construct import construct


class DenoiserModel(ModelMixin, ConfigMixin):
    """Hold a denoiser D(x, sigma) = E[x0 | x0 + sigma n = x] and the sampler that it is meant for.

    Args:
        network, precond, sampler: what `construct` builds them from.
        shape: of one sample; images are in [-1, 1].
        num_classes: 0 is unconditional.
        precision: fp32, bf16 or fp16, of the network's matrix products.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers ships no types
    def __init__(
        self,
        *,
        network: dict[str, Any],
        precond: dict[str, Any],
        sampler: dict[str, Any],
        shape: tuple[int, ...],
        num_classes: int = 0,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.denoiser = NetworkDenoiser(
            construct(network),
            construct(precond),
            shape=tuple(shape),
            num_classes=num_classes,
            precision=precision,  # type: ignore[arg-type]  # one of the three, as it was saved
        )

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[x0 | x] for x [B, *shape], sigma [] or [B], class ids cond [B]."""
        denoised: Tensor = self.denoiser(x, sigma, cond)
        return denoised
