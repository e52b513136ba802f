"""The U-Nets against their equations, written out over a state dict by the names of the file format."""

from math import log, sqrt

import pytest
import torch
import torch.nn.functional as F


class Equations:
    """The forward of one family; W is a state dict in float64."""

    def __init__(self, W, name):
        self.W, self.adm, self.pyramid = W, name == "adm", name == "ncsnpp"
        self.taps = (1, 3, 3, 1) if self.pyramid else (1, 1)
        self.eps, self.scale = (1e-5, 1.0) if self.adm else (1e-6, sqrt(0.5))

    def linear(self, key, x):
        return x @ self.W[f"{key}.weight"].T + self.W.get(f"{key}.bias", 0)

    def conv(self, key, x):
        weight = self.W[f"{key}.weight"]
        return F.conv2d(x, weight, self.W[f"{key}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, key, x):
        channels = x.shape[1]
        grouped = x.reshape(x.shape[0], min(32, channels // 4), -1)
        mean, var = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
        x = ((grouped - mean) / (var + self.eps).sqrt()).reshape(x.shape)
        return x * self.W[f"{key}.weight"][:, None, None] + self.W[f"{key}.bias"][:, None, None]

    def matrix(self, size):
        """Downsamples `size` pixels to half as many."""
        pad, matrix = (len(self.taps) - 1) // 2, torch.zeros(size // 2, size, dtype=torch.float64)
        for i in range(size // 2):
            for k, tap in enumerate(self.taps):
                if 0 <= 2 * i + k - pad < size:
                    matrix[i, 2 * i + k - pad] = tap / sum(self.taps)
        return matrix

    def resample(self, x, direction):
        size = x.shape[-1]
        matrix = {
            "down": self.matrix(size),
            "up": 2 * self.matrix(2 * size).T,
            None: torch.eye(size).double(),
        }[direction]
        return matrix @ x @ matrix.T

    def block(self, key, x, emb, direction=None):
        h = self.conv(f"{key}.conv0", self.resample(F.silu(self.norm(f"{key}.norm0", x)), direction))
        affine = self.linear(f"{key}.affine", emb)[:, :, None, None]
        if self.adm:
            scale, shift = affine.chunk(2, 1)
            h = self.norm(f"{key}.norm1", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{key}.norm1", h + affine)
        h = self.conv(f"{key}.conv1", F.silu(h))
        x = self.resample(x, direction)
        x = self.conv(f"{key}.skip", x) if f"{key}.skip.weight" in self.W else x
        x = (x + h) * self.scale
        return (x + self.attend(key, x)) * self.scale if f"{key}.qkv.weight" in self.W else x

    def attend(self, key, x):
        qkv = self.conv(f"{key}.qkv", self.norm(f"{key}.norm2", x))
        heads = x.shape[1] // 64 if self.adm else 1
        out = []
        for own in qkv.chunk(heads, 1):
            q, k, v = (own[:, j::3].flatten(2) for j in range(3))
            logits = torch.einsum("bcq,bck->bqk", q, k) / sqrt(q.shape[1])
            out.append(torch.einsum("bqk,bck->bcq", logits.softmax(2), v))
        return self.conv(f"{key}.proj", torch.cat(out, 1).reshape(x.shape))

    def embedding(self, t, one_hot, augment):
        if self.pyramid:
            angles = 2 * torch.pi * t[:, None] * self.W["map_noise.freqs"]
        else:
            n = self.W["map_layer0.weight"].shape[1] // 2
            k = torch.arange(n, dtype=torch.float64) / (n if self.adm else n - 1)
            angles = t[:, None] * torch.exp(-log(10000) * k)
        waves = [angles.cos(), angles.sin()]
        emb = torch.cat(waves if self.adm else waves[::-1], 1) + self.linear("map_augment", augment)
        if not self.adm:
            emb = emb + self.linear("map_label", one_hot * sqrt(one_hot.shape[1]))
        emb = self.linear("map_layer1", F.silu(self.linear("map_layer0", emb)))
        return F.silu(emb + self.linear("map_label", one_hot) if self.adm else emb)

    def __call__(self, x, t, one_hot, augment, sizes, blocks):
        emb, image, skips = self.embedding(t, one_hot, augment), x, []
        for size in sizes:
            if size == sizes[0]:
                x = self.conv(f"enc.{size}x{size}_conv", x)
            else:
                x = self.block(f"enc.{size}x{size}_down", x, emb, "down")
            if self.pyramid and size != sizes[0]:
                image = x = (x + self.shrink(f"enc.{size}x{size}_aux_residual", image)) * sqrt(0.5)
            skips.append(x)
            for i in range(blocks):
                x = self.block(f"enc.{size}x{size}_block{i}", x, emb)
                skips.append(x)
        for key in ("in0", "in1"):
            x = self.block(f"dec.{sizes[-1]}x{sizes[-1]}_{key}", x, emb)
        for size in sizes[::-1]:
            x = x if size == sizes[-1] else self.block(f"dec.{size}x{size}_up", x, emb, "up")
            for i in range(blocks + 1):
                x = self.block(f"dec.{size}x{size}_block{i}", torch.cat([x, skips.pop()], 1), emb)
        head = (
            ("out_norm", "out_conv")
            if self.adm
            else (f"dec.{sizes[0]}x{sizes[0]}_aux_norm", f"dec.{sizes[0]}x{sizes[0]}_aux_conv")
        )
        return self.conv(head[1], F.silu(self.norm(head[0], x)))

    def shrink(self, key, image):
        """Convolve and downsample on a canvas of zeros without end."""
        canvas, half = F.pad(image, (8, 8, 8, 8)), image.shape[-1] // 2
        return self.resample(self.conv(key, canvas), "down")[..., 4 : 4 + half, 4 : 4 + half]


def test_the_network_computes_its_equations(build, name):
    network = build(name, resolution=16, channel_mult=(1, 1, 2), attention_resolutions=(8,)).double()
    x, t = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([-1.3, 0.8], dtype=torch.float64)
    cond, augment = torch.tensor([4, 1]), torch.randn(2, 9, dtype=torch.float64)
    equations = Equations(network.state_dict(), name)
    with torch.no_grad():
        expected = equations(x, t, F.one_hot(cond, 5).double(), augment, [16, 8, 4], network.num_blocks)
        torch.testing.assert_close(network(x, t, cond, augment), expected, atol=1e-9, rtol=1e-9)
    assert expected.std() > 0.01  # the network is not just its zero initialisation


ATTENDING = {
    "ddpmpp": {"enc.8x8_block0", "enc.8x8_block1", "dec.4x4_in0", "dec.8x8_block2"},
    "adm": {"enc.8x8_block0", "dec.4x4_in0", "dec.8x8_block0", "dec.8x8_block1"},
}


@pytest.mark.parametrize("name", ATTENDING)
def test_blocks_attend_where_the_family_says(build, name):
    network = build(name, resolution=16, channel_mult=(1, 1, 2), attention_resolutions=(8,))
    keys = {key.removesuffix(".qkv.weight") for key in network.state_dict() if key.endswith(".qkv.weight")}
    assert keys == ATTENDING[name]
