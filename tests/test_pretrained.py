"""Laws of the models that come with the package: they are small, found by name, and know their data."""

from pathlib import Path

import pytest
import torch

from scoregen.build import build_data
from scoregen.cli.source import load_source
from scoregen.data.base import to_model_range
from scoregen.denoisers.base import expand
from scoregen.denoisers.moments import measure_gaussian
from scoregen.errors import UserError
from scoregen.model import PRETRAINED, find_model, load_model, pretrained
from scoregen.rng import generator

BYTES = 3_000_000


@pytest.mark.parametrize("name", pretrained())
def test_a_pretrained_model_beats_the_moments_of_its_data_on_held_out_images(name: str) -> None:
    found = find_model(Path(name))
    assert found is not None
    assert found.weights.stat().st_size < BYTES
    denoiser, held_out = found.load(), build_data(found.cfg, "test")
    gaussian = measure_gaussian(build_data(found.cfg, "train"), per_class=held_out.num_classes > 0)
    batch = held_out.fetch(torch.arange(len(held_out)))
    x0 = to_model_range(batch.x)
    noise = torch.randn(x0.shape, generator=generator("held-out"))
    for level in (0.1, 0.3):
        sigma = torch.full((len(x0),), level)
        x = x0 + expand(sigma, x0) * noise
        errors = [(d(x, sigma, batch.label) - x0).square().mean().item() for d in (denoiser, gaussian)]
        assert errors[0] < 0.75 * errors[1], errors


def test_results_name_it_as_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (name,) = pretrained()
    source = load_source(Path(name), torch.device("cpu"))
    assert source.manifest["weights"] == source.manifest["run"] == name
    assert source.description.startswith(f"{name} (")


def test_a_path_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (name,) = pretrained()
    here = tmp_path / f"{name}"
    here.parent.mkdir()
    here.write_bytes((PRETRAINED / f"{here.name}.safetensors").read_bytes())
    found = find_model(Path(name))
    assert found is not None
    assert found.weights == Path(name)
    assert find_model(Path("pretrained/none")) is None


def test_a_checkpoint_is_a_model_as_its_file_is(tmp_path: Path) -> None:
    folder = tmp_path / "000000000128"
    folder.mkdir()
    weights = folder / "ema.safetensors"
    weights.write_bytes((PRETRAINED / "digits.safetensors").read_bytes())
    found = find_model(folder)
    assert found == find_model(weights)
    assert found is not None
    assert found.run_dir is None


@pytest.mark.parametrize("kind", [str, Path])
def test_a_model_is_loaded_ready_to_be_asked(kind: type) -> None:
    denoiser = load_model(kind("pretrained/digits"))
    assert not denoiser.training
    assert not denoiser(torch.zeros(2, 1, 8, 8), torch.tensor(1.0), torch.arange(2)).requires_grad
    with pytest.raises(UserError, match="nowhere: no such run folder or weights file, nor one of"):
        load_model(kind("nowhere"))
