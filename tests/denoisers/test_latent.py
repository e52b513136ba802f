import pytest
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, to_model_range
from scoregen.data.codec import encode_dataset
from scoregen.data.digits import load_digits
from scoregen.denoisers.closed_form import closed_form_denoiser
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.latent import Chain, LatentDenoiser, Whitening
from scoregen.denoisers.moments import measure_gaussian
from scoregen.denoisers.neighbours import ImportanceDenoiser, NeighbourDenoiser
from scoregen.denoisers.smoothed import SmoothedDenoiser, training_set
from scoregen.errors import UserError
from scoregen.rng import BatchRng, generator
from scoregen.samplers.closed_form import ClosedFormSampler


class Negative:
    """A codec that turns images over and flattens them."""

    def encode(self, x: Tensor) -> Tensor:
        return -2 * x.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        return (z / -2).view(-1, 1, 8, 8)


@pytest.fixture
def data() -> ArrayDataset:
    return load_digits()


def test_whitened_codes_have_unit_covariance_and_come_back(data: ArrayDataset) -> None:
    whitening = Whitening(measure_gaussian(data, rank=40))
    codes = encode_dataset(data, whitening)
    assert torch.equal(codes.label, data.label)
    torch.testing.assert_close(codes.x.T.cov(), torch.eye(40), rtol=0, atol=1e-3)
    torch.testing.assert_close(whitening.encode(whitening.decode(codes.x)), codes.x, rtol=0, atol=1e-3)
    x = to_model_range(data.x)
    lost = (whitening.decode(codes.x) - x).flatten(1).square().sum(1).mean()
    tail = measure_gaussian(data).variances[:-40].sum()
    torch.testing.assert_close(lost, tail, rtol=1e-2, atol=0)


def test_what_does_not_vary_cannot_be_whitened(data: ArrayDataset) -> None:
    with pytest.raises(UserError, match="64 components, but the data vary along 59 only"):
        Whitening(measure_gaussian(data))  # corners of the digits are always black
    with pytest.raises(UserError, match="10 components, but the data vary along 9 only"):
        closed_form_denoiser(data.select(torch.arange(10)), components=10)
    with pytest.raises(UserError, match="moments with eigenvectors"):
        Whitening(GaussianDenoiser(torch.zeros(2), torch.ones(2)))


def test_one_codec_goes_after_another(data: ArrayDataset) -> None:
    x = to_model_range(data.x[:5])
    codes = encode_dataset(data, Negative())
    both = Chain(Negative(), Whitening(measure_gaussian(codes, rank=20)))
    torch.testing.assert_close(both.encode(x), both.inner.encode(Negative().encode(x)))
    torch.testing.assert_close(
        both.decode(both.encode(x)), Negative().decode(both.inner.decode(both.encode(x)))
    )
    assert both.decode(both.encode(x)).shape == x.shape


@pytest.mark.parametrize("codec", [None, Negative()])
def test_without_smoothing_latent_diffusion_returns_training_samples(codec, data: ArrayDataset) -> None:
    denoiser = closed_form_denoiser(data, sigma_s=0.0, components=30, codec=codec)
    cond = torch.arange(12) % 10
    noise = torch.randn(12, 30, generator=generator("noise"))
    z = ClosedFormSampler()(denoiser, noise, cond, BatchRng("draw", size=12))
    x = denoiser.codec.decode(z)
    images = EmpiricalDenoiser(data.x, data.label)
    distance, index = images.nearest(x)
    spread = measure_gaussian(data)
    assert torch.equal(data.label[index], cond)
    assert float(distance.square().mean()) < 2 * float(spread.variances[:-30].sum())  # what PCA leaves out


def test_every_choice_is_what_it_says(data: ArrayDataset) -> None:
    plain = closed_form_denoiser(data, sigma_s=0.0)
    assert isinstance(plain, EmpiricalDenoiser)
    assert plain.num_classes == 10
    smoothed = closed_form_denoiser(data, estimator="neighbours", neighbours=20, others=7, noises=3)
    assert isinstance(smoothed, SmoothedDenoiser)
    assert isinstance(smoothed.inner, NeighbourDenoiser)
    assert (smoothed.inner.neighbours, smoothed.inner.others, smoothed.noises) == (20, 7, 3)
    assert smoothed.sigma_s == pytest.approx(0.3 * float(to_model_range(data.x).std()), rel=1e-3)
    sampled = closed_form_denoiser(data, estimator="importance", neighbours=20, others=7, sigma_s=0.0)
    assert isinstance(sampled, ImportanceDenoiser)
    with pytest.raises(UserError, match="importance draws `others` samples: at least 1"):
        closed_form_denoiser(data, estimator="importance", others=0)
    latent = closed_form_denoiser(data, components=30)
    assert isinstance(latent, LatentDenoiser)
    assert latent.shape == (30,)
    assert latent.inner.sigma_s == pytest.approx(0.3, rel=1e-2)
    assert training_set(latent).data.shape == (len(data), 30)
    with pytest.raises(UserError, match=r"neighbours=200, but class \d has only 1\d\d samples"):
        closed_form_denoiser(data, estimator="neighbours", neighbours=200)


def test_latent_trajectories_keep_noise_of_their_own(data: ArrayDataset) -> None:
    latent = closed_form_denoiser(data, components=30).for_trajectory(BatchRng("noise", size=4))
    x, sigma = torch.zeros(4, 30), torch.tensor(0.5)
    once = latent(x, sigma)
    assert torch.equal(once, latent(x, sigma))
    assert len(torch.unique(once, dim=0)) == 4
