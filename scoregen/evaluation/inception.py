"""The Inception network of the published FID: the graph of 2015-12-05, its input rule and its features.

Source: C. Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015, arXiv 1512.00567;
the use for FID by M. Heusel et al., 2017, arXiv 1706.08500. Layer names are those of the published graph.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoregen.evaluation.features import Extractor, check_images
from scoregen.evaluation.inception_weights import Layer, find_weights, read_weights
from scoregen.ranges import PositiveInt

INPUT = 299  # pixels a side
POOL, SPATIAL, LOGITS = 2048, 7 * 17 * 17, 1008  # features
BATCH_NORM_EPS = 1e-3


class ConvReLU(nn.Conv2d):
    """max(0, W * x + b): a convolution with its batch norm folded in."""

    def forward(self, x: Tensor) -> Tensor:
        """The rectified response [B, out, H', W']."""
        return super().forward(x).relu_()


class Parallel(nn.Sequential):
    """Concatenate what each branch makes of the same x along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Responses [B, sum of channels, H', W']."""
        return torch.cat([branch(x) for branch in self], 1)


def _named(kind: type[nn.Sequential], **modules: nn.Module) -> nn.Sequential:
    whole = kind()
    for name, module in modules.items():
        whole.add_module(name, module)
    return whole


def _chain(**modules: nn.Module) -> nn.Sequential:
    return _named(nn.Sequential, **modules)


def _branches(**modules: nn.Module) -> nn.Sequential:
    return _named(Parallel, **modules)


def _square(inside: int, out: int, size: int = 1, stride: int = 1) -> ConvReLU:
    """A size x size convolution: padded to keep the resolution, or strided without padding."""
    return ConvReLU(inside, out, size, stride, padding=0 if stride > 1 else size // 2)


def _wide(inside: int, out: int, size: int) -> ConvReLU:
    return ConvReLU(inside, out, (1, size), padding=(0, size // 2))


def _tall(inside: int, out: int, size: int) -> ConvReLU:
    return ConvReLU(inside, out, (size, 1), padding=(size // 2, 0))


def _average() -> nn.AvgPool2d:
    """3 x 3 means over the pixels that exist: the graph leaves padding out of the divisor."""
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _block_a(inside: int, pooled: int) -> nn.Sequential:
    return _branches(
        conv=_square(inside, 64),
        tower=_chain(conv=_square(inside, 48), conv_1=_square(48, 64, 5)),
        tower_1=_chain(conv=_square(inside, 64), conv_1=_square(64, 96, 3), conv_2=_square(96, 96, 3)),
        tower_2=_chain(pool=_average(), conv=_square(inside, pooled)),
    )


def _block_b(inside: int) -> nn.Sequential:
    return _branches(
        conv=_square(inside, 384, 3, stride=2),
        tower=_chain(
            conv=_square(inside, 64), conv_1=_square(64, 96, 3), conv_2=_square(96, 96, 3, stride=2)
        ),
        pool=nn.MaxPool2d(3, 2),
    )


def _block_c(mid: int) -> nn.Sequential:
    return _branches(
        conv=_square(768, 192),
        tower=_chain(conv=_square(768, mid), conv_1=_wide(mid, mid, 7), conv_2=_tall(mid, 192, 7)),
        tower_1=_chain(
            conv=_square(768, mid),
            conv_1=_tall(mid, mid, 7),
            conv_2=_wide(mid, mid, 7),
            conv_3=_tall(mid, mid, 7),
            conv_4=_wide(mid, 192, 7),
        ),
        tower_2=_chain(pool=_average(), conv=_square(768, 192)),
    )


def _block_d() -> nn.Sequential:
    return _branches(
        tower=_chain(conv=_square(768, 192), conv_1=_square(192, 320, 3, stride=2)),
        tower_1=_chain(
            conv=_square(768, 192),
            conv_1=_wide(192, 192, 7),
            conv_2=_tall(192, 192, 7),
            conv_3=_square(192, 192, 3, stride=2),
        ),
        pool=nn.MaxPool2d(3, 2),
    )


def _block_e(inside: int, pool: nn.Module) -> nn.Sequential:
    return _branches(
        conv=_square(inside, 320),
        tower=_chain(
            conv=_square(inside, 384),
            mixed=_branches(conv=_wide(384, 384, 3), conv_1=_tall(384, 384, 3)),
        ),
        tower_1=_chain(
            conv=_square(inside, 448),
            conv_1=_square(448, 384, 3),
            mixed=_branches(conv=_wide(384, 384, 3), conv_1=_tall(384, 384, 3)),
        ),
        tower_2=_chain(pool=pool, conv=_square(inside, 192)),
    )


def inception_graph() -> nn.Sequential:
    """Build the graph, [B, 3, 299, 299] in (x - 128)/128 -> [B, 2048, 1, 1], with unset weights."""
    return _chain(
        conv=_square(3, 32, 3, stride=2),
        conv_1=ConvReLU(32, 32, 3),
        conv_2=_square(32, 64, 3),
        pool=nn.MaxPool2d(3, 2),
        conv_3=_square(64, 80),
        conv_4=ConvReLU(80, 192, 3),
        pool_1=nn.MaxPool2d(3, 2),
        mixed=_block_a(192, 32),
        mixed_1=_block_a(256, 64),
        mixed_2=_block_a(288, 64),
        mixed_3=_block_b(288),
        mixed_4=_block_c(128),
        mixed_5=_block_c(160),
        mixed_6=_block_c(160),
        mixed_7=_block_c(192),
        mixed_8=_block_d(),
        mixed_9=_block_e(1280, _average()),
        mixed_10=_block_e(2048, nn.MaxPool2d(3, 1, 1)),  # the graph's slip, kept: max, not average
        pool_2=nn.AvgPool2d(8),
    )


def convolutions(graph: nn.Module) -> dict[str, ConvReLU]:
    """The graph's convolutions by name, in the order in which every published file lists them."""
    return {name: module for name, module in graph.named_modules() if isinstance(module, ConvReLU)}


