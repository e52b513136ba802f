"""Features of vision transformers through the optional package transformers: DINOv2 and CLIP.

Weights are local: a folder as published (config.json, model.safetensors), or what transformers has in its
cache already. Nothing is downloaded.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoregen.errors import UserError
from scoregen.evaluation.features import Extractor, check_images
from scoregen.ranges import PositiveInt


@dataclass(frozen=True)
class Recipe:
    """A published transformer and what happens to the pixels before it.

    Args:
        name: of the extractor.
        extra: the extra of this package that brings what is needed.
        published: its name in the hub, which is also the name of its folder.
        model: class in transformers; `output` is its result that holds the features [B, d], `width` the name
            of d in its configuration.
        size: pixels a side after the bicubic resize; `as_pillow`: antialiased and clipped to the range.
        mean, std: of RGB in [0, 1].
    """

    name: str
    extra: str
    published: str
    model: str
    output: str
    width: str
    size: int
    as_pillow: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# As FD-DINOv2 is published: G. Stein et al., Exposing flaws of generative model evaluation metrics and their
# unfair treatment of diffusion models, 2023, arXiv 2306.04675; the features are the class token after the
# last norm. transformers interpolates the position embeddings from 37 x 37 to 16 x 16 without the offset of
# the original code (remembered), so values may differ from published ones in the last digits.
DINOV2 = Recipe(
    "dinov2",
    "dino",
    "facebook/dinov2-large",
    "Dinov2Model",
    "pooler_output",
    "hidden_size",
    224,
    True,
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)
# As CMMD is published: S. Jayasumana et al., 2024, arXiv 2401.09603. The plain resize is that of its code
# (remembered).
CLIP = Recipe(
    "clip",
    "clip",
    "openai/clip-vit-large-patch14-336",
    "CLIPVisionModelWithProjection",
    "image_embeds",
    "projection_dim",
    336,
    False,
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)


class TransformerExtractor(Extractor):
    """Turn images into the features of a published vision transformer, float32 throughout.

    Args:
        recipe: which one.
        weights: its folder; None looks in $SCOREGEN_WEIGHTS, then in the cache of transformers.
        device: where it runs.
        batch: images per pass.

    Raises:
        UserError: transformers or the weights are missing.
    """

    def __init__(
        self,
        recipe: Recipe,
        weights: Path | None = None,
        device: torch.device | str = "cpu",
        batch: PositiveInt = 32,
    ) -> None:
        self.recipe, self.batch, self.device = recipe, batch, torch.device(device)
        self.name = recipe.name
        rule = "antialiased and clipped" if recipe.as_pillow else "without antialiasing"
        self.resize = f"bicubic to {recipe.size} x {recipe.size}, {rule}, normalised"
        self.source = str(find_folder(recipe, weights) or recipe.published)
        self._model = _load(recipe, self.source).to(self.device).eval().requires_grad_(False)
        self.layers = {recipe.output: int(getattr(self._model.config, recipe.width))}
        self.sha256 = _digest(self._model, recipe)
        self._mean = torch.tensor(recipe.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(recipe.std, device=self.device)[:, None, None]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Features [B, d], float32, of images uint8 [B, 1 or 3, H, W]; grey ones are repeated to RGB.

        Raises:
            UserError: the images are of another type or have another number of channels.
        """
        check_images(images)
        return {self.layer: torch.cat([self._features(part) for part in images.split(self.batch)])}

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        x = images.to(self.device, torch.float32).expand(-1, 3, -1, -1) / 255
        size = (self.recipe.size, self.recipe.size)
        x = F.interpolate(x, size, mode="bicubic", antialias=self.recipe.as_pillow)
        x = x.clamp(0, 1) if self.recipe.as_pillow else x
        with torch.autocast(x.device.type, enabled=False):
            features: Tensor = getattr(self._model((x - self._mean) / self._std), self.recipe.output)
        return features


def find_folder(recipe: Recipe, weights: Path | None) -> Path | None:
    """The folder of the weights: `weights`, else in $SCOREGEN_WEIGHTS; None where neither is given.

    Raises:
        UserError: `weights` is no folder of a model.
    """
    if weights is not None:
        if (weights / "config.json").is_file():
            return weights
        raise UserError(f"{recipe.name}: {weights} is no folder with config.json. {_how_to_get(recipe)}")
    place = Path(os.environ.get("SCOREGEN_WEIGHTS") or "") / recipe.published.split("/")[-1]
    return place if (place / "config.json").is_file() else None


def _load(recipe: Recipe, source: str) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{recipe.name} needs the package transformers: pip install 'scoregen[{recipe.extra}]'"
        ) from None
    transformers.logging.set_verbosity_error()
    try:
        model: nn.Module = getattr(transformers, recipe.model).from_pretrained(
            source, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no weights of {recipe.name} ({reason}). {_how_to_get(recipe)}") from error
    return model


def _how_to_get(recipe: Recipe) -> str:
    folder = recipe.published.split("/")[-1]
    return (
        f"Get config.json and model.safetensors of {recipe.published}; give --weights {recipe.name}=FOLDER "
        f"or put them into {folder}/ in the folder SCOREGEN_WEIGHTS. Nothing is downloaded for you"
    )


def _digest(model: nn.Module, recipe: Recipe) -> str:
    """sha256 over names and float32 bytes of all tensors, and over the recipe."""
    digest = hashlib.sha256(repr(recipe).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
