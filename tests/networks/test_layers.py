from math import sqrt

import pytest
import torch
import torch.nn.functional as F

from scoregen.errors import UserError
from scoregen.networks.layers import (
    Conv2d,
    ConvDownsample,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    attention,
    downsample,
    fir_filter,
    upsample,
)

TAPS = [(1, 1), (1, 3, 3, 1)]


@pytest.mark.parametrize(
    ("mode", "std"),
    [
        ("xavier_uniform", sqrt(2 / (9 * 24 + 9 * 120))),  # fans count the 9 taps
        ("kaiming_uniform", sqrt(1 / (9 * 24))),
        ("kaiming_normal", sqrt(1 / (9 * 24))),
    ],
)
def test_initial_weights_have_the_standard_deviation_of_their_law(mode, std):
    torch.manual_seed(0)
    weight = Conv2d(24, 120, 3, init=Init(mode, weight=2.0)).weight.detach()
    assert weight.std() == pytest.approx(2 * std, rel=0.02)
    if mode != "kaiming_normal":
        assert weight.abs().max() == pytest.approx(2 * std * sqrt(3), rel=1e-3)


def test_initial_biases_follow_the_fan_of_the_weights():
    torch.manual_seed(0)
    assert not Linear(16, 4096, init=Init("kaiming_uniform")).bias.any()
    bias = Linear(16, 4096, init=Init("kaiming_uniform", bias=2.0)).bias.detach()
    assert bias.std() == pytest.approx(2 / sqrt(16), rel=0.03)


def _downsampling_matrix(taps, size):
    pad, matrix = (len(taps) - 1) // 2, torch.zeros(size // 2, size, dtype=torch.float64)
    for i in range(size // 2):
        for k, tap in enumerate(taps):
            if 0 <= 2 * i + k - pad < size:
                matrix[i, 2 * i + k - pad] = tap / sum(taps)
    return matrix


@pytest.mark.parametrize("taps", TAPS)
def test_resampling_is_the_separable_matrix_and_its_transpose(taps):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fir, down = fir_filter(taps).double(), _downsampling_matrix(taps, 8)
    torch.testing.assert_close(downsample(x, fir), down @ x @ down.T)
    up = 2 * _downsampling_matrix(taps, 16).T
    torch.testing.assert_close(upsample(x, fir), up @ x @ up.T)


@pytest.mark.parametrize("taps", TAPS)
def test_resampling_preserves_constants_away_from_the_border(taps):
    ones, fir = torch.ones(1, 2, 8, 8), fir_filter(taps)
    border = len(taps) // 2 - 1  # zero padding darkens what the filter reaches over the border
    for y in (upsample(ones, fir), downsample(ones, fir)):
        inner = y[..., border : y.shape[-1] - border, border : y.shape[-1] - border]
        torch.testing.assert_close(inner, torch.ones_like(inner))


def test_the_box_filter_undoes_its_own_upsampling():
    x, fir = torch.randn(2, 3, 4, 4), fir_filter((1, 1))
    assert torch.equal(downsample(upsample(x, fir), fir), x)


def test_the_pyramid_convolution_filters_an_unbounded_canvas():
    torch.manual_seed(0)
    layer = ConvDownsample(3, 4, 3, init=Init("xavier_uniform", bias=1.0), taps=(1, 3, 3, 1)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    canvas = F.conv2d(F.pad(x, (8, 8, 8, 8)), layer.weight, layer.bias, padding=1)
    down = _downsampling_matrix((1, 3, 3, 1), 24)
    torch.testing.assert_close(layer(x), (down @ canvas @ down.T)[..., 4:8, 4:8])


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (64, 16), (256, 32), (144, 24), (3, 1)])
def test_group_norm_takes_the_largest_allowed_number_of_groups(channels, groups):
    x = 3 + 2 * torch.randn(2, channels, 5, 5)
    y = GroupNorm(channels, eps=0.0)(x).detach().reshape(2, groups, -1)
    torch.testing.assert_close(y.mean(2), torch.zeros(2, groups), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(2, correction=0), torch.ones(2, groups), atol=1e-4, rtol=0)


