"""An extractor that needs no weights: two layers of oriented edges and moduli, over three octaves."""

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from scoregen.evaluation.features import Extractor, check_images

# Derivatives along x, y and both diagonals, and a Laplacian: integers over a power of two, so exact on every
# machine.
_FILTERS = (
    ((-2, 0, 2), (-4, 0, 4), (-2, 0, 2)),
    ((-2, -4, -2), (0, 0, 0), (2, 4, 2)),
    ((-4, -2, 0), (-2, 0, 2), (0, 2, 4)),
    ((0, 2, 4), (-2, 0, 2), (-4, -2, 0)),
    ((-1, -2, -1), (-2, 12, -2), (-1, -2, -1)),
)
# One gain per block, so that each has about the same variance on photographs and on handwriting; without them
# the brightness of the image alone would decide the distance.
_LAYOUT, _COLOUR = 4.0, 16.0
_EDGES, _COLOUR_EDGES, _TEXTURE = (32.0, 24.0, 16.0), (64.0, 64.0, 64.0), (64.0, 64.0)
_CHUNK = 128  # images at a time: the maps stay in the cache


class ScatterExtractor(Extractor):
    """Turn images into 164 features: layout, colour, edges and texture, the same for every image size.

    With Y and two opponent colours C of x / 255, W_j the filters, u_l the image averaged l times over 2 x 2
    and A_g the
    means over a g x g grid:
        A_4 Y, A_2 C, and for l = 0, 1, 2: A_2 |W_j * Y_l|, A_1 |W_j * C_l|, and for l < 2: A_1 |W_k * A |W_j
        * Y_l||.
    Grey images have no colour: those features are constant, which the Frechet distance takes exactly. The
    blocks, the equal-variance gains and the size were chosen on digits, MNIST and CIFAR-10
    (docs/evaluation.md).

    In the spirit of J. Bruna and S. Mallat, Invariant Scattering Convolution Networks, 2012, arXiv 1203.1513
    (remembered), with derivative filters in place of Morlet wavelets.

    Args:
        device: where it runs.
    """

    name = "scatter"
    resize = "none, x / 255"
    smallest = 8  # pixels a side

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.layers = torch.device(device), {"scatter": 164}
        self._filters = torch.tensor(_FILTERS, dtype=torch.float32, device=self.device)[:, None] / 16
        recipe = ("scatter 1", _FILTERS, _LAYOUT, _COLOUR, _EDGES, _COLOUR_EDGES, _TEXTURE)
        self.sha256 = hashlib.sha256(repr(recipe).encode()).hexdigest()

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """`scatter` [B, 164], float32, of images uint8 [B, 1 or 3, H, W].

        Raises:
            UserError: the images are smaller than 8 x 8 or have neither 1 nor 3 channels.
        """
        check_images(images, self.smallest)
        parts = [self._features(part.to(self.device)) for part in images.split(_CHUNK)]
        return {"scatter": torch.cat(parts)}

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        u = _opponents(images.float() / 255)
        blocks = [_LAYOUT * _means(u[:, :1], 4), _COLOUR * _means(u[:, 1:], 2)]
        for level in range(3):
            moduli = self._filter(u).abs()
            edges, colour = moduli[:, : len(_FILTERS)], moduli[:, len(_FILTERS) :]
            blocks += [_EDGES[level] * _means(edges, 2), _COLOUR_EDGES[level] * _means(colour, 1)]
            if level < 2:
                blocks.append(_TEXTURE[level] * _means(self._filter(F.avg_pool2d(edges, 2)).abs(), 1))
                u = F.avg_pool2d(u, 2)
        return torch.cat(blocks, 1)

    def _filter(self, x: Tensor) -> Tensor:
        """Every filter on every channel: [B, C, H, W] -> [B, 5 C, H, W], borders repeated."""
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
        return F.conv2d(padded, self._filters).reshape(len(x), x.shape[1] * len(_FILTERS), *x.shape[2:])


def _opponents(x: Tensor) -> Tensor:
    """Brightness, red against green, yellow against blue: [B, 1 or 3, H, W] -> [B, 3, H, W]."""
    red, green, blue = x.expand(-1, 3, -1, -1).unbind(1)
    return torch.stack([(red + green + blue) / 3, (red - green) / 2, (red + green - 2 * blue) / 4], 1)


def _means(x: Tensor, grid: int) -> Tensor:
    """Means over a grid x grid partition, flattened: [B, C * grid^2]."""
    return F.adaptive_avg_pool2d(x, grid).flatten(1)
