"""The diffusers pipeline of an exported model: seeds in, images out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from scoregen.data.codec import codec_of
from scoregen.export.construct import construct
from scoregen.images import to_uint8
from scoregen.rng import SampleRng


class DenoiserPipeline(DiffusionPipeline):
    """Draw images with a denoiser and its sampler; image i depends on its own seed only."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        class_labels: Sequence[int] | int | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw `batch_size` images, or one for each seed.

        Args:
            batch_size: how many; seeds 0, 1, ... unless these or a generator are given.
            seeds: one for each image.
            generator: draws the seeds instead.
            noise: the initial noise of unit variance [B, *shape] instead of the seeds' own.
            class_labels: of a conditional model, one for all or each; by default drawn from each seed.
            num_inference_steps: solver steps; by default those of the exported sampler.
            output_type: pil, np (uint8 [B, H, W, C]) or pt (float32 [B, C, H, W] in [-1, 1]).
            return_dict: whether to return an `ImagePipelineOutput` rather than a tuple.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type={output_type}: pil, np or pt")
        model = self.denoiser.denoiser
        rng = SampleRng(_seeds(batch_size, seeds, generator, noise), self._execution_device)
        drawn = rng.randn(*model.shape)
        cond = _classes(model.num_classes, rng, class_labels)
        sampler = construct(self.denoiser.config["sampler"])
        if num_inference_steps is not None:
            sampler = replace(sampler, steps=num_inference_steps)
        start = drawn if noise is None else noise.to(drawn)
        x = codec_of(model).decode(sampler(model, start, cond, rng).float())
        images = _as(output_type, x)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _seeds(
    batch_size: int, seeds: Sequence[int] | None, generator: torch.Generator | None, noise: Tensor | None
) -> Sequence[int]:
    if seeds is not None:
        return seeds
    count = batch_size if noise is None else len(noise)
    if generator is None:
        return range(count)
    device = generator.device
    drawn: list[int] = torch.randint(2**31, (count,), generator=generator, device=device).tolist()
    return drawn


def _classes(num_classes: int, rng: SampleRng, labels: Sequence[int] | int | None) -> Tensor | None:
    """Class ids [B]; drawn in any case, so that the noise that follows is the same for a given class."""
    if num_classes == 0:
        return None
    drawn = rng.randint(num_classes)
    return drawn if labels is None else torch.as_tensor(labels).to(drawn).expand(len(drawn))


def _as(output_type: str, x: Tensor) -> Any:
    if output_type == "pt":
        return x
    pixels = to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return pixels
    return [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in pixels]