def _compiled(function):
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def test_what_is_compiled_normalises_alike_and_keeps_the_layout():
    x = (3 + 2 * torch.randn(2, 24, 6, 6, dtype=torch.float64)).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(24, eps=1e-6).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    y = _compiled(norm)(x)
    torch.testing.assert_close(y, norm(x), rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_what_is_compiled_upsamples_to_the_same_bits_and_gradient():
    fir = fir_filter((1, 1))
    x, again = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    weights = torch.randn(2, 3, 8, 8)
    eager, compiled = upsample(x.requires_grad_(), fir), _compiled(upsample)(again.requires_grad_(), fir)
    assert torch.equal(compiled, eager)
    (eager * weights).sum().backward()
    (compiled * weights).sum().backward()
    torch.testing.assert_close(again.grad, x.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_group_norm_of_half_precision_is_the_rounded_float32_norm(dtype):
    x = (20 + torch.randn(2, 8, 16, 16)).to(dtype)
    norm = GroupNorm(8, eps=1e-6)
    with torch.autocast("cpu", dtype):
        assert torch.equal(norm(x), norm(x.float()).to(dtype))


def test_positional_embedding_runs_from_frequency_1_to_its_endpoint():
    t = torch.tensor([0.7, -3.0], dtype=torch.float64)
    for endpoint, last in ((True, 1e-4), (False, 10000 ** (-7 / 8))):
        emb = PositionalEmbedding(16, endpoint=endpoint)(t)
        torch.testing.assert_close(emb[:, 0], t.cos())
        torch.testing.assert_close(emb[:, 8], t.sin())
        torch.testing.assert_close(emb[:, 15], (last * t).sin())
        ratio = emb[:, 9:].asin()[:, 1:] / emb[:, 9:].asin()[:, :-1]
        torch.testing.assert_close(ratio, torch.full_like(ratio, last ** (1 / 7)))


def test_fourier_embedding_has_fixed_frequencies_of_deviation_16():
    torch.manual_seed(0)
    embedding = FourierEmbedding(8192)
    assert embedding.freqs.std() == pytest.approx(16, rel=0.03)
    assert not list(embedding.parameters())
    t = torch.tensor([0.25], dtype=torch.float64)
    angle = embedding.freqs.double() * torch.pi / 2
    torch.testing.assert_close(embedding(t), torch.cat([angle.cos(), angle.sin()])[None])


@pytest.mark.parametrize("channels", [2, 7])
def test_an_embedding_without_room_for_sine_and_cosine_is_refused(channels):
    with pytest.raises(UserError, match=str(channels)):
        PositionalEmbedding(channels, endpoint=True)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_the_explicit_softmax_with_interleaved_channels(heads):
    qkv = torch.randn(2, 3 * 8, 4, 4, dtype=torch.float64)
    d, out = 8 // heads, torch.empty(2, 8, 4, 4, dtype=torch.float64)
    for head in range(heads):
        own = qkv[:, 3 * d * head : 3 * d * (head + 1)]
        q, k, v = (own[:, j::3].flatten(2) for j in range(3))  # [B, d, HW]
        weights = torch.softmax(q.transpose(1, 2) @ k / sqrt(d), dim=2)
        out[:, d * head : d * (head + 1)] = (v @ weights.transpose(1, 2)).unflatten(2, (4, 4))
    torch.testing.assert_close(attention(qkv, heads), out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_survives_logits_beyond_the_range_of_half_precision(dtype):
    qkv = torch.zeros(1, 3 * 4, 2, 2)
    qkv[:, 0::3] = qkv[:, 1::3] = 250 * torch.eye(4).unflatten(
        1, (2, 2)
    )  # logits 31250 on the diagonal, else 0
    qkv[:, 2::3] = torch.arange(16.0).view(4, 2, 2)
    qkv[:, 0] *= 16  # and one of 500000
    torch.testing.assert_close(attention(qkv.to(dtype), 1), qkv[:, 2::3].to(dtype))
