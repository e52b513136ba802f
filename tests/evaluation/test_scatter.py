"""Laws of the extractor that ships with the package: fixed features, a distance that grows with damage."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scoregen.data.cifar10 import load_cifar10
from scoregen.data.digits import load_digits
from scoregen.data.idx import load_idx
from scoregen.errors import UserError
from scoregen.evaluation.frechet import frechet_distance
from scoregen.evaluation.reference import measure
from scoregen.evaluation.scatter import ScatterExtractor

Damage = Callable[[Tensor, Tensor, float, torch.Generator], Tensor]  # (images, labels, strength, rng)


def quantise(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def add_noise(x: Tensor, _: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    return quantise(x + sigma * torch.randn(x.shape, generator=rng))


def blur(x: Tensor, _: Tensor, sigma: float, __: torch.Generator) -> Tensor:
    kernel = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    kernel = kernel.expand(x.shape[1], 1, -1, -1)
    return quantise(F.conv2d(F.pad(x.float(), (3, 3, 3, 3), "replicate"), kernel, groups=x.shape[1]))


def mix_in_noise_images(x: Tensor, _: Tensor, share: float, rng: torch.Generator) -> Tensor:
    noise = quantise(255 * torch.rand(x.shape, generator=rng))
    replaced = torch.arange(len(x)) < share * len(x)
    return torch.where(replaced[:, None, None, None], noise, x)


def drop_classes(x: Tensor, label: Tensor, dropped: float, _: torch.Generator) -> Tensor:
    return x[label < 10 - dropped]


def blend_pairs(x: Tensor, _: Tensor, share: float, __: torch.Generator) -> Tensor:
    return quantise((1 - share) * x + share * x.flip(0))


DAMAGES: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "noise": (add_noise, (12, 24, 48, 96)),
    "blur": (blur, (0.4, 0.5, 0.7, 1.0)),
    "noise images": (mix_in_noise_images, (0.05, 0.1, 0.2, 0.5)),
    "dropped classes": (drop_classes, (2, 5, 8)),
    "blended pairs": (blend_pairs, (0.2, 0.3, 0.5)),
}


@cache
def load(name: str) -> tuple[Tensor, Tensor]:
    data = {
        "digits": lambda: load_digits(),
        "mnist": lambda: load_idx(name="mnist", conditional=True),
        "cifar10": lambda: load_cifar10(conditional=True),
    }[name]()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))[:4000]
    x, label = data.fetch(order)
    assert label is not None
    return x, label


def distance(x: Tensor, y: Tensor) -> float:
    first, second = (measure([images], ScatterExtractor()).summary() for images in (x, y))
    return frechet_distance(first, second)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "data",
    [
        "digits",
        pytest.param("mnist", marks=pytest.mark.data),
        pytest.param("cifar10", marks=pytest.mark.data),
    ],
)
def test_the_distance_grows_with_the_damage(data: str, damage: str) -> None:
    try:
        x, label = load(data)
    except UserError as error:
        pytest.skip(str(error))
    half, (apply, strengths) = len(x) // 2, DAMAGES[damage]
    rng = torch.Generator().manual_seed(0)
    real = distance(x[half:], x[:half])
    damaged = [distance(apply(x[half:], label[half:], s, rng), x[:half]) for s in strengths]
    assert all(low < high for low, high in pairwise([real, *damaged]))
    assert damaged[-1] > 3 * real


def test_samples_of_a_gaussian_fitted_to_the_pixels_are_told_from_real_images(digits: Tensor) -> None:
    """Their pixel mean and covariance are right: only what is beyond them can tell."""
    half = len(digits) // 2
    x = digits[half:].flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = quantise(x.mean(0) + (z * values.clamp_min(0).sqrt()) @ vectors.T).view(-1, 1, 8, 8)
    assert distance(fitted, digits[:half]) > 3 * distance(digits[half:], digits[:half])


def pattern(channels: int, side: int) -> Tensor:
    """A fixed image that no generator draws."""
    i = torch.arange(channels * side * side)
    return ((i * i * 31 + i * 7) % 256).to(torch.uint8).view(1, channels, side, side)


@pytest.mark.parametrize(
    ("channels", "side", "golden"),
    [
        (1, 8, [1.17647, 0.0, 3.16863, 0.0, 2.12745, 1.69412, 0.533333, 0.878431, 0.0]),
        (3, 33, [1.95827, -0.0146549, 1.65949, 4.08195, 0.511315, 0.45049, 0.199346, 0.258824, 1.1451]),
    ],
)
def test_features_are_the_same_on_every_machine(channels: int, side: int, golden: list[float]) -> None:
    features = ScatterExtractor()(pattern(channels, side))[0]
    assert features[[0, 20, 24, 50, 60, 85, 120, 140, 160]].tolist() == pytest.approx(golden, rel=1e-4)


def test_the_extractor_is_known_by_the_hash_of_its_recipe() -> None:
    assert ScatterExtractor().sha256 == "ad443e88215fdcd101921314f4a5d3d9a10a396a63fac9e1a69717ac88213236"


def test_a_feature_depends_on_its_own_image_only(digits: Tensor) -> None:
    extractor = ScatterExtractor()
    together = extractor(digits[:300])
    assert torch.allclose(together[[0, 130, 299]], extractor(digits[[0, 130, 299]]), atol=1e-5)


def test_grey_is_rgb_with_equal_channels_and_has_no_colour() -> None:
    grey = pattern(1, 20)
    features = ScatterExtractor()(grey)
    assert torch.equal(features, ScatterExtractor()(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(features[:, 16:24], torch.zeros(1, 8))


def test_a_flat_image_has_a_layout_and_no_edges() -> None:
    features = ScatterExtractor()(torch.full((1, 1, 12, 12), 51, dtype=torch.uint8))[0]
    assert torch.allclose(features[:16], torch.full((16,), 4.0 * 51 / 255))
    assert features[16:].abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 7, 8), (1, 2, 8, 8), (1, 8, 8)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="1 or 3 channels and at least 8 x 8"):
        ScatterExtractor()(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"torch\.float32"):
        ScatterExtractor()(torch.zeros(1, 1, 8, 8))
