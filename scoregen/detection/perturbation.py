"""The expected perturbation score, and the detector of what does not resemble clean images in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from scoregen.denoisers.base import Denoise, as_sigma
from scoregen.detection.kernel import DeepKernel
from scoregen.diffusion.schedules import vp_level
from scoregen.errors import UserError
from scoregen.rng import generator


@dataclass(frozen=True)
class PerturbationScore:
    """The expected perturbation score of images, an image of the same shape.

    EPS(x) = 1/T sum_{k=1..T} s(alpha_k x + sigma_k eps_k; t = k / 1000), s the score of the VP process. With
    sigma = sigma_k / alpha_k and x' = x + sigma eps_k, in the denoiser's coordinates, it is
    s = (D(x'; sigma) - x') / (alpha_k sigma^2). The noise is the same for all images, so that they
    compare.

    Args:
        denoiser: D, good for levels down to 0.0105.
        count: T; 20 for 32 x 32 pixels, 50 for 256 x 256 in the source.
        seed: of the noise.

    Raises:
        UserError: where the denoiser does not reach down to the first level.

    Source: Zhang et al., Detecting Adversarial Data by Probing Multiple Perturbations Using Expected
    Perturbation Score, 2023, arXiv 2305.16035, and its code.
    """

    denoiser: Denoise
    count: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = getattr(self.denoiser, "sigma_min", 0.0)
        if self.count < 1 or lowest > vp_level(1 / 1000):
            raise UserError(
                f"{self.count} perturbations from sigma {vp_level(1 / 1000):.4f} up: at least 1 is needed, "
                f"and a model that is good for that level, not from {lowest:g} only"
            )

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """EPS(x) [B, *shape] of x [B, *shape] in the model's range."""
        total = torch.zeros_like(x)
        for k in range(1, self.count + 1):
            sigma = vp_level(k / 1000)
            noise = torch.randn(x.shape[1:], generator=generator("eps", self.seed, k), dtype=x.dtype)
            noisy = x + sigma * noise.to(x.device)
            score = (self.denoiser(noisy, as_sigma(sigma, x)) - noisy) / sigma**2
            total += (1 + sigma**2) ** 0.5 * score  # 1 / alpha
        mean: Tensor = total / self.count
        return mean

    def of(self, images: Tensor, *, batch: int, device: torch.device | str) -> Tensor:
        """The scores of images [n, *shape] on the CPU, in batches, on the CPU again."""
        return torch.cat([self(x.to(device)).cpu() for x in images.split(batch)])


@dataclass(frozen=True)
class EpsDetector:
    """Scores images by how little their EPS resembles that of clean ones: -mean_i k(reference_i, EPS).

    The order is that of the squared discrepancy between the references and the one image.

    Args:
        kernel: k. reference: EPS of clean images, [n, C, H, W], that the kernel has not seen.
        about: the models and settings, for the file.
    """

    kernel: DeepKernel
    reference: Tensor
    about: Mapping[str, Any]

    def __call__(self, eps: Tensor) -> Tensor:
        """Scores [m] float64 of EPS [m, C, H, W], higher where they are less like the references."""
        with torch.no_grad():
            kernel: Tensor = self.kernel(eps, self.reference)
            return -kernel.double().mean(1)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        from scoregen.training.weights import write_weights

        tensors = {**self.kernel.state_dict(), "reference": self.reference}
        write_weights(path, tensors, {"eps": json.dumps(dict(self.about))})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; UserError for another file."""
        from scoregen.training.weights import read_weights

        tensors, metadata = read_weights(path)
        if "eps" not in metadata:
            raise UserError(f"{path} holds no kernel; give a file of `eps fit`")
        reference = tensors.pop("reference")
        kernel = DeepKernel(tuple(reference.shape[1:]))
        kernel.load_state_dict(tensors)
        return cls(kernel.eval().requires_grad_(False), reference, json.loads(metadata["eps"]))
