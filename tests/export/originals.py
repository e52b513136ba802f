"""Published networks written out over tensors, by the names of their own files: nothing of ours in them."""

from itertools import count
from math import log, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


def edm2_tensors(
    *, size: int = 8, channels: int = 3, classes: int = 5, mult: tuple[int, ...] = (1, 2), blocks: int = 1
) -> Tensors:
    """A random network of EDM2, float64, attending at half the size of its samples."""
    widths, tensors = [64 * m for m in mult], {}
    emb, names = max(widths), count()

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(next(names)), dtype=torch.float64)

    def block(name: str, n_in: int, n_out: int, first: int, attend: bool) -> None:
        tensors[f"{name}.emb_gain"] = draw()
        shapes = {
            "conv_res0": (n_out, first, 3, 3),
            "emb_linear": (n_out, emb),
            "conv_res1": (n_out, n_out, 3, 3),
        }
        if n_in != n_out:
            shapes["conv_skip"] = (n_out, n_in, 1, 1)
        if attend:
            shapes |= {"attn_qkv": (3 * n_out, n_out, 1, 1), "attn_proj": (n_out, n_out, 1, 1)}
        tensors.update({f"{name}.{key}.weight": draw(*shape) for key, shape in shapes.items()})

    tensors |= {"out_gain": draw(), "emb_fourier.freqs": draw(64), "emb_fourier.phases": draw(64)}
    tensors["emb_noise.weight"] = draw(emb, 64)
    if classes:
        tensors["emb_label.weight"] = draw(emb, classes)
    tensors[f"enc.{size}x{size}_conv.weight"] = draw(64, channels + 1, 3, 3)
    width, skips = 64, [64]
    for level, out in enumerate(widths):
        res = size >> level
        if level:
            block(f"enc.{res}x{res}_down", width, width, width, False)
            skips.append(width)
        for i in range(blocks):
            block(f"enc.{res}x{res}_block{i}", width, out, out, res == size // 2)
            width = out
            skips.append(width)
    for level, out in reversed(list(enumerate(widths))):
        res = size >> level
        if level == len(widths) - 1:
            block(f"dec.{res}x{res}_in0", width, width, width, True)
            block(f"dec.{res}x{res}_in1", width, width, width, False)
        else:
            block(f"dec.{res}x{res}_up", width, width, width, False)
        for i in range(blocks + 1):
            joined = width + skips.pop()
            block(f"dec.{res}x{res}_block{i}", joined, out, joined, res == size // 2)
            width = out
    tensors["out_conv.weight"] = draw(channels, width, 3, 3)
    return tensors


class EDM2Equations:
    """The forward of EDM2's network over its tensors W."""

    def __init__(self, W: Tensors) -> None:
        self.W = W

    def unit(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """x at root mean square 1."""
        return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())

    def layer(self, key: str, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        w = self.W[f"{key}.weight"]
        w = self.unit(w, tuple(range(1, w.ndim))) * gain / sqrt(w[0].numel())
        return x @ w.T if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)

    def silu(self, x: Tensor) -> Tensor:
        return x * x.sigmoid() / 0.596

    def mix(self, a: Tensor, b: Tensor, t: float) -> Tensor:
        return ((1 - t) * a + t * b) / sqrt((1 - t) ** 2 + t**2)

    def block(self, key: str, x: Tensor, emb: Tensor) -> Tensor:
        if key.endswith("_down"):
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        if key.endswith("_up"):
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        skip = self.layer(f"{key}.conv_skip", x) if f"{key}.conv_skip.weight" in self.W else x
        if key.startswith("enc"):
            x = skip = self.unit(skip, (1,))
        y = self.layer(f"{key}.conv_res0", self.silu(x))
        y = y * (1 + self.layer(f"{key}.emb_linear", emb, self.W[f"{key}.emb_gain"]))[:, :, None, None]
        x = self.mix(skip, self.layer(f"{key}.conv_res1", self.silu(y)), 0.3)
        if f"{key}.attn_qkv.weight" in self.W:
            x = self.mix(x, self.attend(key, x), 0.3)
        return x.clamp(-256, 256)

    def attend(self, key: str, x: Tensor) -> Tensor:
        out = []
        for head in self.layer(f"{key}.attn_qkv", x).flatten(2).split(3 * 64, 1):
            q, k, v = (self.unit(head[:, j::3], (1,)) for j in range(3))
            out.append(v @ (q.mT @ k / 8).softmax(2).mT)
        return self.layer(f"{key}.attn_proj", torch.cat(out, 1).reshape(x.shape))

    def __call__(self, x: Tensor, t: Tensor, one_hot: Tensor | None = None) -> Tensor:
        emb = sqrt(2) * (t[:, None] * self.W["emb_fourier.freqs"] + self.W["emb_fourier.phases"]).cos()
        emb = self.layer("emb_noise", emb)
        if one_hot is not None:
            emb = self.mix(emb, self.layer("emb_label", one_hot * sqrt(one_hot.shape[1])), 0.5)
        emb = self.silu(emb)
        names = dict.fromkeys(".".join(key.split(".")[:2]) for key in self.W if key[:4] in ("enc.", "dec."))
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], 1), []
        for key in names:
            if key.endswith("_conv"):
                x = self.layer(key, x)
            elif key.startswith("dec") and "_block" in key:
                skip = skips.pop()
                n, m = x.shape[1], skip.shape[1]
                x = self.block(key, sqrt((n + m) / 2) * torch.cat([x / sqrt(n), skip / sqrt(m)], 1), emb)
            else:
                x = self.block(key, x, emb)
            if key.startswith("enc"):
                skips.append(x)
        return self.layer("out_conv", x, self.W["out_gain"])