def fold(layer: Layer) -> tuple[Tensor, Tensor]:
    """(W / s, beta - mean / s), s^2 = var + 1e-3: the convolution that equals the batch norm of W * x."""
    scale = (layer.var.double() + BATCH_NORM_EPS).rsqrt()
    weight = layer.weight.double() * scale[:, None, None, None]
    return weight.float(), (layer.beta.double() - layer.mean.double() * scale).float()


def load(graph: nn.Module, layers: Mapping[str, Layer]) -> None:
    """Fill the graph with published weights, batch norms folded in."""
    for name, conv in convolutions(graph).items():
        weight, bias = fold(layers[name])
        tensors = {"weight": weight.contiguous(memory_format=torch.channels_last), "bias": bias}
        conv.load_state_dict(tensors, assign=True)


def resize_tf1(x: Tensor, size: int) -> Tensor:
    """Resize [B, C, H, W] to [B, C, size, size] by the bilinear rule of TensorFlow 1.

    Output pixel i reads position i H / size, without the half-pixel shift of today's libraries and without
    antialiasing: x[floor] + (x[floor + 1] - x[floor]) frac, the upper index clamped to the border.
    """
    for axis in (-1, -2):
        length = x.shape[axis]
        position = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
        low = position.floor()
        shape = (-1, 1) if axis == -2 else (-1,)
        fraction = (position - low).to(x.dtype).reshape(shape)
        below = x.index_select(axis, low.long())
        above = x.index_select(axis, (low.long() + 1).clamp_max(length - 1))
        x = below + (above - below) * fraction
    return x


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Convolutions without TF32, which torch allows by default on GPUs."""
    if not hasattr(torch.backends.cudnn, "conv"):  # torch < 2.9
        allowed = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = allowed
        return
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = precision


class InceptionExtractor(Extractor):
    """Turn images into the features of the published FID, all layers in one pass.

    `pool`, 2048: the last layer's means. `spatial`, 2023: the first 7 channels of the 17 x 17 map mixed_6, of
    sFID (C. Nash et al., Generating Images with Sparse Representations, 2021, arXiv 2103.03841; which map and
    channels as in dgm-eval). `logits`, 1008, where the weights have the output layer: class scores without
    the output bias, as published.

    Args:
        weights: a weights file; None looks where `find_weights` says.
        device: where the network runs, in float32 throughout (no TF32).
        batch: images per pass; bounds the memory, about 10 MB an image.

    Raises:
        UserError: the weights are missing or are not the published ones.
    """

    name = "inception"
    resize = "TF1 bilinear to 299 x 299, (x - 128) / 128"

    def __init__(
        self, weights: Path | None = None, device: torch.device | str = "cpu", batch: PositiveInt = 64
    ) -> None:
        self.device, self.batch = torch.device(device), batch
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            graph = inception_graph()
        path = find_weights(weights)
        published = read_weights(path, list(convolutions(graph)))
        load(graph, published.layers)
        graph.to(self.device).requires_grad_(False)
        middle = list(dict(graph.named_children())).index("mixed_6") + 1
        self._below, self._above = graph[:middle], graph[middle:]
        self._output = None if published.output is None else published.output.to(self.device)
        self.sha256 = hashlib.sha256(f"{published.digest} {self.resize}".encode()).hexdigest()
        self.source = str(path)
        self.layers = {"pool": POOL, "spatial": SPATIAL} | (
            {} if self._output is None else {"logits": LOGITS}
        )

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Features [B, d] by layer, float32, of images uint8 [B, 1 or 3, H, W]; grey is repeated to RGB.

        Raises:
            UserError: the images are of another type or have another number of channels.
        """
        check_images(images)
        parts = [self._features(part) for part in images.split(self.batch)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.layers}

    @torch.no_grad()
    def _features(self, images: Tensor) -> dict[str, Tensor]:
        x = images.to(self.device, torch.float32).expand(-1, 3, -1, -1)
        x = ((resize_tf1(x, INPUT) - 128) / 128).contiguous(memory_format=torch.channels_last)
        with _exact_float32(), torch.autocast(x.device.type, enabled=False):
            middle = self._below(x)
            layers = {"pool": self._above(middle).flatten(1), "spatial": middle[:, :7].flatten(1)}
            if self._output is not None:
                layers["logits"] = F.linear(layers["pool"], self._output)
        return layers
