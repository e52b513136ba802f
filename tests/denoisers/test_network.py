import pytest
import torch
from torch import nn

from scoregen.denoisers.base import expand
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import EDMPrecond, IDDPMPrecond, VEPrecond, VPPrecond
from scoregen.errors import UserError
from scoregen.networks import MLP, DDPMpp

SHAPE = (3, 8, 8)
SIGMA = torch.tensor([0.05, 0.7, 12.0])


class Recorder(nn.Module):
    """Multiplies its input by the noise label, and remembers what it was given."""

    def __init__(self, channel_factor=1):
        super().__init__()
        self.channel_factor = channel_factor

    def forward(self, x, noise_labels, cond=None, augment_labels=None):
        self.given = (x, noise_labels, cond, augment_labels)
        return torch.cat([x * expand(noise_labels, x)] + [x * torch.nan] * (self.channel_factor - 1), 1)


@pytest.fixture
def x():
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precond", [EDMPrecond(), VPPrecond(), VEPrecond(), IDDPMPrecond()])
def test_the_denoiser_is_skip_x_plus_out_f(precond, x):
    network = Recorder(precond.channel_factor)  # the second half of iDDPM's channels must not matter
    denoiser = NetworkDenoiser(network, precond, shape=SHAPE, num_classes=4)
    cond, augment = torch.tensor([0, 4, 1]), torch.ones(3, 9)
    denoised = denoiser(x, SIGMA, cond, augment)
    c = precond(SIGMA)
    expected = expand(c.skip + c.out * c.input * c.noise, x) * x
    torch.testing.assert_close(denoised, expected)
    torch.testing.assert_close(network.given[0], expand(c.input, x) * x)
    assert network.given[2] is cond
    assert network.given[3] is augment
    assert (denoiser.sigma_min, denoiser.sigma_max) == (precond.sigma_min, precond.sigma_max)


def test_the_network_that_predicts_the_edm_target_recovers_clean_data(x):
    x0 = torch.linspace(-1, 1, x.numel()).view_as(x)
    noisy = x0 + expand(SIGMA, x) * x
    var = expand(SIGMA, x).square() + 0.25

    class Oracle(nn.Module):
        def forward(self, c_in_x, *_):
            torch.testing.assert_close(c_in_x, noisy / var.sqrt())
            return (x0 - 0.25 / var * noisy) * var.sqrt() / (expand(SIGMA, x) * 0.5)

    denoiser = NetworkDenoiser(Oracle(), EDMPrecond(), shape=SHAPE)
    torch.testing.assert_close(denoiser(noisy, SIGMA), x0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
@pytest.mark.parametrize("m2", [0.0625, 0.25, 1.0])
def test_a_new_network_has_the_edm_loss_of_f_equal_to_zero(sigma, m2):
    """Test E1: (sd^2 + sigma^2 m2 / sd^2) / (sigma^2 + sd^2), which is 1 for m2 = sd^2 whatever the data."""
    torch.manual_seed(0)
    network = DDPMpp(resolution=8, channels=3, model_channels=8, channel_mult=(1,), attention_resolutions=())
    denoiser = NetworkDenoiser(network.eval(), EDMPrecond(sigma_data=0.5), shape=SHAPE)
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]])  # orthogonal: no correlation of data and noise
    x0, noise = (row.repeat(48).view(1, *SHAPE) for row in signs)
    x0 = x0 * m2**0.5
    with torch.no_grad():
        error = denoiser(x0 + sigma * noise, torch.tensor(sigma)) - x0
    loss = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * error.square().mean().item()
    assert loss == pytest.approx((0.25 + sigma**2 * m2 / 0.25) / (sigma**2 + 0.25), rel=2e-3)


def test_one_sigma_serves_the_whole_batch(x):
    denoiser = NetworkDenoiser(Recorder(), EDMPrecond(), shape=SHAPE)
    assert torch.equal(denoiser(x, torch.tensor(0.3)), denoiser(x, torch.full((3,), 0.3)))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_only_the_network_runs_in_half_precision(precision, dtype, x):
    torch.manual_seed(0)

    class Spy(nn.Conv2d):
        def forward(self, x, *_):
            assert x.dtype == torch.float32
            out = super().forward(x)
            assert out.dtype == dtype
            return out

    network = Spy(3, 3, 3, padding=1)
    half = NetworkDenoiser(network, EDMPrecond(), shape=SHAPE, precision=precision)
    sigma = torch.full((3,), 1e-3)  # c_out is small here, so that the rounding of F can hardly be seen in D
    denoised, c_skip = half(x, sigma), 0.25 / (0.25 + 1e-6)
    assert denoised.dtype == torch.float32
    plain = nn.functional.conv2d(x / (0.25 + 1e-6) ** 0.5, network.weight, network.bias, padding=1)
    torch.testing.assert_close(denoised, c_skip * x + 1e-3 * plain, atol=5e-5, rtol=0)
    torch.testing.assert_close((denoised - c_skip * x) / 1e-3, plain, atol=0.05, rtol=0)


def test_float64_states_are_evaluated_in_the_precision_of_the_network(x):
    torch.manual_seed(0)
    points, sigma = x.flatten()[:6].view(3, 2).double(), SIGMA.double()
    denoiser = NetworkDenoiser(MLP(resolution=2, channels=2, width=8), EDMPrecond(), shape=(2,))
    single = denoiser(points, sigma)
    assert single.dtype == torch.float32
    assert torch.equal(single, denoiser(points.float(), SIGMA))
    double = denoiser.double()(points, sigma)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)


def test_gradients_flow_to_the_network_and_to_the_state(x):
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(MLP(resolution=2, channels=2, width=8), EDMPrecond(), shape=(2,)).double()
    points = x.flatten()[:6].view(3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: denoiser(p, SIGMA.double()), (points,))
    denoiser(points, SIGMA.double()).sum().backward()
    assert denoiser.network.output.weight.grad.any()


def test_shapes_and_flops_come_from_the_meta_device_in_any_precision():
    with torch.device("meta"):
        network = DDPMpp(resolution=8, channels=3, model_channels=8, attention_resolutions=())
        denoiser = NetworkDenoiser(network, EDMPrecond(), shape=SHAPE, precision="bf16")
        assert denoiser(torch.empty(2, *SHAPE), torch.empty(2)).shape == (2, *SHAPE)


def test_samples_and_outputs_that_do_not_fit_are_refused(x):
    with pytest.raises(UserError, match=r"\(3, 8, 8\).*\(3, 3, 4, 4\)"):
        NetworkDenoiser(Recorder(), EDMPrecond(), shape=SHAPE)(x[..., :4, :4], SIGMA)
    with pytest.raises(UserError, match="out_channels=6"):
        NetworkDenoiser(Recorder(), IDDPMPrecond(), shape=SHAPE)(x, SIGMA)
