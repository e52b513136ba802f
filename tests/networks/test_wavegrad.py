"""Laws of the WaveGrad network: its published size, its rates, what modulates what."""

import pytest
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.networks.wavegrad import WaveGrad

SMALL = {
    "factors": (4, 3, 2),
    "up_channels": (10, 8, 6),
    "mel_channels": 12,
    "down_channels": (4, 6, 8),
    "dilations": ((1, 2, 1, 2), (1, 2, 4, 8), (1, 2, 4, 8)),
}


def small() -> WaveGrad:
    torch.manual_seed(0)
    return WaveGrad(resolution=480, channels=1, n_mels=5, **SMALL)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 1, 480), torch.linspace(0.2, 0.9, batch), torch.rand(batch, 5, 20)


def test_the_base_model_has_its_published_size() -> None:
    """15.81 M parameters, as a port's page says."""
    with torch.device("meta"):
        network = WaveGrad(resolution=7200, channels=1)
        out = network(torch.empty(2, 1, 7200), torch.empty(2), torch.empty(2, 80, 24))
    assert sum(p.numel() for p in network.parameters()) == 15_810_401
    assert out.shape == (2, 1, 7200)


@pytest.mark.parametrize("frames", [1, 7])
def test_a_frame_becomes_300_samples(frames: int) -> None:
    with torch.device("meta"):
        network = WaveGrad(resolution=300 * frames, channels=1, n_mels=128)
        out = network(torch.empty(3, 1, 300 * frames), torch.empty(3), torch.empty(3, 128, frames))
    assert out.shape == (3, 1, 300 * frames)


def test_features_modulate_the_way_up_in_reverse_order() -> None:
    """FiLM k has the channels of the k-th block from the end, and its rate."""
    with torch.device("meta"):
        network = WaveGrad(resolution=7200, channels=1)
    pairs = [(film.input.in_channels, film.output.out_channels // 2) for film in network.films]
    assert pairs == [(32, 128), (128, 128), (128, 256), (256, 512), (512, 512)]
    lengths: dict[str, list[int]] = {"film": [], "up": []}
    model = small()
    for film in model.films:
        film.register_forward_hook(lambda _, __, out: lengths["film"].append(out[0].shape[-1]))
    for up in model.up:
        up.register_forward_hook(lambda _, __, out: lengths["up"].append(out.shape[-1]))
    model(*inputs())
    assert lengths["film"] == [480, 240, 80]
    assert lengths["up"] == lengths["film"][::-1]


def test_gradients_reach_every_parameter() -> None:
    network = small()
    network(*inputs()).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_sound_twice_as_long_is_the_same_sound_away_from_its_end() -> None:
    """All is convolution: what is far off does not matter, and a delay of whole frames is a delay."""
    network = small()
    long = WaveGrad(resolution=960, channels=1, n_mels=5, **SMALL)
    long.load_state_dict(network.state_dict())
    x, amplitude, mel = inputs()
    zeros = torch.zeros_like(x), torch.zeros_like(mel)
    later = long(torch.cat([zeros[0], x], 2), amplitude, torch.cat([zeros[1], mel], 2))
    sooner = long(torch.cat([x, zeros[0]], 2), amplitude, torch.cat([mel, zeros[1]], 2))
    torch.testing.assert_close(later[:, :, 720:730], sooner[:, :, 240:250], rtol=1e-4, atol=1e-5)


def test_amplitude_and_spectrogram_matter() -> None:
    network, (x, amplitude, mel) = small(), inputs()
    out = network(x, amplitude, mel)
    assert not torch.allclose(out, network(x, amplitude + 0.01, mel))
    assert not torch.allclose(out, network(x, amplitude, mel + 0.1))


def test_what_does_not_fit_is_refused() -> None:
    network, (x, amplitude, mel) = small(), inputs()
    for told in (None, mel[:, :4], mel[:, :, :19]):
        with pytest.raises(
            UserError, match=r"spectrograms of shape \(2, 5, 20\).*data\.n_mels and data\.hop"
        ):
            network(x, amplitude, told)
    with pytest.raises(UserError, match="a multiple of 24"):
        WaveGrad(resolution=481, channels=1, n_mels=5, **SMALL)
    with pytest.raises(UserError, match="got 2, 3 and 3"):
        WaveGrad(resolution=480, channels=1, n_mels=5, **{**SMALL, "up_channels": (8, 6)})