def edm_denoiser(
    network: EDM2Equations, x: Tensor, sigma: Tensor, one_hot: Tensor, sigma_data: float
) -> Tensor:
    """D(x; sigma) of EDM around a network."""
    total = (sigma**2 + sigma_data**2)[:, None, None, None]
    f = network(x / total.sqrt(), sigma.log() / 4, one_hot)
    return sigma_data**2 / total * x + sigma[:, None, None, None] * sigma_data / total.sqrt() * f


class ScoreSDE:
    """DDPM++ (or with a pyramid NCSN++) as score_sde keeps it: one list of layers, each with its own names.

    Built random, in float64, for RGB images, attending at half their size; called with the time condition
    of its embedding.
    """

    def __init__(
        self, *, pyramid: bool, size: int = 8, width: int = 8, mult: tuple[int, ...] = (1, 2)
    ) -> None:
        self.pyramid, self.size, self.width, self.mult = pyramid, size, width, mult
        self.rng, self.layers = torch.Generator().manual_seed(0), []
        if pyramid:
            self.add(W=(width,))
        self.add_linear((2 if pyramid else 1) * width, 4 * width)
        self.add_linear(4 * width, 4 * width)
        self.add_conv(3, width)
        channels, skips = width, [width]
        for level, m in enumerate(mult):
            self.add_block(channels, m * width)
            channels = m * width
            if size >> level == size // 2:
                self.add_attention(channels)
            skips.append(channels)
            if level < len(mult) - 1:
                self.add_block(channels, channels, resample=True)
                if pyramid:
                    image = 3 if level == 0 else mult[level - 1] * width
                    self.add(**{"Conv2d_0.weight": (channels, image, 3, 3), "Conv2d_0.bias": (channels,)})
                skips.append(channels)
        self.add_block(channels, channels)
        self.add_attention(channels)
        self.add_block(channels, channels)
        for level, m in reversed(list(enumerate(mult))):
            for _ in range(2):
                self.add_block(channels + skips.pop(), m * width)
                channels = m * width
            if size >> level == size // 2:
                self.add_attention(channels)
            if level:
                self.add_block(channels, channels, resample=True)
        self.add(weight=(channels,), bias=(channels,))
        self.add_conv(channels, 3)

    def add(self, **shapes: tuple[int, ...]) -> None:
        scale = {"W": 1.0, "bias": 0.1}
        self.layers.append(
            {
                name: scale.get(name, 0.3) * torch.randn(shape, generator=self.rng, dtype=torch.float64)
                for name, shape in shapes.items()
            }
        )

    def add_linear(self, n_in: int, n_out: int) -> None:
        self.add(weight=(n_out, n_in), bias=(n_out,))

    def add_conv(self, n_in: int, n_out: int) -> None:
        self.add(weight=(n_out, n_in, 3, 3), bias=(n_out,))

    def add_block(self, n_in: int, n_out: int, *, resample: bool = False) -> None:
        shapes = {"GroupNorm_0": (n_in,), "Conv_0": (n_out, n_in, 3, 3), "Dense_0": (n_out, 4 * self.width)}
        shapes |= {"GroupNorm_1": (n_out,), "Conv_1": (n_out, n_out, 3, 3)}
        if n_in != n_out or resample:
            shapes["Conv_2"] = (n_out, n_in, 1, 1)
        self.add(
            **{
                f"{k}.{p}": s if p == "weight" else s[:1]
                for k, s in shapes.items()
                for p in ("weight", "bias")
            }
        )

    def add_attention(self, n: int) -> None:
        matrices = {f"NIN_{j}.{p}": (n, n) if p == "W" else (n,) for j in range(4) for p in ("W", "b")}
        self.add(**{"GroupNorm_0.weight": (n,), "GroupNorm_0.bias": (n,), **matrices})

    @property
    def tensors(self) -> Tensors:
        """By the names of a checkpoint, but for the table of noise levels."""
        return {
            f"all_modules.{i}.{key}": t for i, layer in enumerate(self.layers) for key, t in layer.items()
        }

    def norm(self, layer: Tensors, key: str, x: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1] // 4, layer[f"{key}weight"], layer[f"{key}bias"], 1e-6)

    def filtered(self, x: Tensor) -> Tensor:
        """Each channel convolved with the outer product of [1, 3, 3, 1] / 8, one pixel of zeros around."""
        row = torch.tensor([1, 3, 3, 1], dtype=x.dtype) / 8
        kernel = (row[:, None] * row).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, groups=x.shape[1])

    def down(self, x: Tensor) -> Tensor:
        return self.filtered(F.pad(x, (1, 1, 1, 1)))[..., ::2, ::2] if self.pyramid else F.avg_pool2d(x, 2)

    def up(self, x: Tensor) -> Tensor:
        if not self.pyramid:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[..., ::2, ::2] = 4 * x
        return self.filtered(F.pad(spread, (2, 1, 2, 1)))

    def block(self, x: Tensor, emb: Tensor, resample: str = "") -> Tensor:
        layer = next(self.walk)
        h = F.silu(self.norm(layer, "GroupNorm_0.", x))
        if resample:
            h, x = getattr(self, resample)(h), getattr(self, resample)(x)
        h = F.conv2d(h, layer["Conv_0.weight"], layer["Conv_0.bias"], padding=1)
        h = h + (emb @ layer["Dense_0.weight"].T + layer["Dense_0.bias"])[:, :, None, None]
        h = F.silu(self.norm(layer, "GroupNorm_1.", h))
        h = F.conv2d(h, layer["Conv_1.weight"], layer["Conv_1.bias"], padding=1)
        if "Conv_2.weight" in layer:
            x = F.conv2d(x, layer["Conv_2.weight"], layer["Conv_2.bias"])
        return (x + h) / sqrt(2)

    def attend(self, x: Tensor) -> Tensor:
        layer = next(self.walk)
        h = self.norm(layer, "GroupNorm_0.", x).flatten(2).mT  # [B, pixels, channels]
        q, k, v = (h @ layer[f"NIN_{j}.W"] + layer[f"NIN_{j}.b"] for j in range(3))
        h = (q @ k.mT / sqrt(x.shape[1])).softmax(2) @ v @ layer["NIN_3.W"] + layer["NIN_3.b"]
        return (x + h.mT.reshape(x.shape)) / sqrt(2)

    def shrink(self, image: Tensor) -> Tensor:
        """Filter, then convolve with stride 2, on a canvas that both need."""
        layer = next(self.walk)
        padded = self.filtered(F.pad(image, (2, 2, 2, 2)))
        return F.conv2d(padded, layer["Conv2d_0.weight"], layer["Conv2d_0.bias"], stride=2)

    def embedding(self, condition: Tensor) -> Tensor:
        if self.pyramid:
            angles = 2 * pi * condition.log()[:, None] * next(self.walk)["W"]
        else:
            half = self.width // 2
            k = torch.arange(half, dtype=torch.float64)
            angles = condition[:, None] * (-log(10000) / (half - 1) * k).exp()
        emb = torch.cat([angles.sin(), angles.cos()], 1)
        for _ in range(2):
            layer = next(self.walk)
            emb = F.silu(emb @ layer["weight"].T + layer["bias"])
        return emb

    def __call__(self, x: Tensor, condition: Tensor) -> Tensor:
        self.walk = iter(self.layers)
        emb, stem, image = self.embedding(condition), next(self.walk), x
        skips = [F.conv2d(x, stem["weight"], stem["bias"], padding=1)]
        for level in range(len(self.mult)):
            x = self.block(skips[-1], emb)
            skips.append(self.attend(x) if x.shape[-1] == self.size // 2 else x)
            if level < len(self.mult) - 1:
                x = self.block(skips[-1], emb, "down")
                if self.pyramid:
                    x = image = (self.shrink(image) + x) / sqrt(2)
                skips.append(x)
        x = self.block(self.attend(self.block(skips[-1], emb)), emb)
        for level in reversed(range(len(self.mult))):
            for _ in range(2):
                x = self.block(torch.cat([x, skips.pop()], 1), emb)
            x = self.attend(x) if x.shape[-1] == self.size // 2 else x
            x = self.block(x, emb, "up") if level else x
        x, last = F.silu(self.norm(next(self.walk), "", x)), next(self.walk)
        return F.conv2d(x, last["weight"], last["bias"], padding=1)
