"""Non-leaky augmentation: geometric changes of the clean image that the network is told by labels."""

from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from scoregen.errors import UserError
from scoregen.ranges import Fraction, NonNegative
from scoregen.rng import BatchRng

# Low-pass filter of the orthonormal symlet of 6 vanishing moments (I. Daubechies, Ten Lectures on Wavelets).
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
CENTRE = sum(n * h for n, h in enumerate(SYM6)) / sum(SYM6)


class Augment(Protocol):
    """Changes clean samples and says how; all-zero labels mean unchanged."""

    @property
    def label_dim(self) -> int: ...

    def __call__(self, x0: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """Changed samples [B, *shape] and their labels [B, label_dim]."""
        ...


@dataclass(frozen=True)
class NoAugment:
    """Leaves samples as they are: no labels."""

    label_dim: ClassVar[int] = 0

    def __call__(self, x0: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """The same samples and labels [B, 0]."""
        return x0, x0.new_zeros(len(x0), 0)


class Change(NamedTuple):
    """What happens to each image; 0 where the operation does not fire."""

    flip: Tensor  # [B, 2], 0 or 1: left-right, up-down
    scale: Tensor  # [B], w
    theta: Tensor  # [B]
    aniso: Tensor  # [B], w
    axis: Tensor  # [B], r
    shift: Tensor  # [B, 2], w right and down

    def labels(self) -> Tensor:
        """The 9 labels [B, 9]; w along r and -w along r + pi share theirs, as in the source."""
        return torch.stack(
            [
                *self.flip.unbind(1),
                self.scale,
                *(self.theta.cos() - 1, self.theta.sin()),
                *(self.aniso * self.axis.cos(), self.aniso * self.axis.sin()),
                *self.shift.unbind(1),
            ],
            1,
        )


@dataclass(frozen=True)
class AugmentPipe:
    """Flips, scales, rotates, stretches and shifts images, each with probability min(p * multiplier, 1).

        operation        what it does                                       labels
        x-flip, y-flip   b ~ fair coin                                      b, b
        scale            by 2^(scale_std w), w ~ N(0, 1)                    w
        rotate_frac      by theta ~ U(-pi, pi) rotate_frac_max,             cos theta - 1, sin theta
                         counter-clockwise
        aniso            by 2^(aniso_std w) along the axis at angle r       w cos r, w sin r
                         and its inverse across; r ~ U(-pi, pi) with
                         probability aniso_rotate_prob, else 0
        translate_frac   by translate_frac_std w size, right and down,      w_x, w_y
                         w ~ N(0, 1)^2

    An operation that does not fire has labels 0, and images to which no geometric operation happens stay
    exactly as they are but for flips. A multiplier of 1e8 fires always. The geometric operations are one
    affine `warp`. Images x0 are [B, C, H, W]; anything else raises UserError.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, T. Karras, M. Aittala, T. Aila,
    S. Laine, 2022, arXiv 2206.00364, and its code, in which the axis r is random with probability 0.5 (the
    paper's table is remembered as always random). Own choices: padding is always a full reflection, so that
    an image does not depend on its neighbours in the batch and nothing waits for the device; the centre of
    the filter is its centre of mass, which makes affine images exact (its support's middle lies 0.2 pixels
    beside it).
    """

    p: Fraction = 0.12
    xflip: NonNegative = 1e8
    yflip: NonNegative = 1.0
    scale: NonNegative = 1.0
    rotate_frac: NonNegative = 1.0
    aniso: NonNegative = 1.0
    translate_frac: NonNegative = 1.0
    scale_std: NonNegative = 0.2
    rotate_frac_max: Fraction = 1.0
    aniso_std: NonNegative = 0.2
    aniso_rotate_prob: Fraction = 0.5
    translate_frac_std: NonNegative = 0.125

    label_dim: ClassVar[int] = 9

    def __call__(self, x0: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """Changed images [B, C, H, W] and their labels [B, 9]."""
        if x0.ndim != 4:
            raise UserError(
                f"augment=edm is for images, not for samples of shape {tuple(x0.shape[1:])}: use augment=none"
            )
        change = self.draw(rng)
        x = torch.where(change.flip[:, 0, None, None, None] == 1, x0.flip(3), x0)
        x = torch.where(change.flip[:, 1, None, None, None] == 1, x.flip(2), x)
        labels = change.labels().to(x0)
        if self.p * (self.scale + self.rotate_frac + self.aniso + self.translate_frac) == 0:
            return x, labels
        moved = (labels[:, 2:] != 0).any(1)
        warped = warp(x, self.inverse(change, width=x.shape[3], height=x.shape[2]).to(x0))
        return torch.where(moved[:, None, None, None], warped, x), labels

    def draw(self, rng: BatchRng) -> Change:
        """Draw what happens: the whole randomness of the pipe, by the same calls whatever fires."""
        u, w = rng.rand(11), rng.randn(4)
        multipliers = (self.xflip, self.yflip, self.scale, self.rotate_frac, self.aniso, self.translate_frac)
        fires = [column < self.p * multiplier for column, multiplier in zip(u.T, multipliers, strict=False)]
        theta = (2 * u[:, 8] - 1) * (pi * self.rotate_frac_max)
        axis = torch.where(u[:, 9] < self.aniso_rotate_prob, (2 * u[:, 10] - 1) * pi, 0.0)
        return Change(
            flip=(torch.stack(fires[:2], 1) & (u[:, 6:8] < 0.5)).to(u),
            scale=torch.where(fires[2], w[:, 0], 0.0),
            theta=torch.where(fires[3], theta, 0.0),
            aniso=torch.where(fires[4], w[:, 1], 0.0),
            axis=torch.where(fires[4], axis, 0.0),
            shift=torch.where(fires[5][:, None], w[:, 2:], 0.0),
        )

    def inverse(self, change: Change, *, width: int, height: int) -> Tensor:
        """The map [B, 2, 3] from places (right, down, 1) of the changed image to places of the original.

        inverse = S^-1 R(theta) A^-1 T^-1: the image is scaled first and shifted last.
        """
        scale = torch.exp2(-self.scale_std * change.scale)[:, None, None]
        stretch = torch.exp2(-self.aniso_std * change.aniso)
        aniso = _rotation(-change.axis) @ torch.diag_embed(torch.stack([stretch, 1 / stretch], 1))
        linear = scale * _rotation(change.theta) @ aniso @ _rotation(change.axis)
        right, down = (change.shift * self.translate_frac_std).unbind(1)
        shift = torch.stack([width * right, height * down], 1)
        return torch.cat([linear, -linear @ shift[:, :, None]], 2)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def warp(x: Tensor, inverse: Tensor) -> Tensor:
    """Resample images, x'(p) = x(inverse p), x [B, C, H, W], inverse [B, 2, 3].

    Places are p = (right, down, 1), in pixels from the centre.
    Reflected outwards, upsampled 2x by sym6, sampled bilinearly, downsampled by the same filter. The filter
    is orthonormal and reproduces polynomials, so shifts by whole pixels and affine images come out exact away
    from the border.
    """
    height, width = x.shape[2:]
    (up_y, down_y), (up_x, down_x) = _filters(height, x.device, x.dtype), _filters(width, x.device, x.dtype)
    fine = up_y @ x @ up_x.T
    grid = _places(inverse, height, width)
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return down_y @ moved @ down_x.T


def _places(inverse: Tensor, height: int, width: int) -> Tensor:
    """Places of the changed image's fine grid in that of the padded original, [B, Y, X, 2] in [-1, 1]."""
    targets = _targets(height, width, inverse.device, inverse.dtype)
    places = torch.einsum("bij,yxj->byxi", inverse, targets)
    right, down = (_to_unit(places[..., i], n) for i, n in enumerate((width, height)))
    return torch.stack([right, down], -1)


def _to_unit(place: Tensor, n: int) -> Tensor:
    """From pixels off the centre to grid_sample's [-1, 1] on the padded and upsampled axis."""
    fine = 2 * (place + (n - 1) / 2 + _padding(n)) + CENTRE
    return 2 * fine / (2 * (n + 2 * _padding(n)) + 9) - 1


def _padding(n: int) -> int:
    return n - 1


@lru_cache(maxsize=16)
def _targets(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Places (right, down, 1) of the fine grid of the changed image, [Y, X, 3]."""
    sizes = (width, height)
    right, down = ((torch.arange(2 * n + 10, dtype=dtype) - CENTRE) / 2 - (n - 1) / 2 for n in sizes)
    down, right = torch.meshgrid(down, right, indexing="ij")
    return torch.stack([right, down, torch.ones_like(right)], -1).to(device)


@lru_cache(maxsize=16)
def _filters(n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Matrices of 2x synthesis with reflection, [2 (3n - 2) + 10, n], and of analysis, [n, 2n + 10]."""
    taps, period = torch.tensor(SYM6, dtype=torch.float64), 2 * max(n - 1, 1)
    padded = 3 * n - 2
    up = torch.zeros(2 * padded + 10, n, dtype=torch.float64)
    down = torch.zeros(n, 2 * n + 10, dtype=torch.float64)
    for k in range(padded):
        q = (k - (n - 1)) % period
        up[2 * k : 2 * k + 12, min(q, period - q)] += taps
    for k in range(n):
        down[k, 2 * k : 2 * k + 12] = taps
    return up.to(device, dtype), down.to(device, dtype)
