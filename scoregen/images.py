"""Images as uint8 tensors: quantisation, grids, PNG files, and pictures of 2-D points. Pillow only."""

from collections.abc import Mapping
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path

import torch
from torch import Tensor

from scoregen.errors import UserError

_TILE_MIN = 32  # pixels: smaller images are enlarged in a grid, so that they can be looked at


def to_uint8(x: Tensor) -> Tensor:
    """trunc(clip(127.5 x + 128, 0, 255)), uint8: from the model's range [-1, 1] to pixels."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def make_grid(images: Tensor, columns: int | None = None, padding: int = 2) -> Tensor:
    """Lay images uint8 [N, C, H, W], N > 0, out row by row on white: uint8 [C, H', W'].

    Images lower than 32 pixels are enlarged by a whole factor first. The default is a square grid. Channels
    that make no picture, other than 1 or 3, lie side by side in grey.
    """
    if images.shape[1] not in (1, 3):
        images = images.transpose(1, 2).flatten(2)[:, None]
    scale = max(_TILE_MIN // images.shape[2], 1)
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    count, channels, height, width = images.shape
    columns = min(columns or ceil(sqrt(count)), count)
    rows = ceil(count / columns)
    tiles = images.new_full((rows * columns, channels, height + padding, width + padding), 255)
    tiles[:count, :, padding:, padding:] = images
    tiles = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)  # [C, rows, H, columns, W]
    grid = tiles.flatten(3, 4).flatten(1, 2)
    return torch.nn.functional.pad(grid, (0, padding, 0, padding), value=255)


def save_png(image: Tensor, path: str | Path) -> None:
    """Write a uint8 image [C, H, W] as PNG and make its folder; UserError unless C is 1 or 3."""
    data = to_png(image)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def to_png(image: Tensor, text: Mapping[str, str] | None = None) -> bytes:
    """The PNG file of a uint8 image [C, H, W], with text fields; UserError unless C is 1 or 3."""
    from PIL import Image, PngImagePlugin

    if image.shape[0] not in (1, 3):
        raise UserError(f"a PNG has 1 or 3 channels, this image has {image.shape[0]}")
    notes = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        notes.add_text(key, value)
    pixels, file = image.permute(1, 2, 0).cpu().numpy(), BytesIO()
    Image.fromarray(pixels[:, :, 0] if image.shape[0] == 1 else pixels).save(
        file, format="PNG", pnginfo=notes
    )
    return file.getvalue()


def scatter(points: Tensor, *, size: int = 512, extent: float | None = None) -> Tensor:
    """Picture 2-D points [N, 2] of [-extent, extent]^2, y upwards, dark on white: uint8 [1, size, size].

    The default extent holds all finite points. Darkness saturates like 1 - exp(-n) in the number n of points
    of a pixel.
    """
    points = points.double().cpu()
    points = points[points.isfinite().all(1)]
    if extent is None:
        extent = float(points.abs().max()) * 1.05 if len(points) else 1.0
    points = points[(points.abs() < extent).all(1)]
    column, row = ((points * torch.tensor([1.0, -1.0]) / extent + 1) / 2 * size).long().unbind(1)
    count = torch.bincount(row.clamp(0, size - 1) * size + column.clamp(0, size - 1), minlength=size * size)
    return (255 * (-count.float()).exp()).round().to(torch.uint8).reshape(1, size, size)


def picture(x: Tensor, columns: int | None = None) -> Tensor:
    """What samples [N, *shape] of the model look like.

    Images are laid out in a grid, of vectors the first two axes are plotted, of sound [N, 1, T] spectrograms.
    """
    if x.ndim == 3:
        return make_grid(spectrograms(x.cpu()), columns)
    if x.ndim == 2:
        return scatter(torch.nn.functional.pad(x, (0, max(2 - x.shape[1], 0)))[:, :2])
    return make_grid(to_uint8(x.cpu()), columns)


def spectrograms(x: Tensor, *, n_fft: int = 256, decibels: float = 80.0) -> Tensor:
    """Picture sound [N, 1, T], time to the right and frequency upwards: uint8 [N, 1, n_fft / 2, 8 T / n_fft].

    White is the loudest of all, black is `decibels` below it and less.
    """
    window = torch.hann_window(n_fft, dtype=x.dtype)
    hop = n_fft // 8
    spectrum = torch.stft(x[:, 0], n_fft, hop, window=window, return_complex=True).abs()
    level = 20 * (spectrum / spectrum.max().clamp(min=1e-9)).clamp(min=1e-9).log10()
    shade = (255 * (1 + level / decibels)).clamp(0, 255).to(torch.uint8)
    return shade[:, None, 1:, : x.shape[-1] // hop].flip(2)
