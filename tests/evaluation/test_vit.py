"""Laws of the transformers' features, on tiny random ones; their folder has the published layout."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scoregen.errors import UserError
from scoregen.evaluation.features import build_extractor
from scoregen.evaluation.vit import CLIP, DINOV2, Recipe, TransformerExtractor

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "intermediate_size": 64,
    "projection_dim": 24,
}


def images(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=g).to(torch.uint8)


def made(recipe: Recipe, folder: Path, seed: int = 0) -> tuple[Recipe, Path]:
    """A tiny model of the recipe's class on 56 x 56 pixels, in its folder."""
    transformers = pytest.importorskip("transformers", reason="needs the extras dino or clip")
    torch.manual_seed(seed)
    kind = getattr(transformers, recipe.model)
    kind(kind.config_class(**TINY, image_size=56)).save_pretrained(folder)
    return replace(recipe, size=56), folder


@pytest.mark.parametrize("recipe", [DINOV2, CLIP], ids=["dinov2", "clip"])
def test_features_are_the_models_of_resized_and_normalised_pixels(recipe: Recipe, tmp_path: Path) -> None:
    recipe, folder = made(recipe, tmp_path)
    extractor = TransformerExtractor(recipe, folder, batch=2)
    batch = images(5, 3, 20, 20)
    x = F.interpolate(batch / 255, (56, 56), mode="bicubic", antialias=recipe.as_pillow)
    x = x.clamp(0, 1) if recipe.as_pillow else x
    x = (x - torch.tensor(recipe.mean).view(3, 1, 1)) / torch.tensor(recipe.std).view(3, 1, 1)
    with torch.no_grad():
        expected = getattr(extractor._model(x), recipe.output)
    torch.testing.assert_close(extractor(batch), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (5, extractor.dim)
    grey = images(2, 1, 20, 20)
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_other_weights_are_another_extractor(tmp_path: Path) -> None:
    recipe, folder = made(DINOV2, tmp_path / "a")
    first = TransformerExtractor(recipe, folder).sha256
    assert TransformerExtractor(recipe, folder).sha256 == first
    assert TransformerExtractor(recipe, made(DINOV2, tmp_path / "b", seed=1)[1]).sha256 != first
    assert TransformerExtractor(replace(recipe, as_pillow=False), folder).sha256 != first


@pytest.mark.parametrize(("name", "extra"), [("dinov2", "dino"), ("clip", "clip")])
def test_a_missing_package_names_the_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=rf"pip install 'scoregen\[{extra}\]'"):
        build_extractor(name)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_missing_weights_are_told_and_not_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"is no folder with config\.json.*Nothing is downloaded"):
        build_extractor(name, tmp_path)
    pytest.importorskip("transformers", reason="needs the extras dino or clip")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("SCOREGEN_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=f"no weights of {name} .*Nothing is downloaded"):
        build_extractor(name)
