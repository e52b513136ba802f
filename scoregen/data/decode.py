"""From the bytes of an image file to pixels."""

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from scoregen.errors import UserError
from scoregen.ranges import PositiveInt

if TYPE_CHECKING:
    from PIL.Image import Image

PREPARE = "python -m scoregen.data.prepare SRC --out OUT.zip"
Crop = Literal["center"]
Mode = Literal["L", "RGB"]


@dataclass(frozen=True)
class Fit:
    """Makes images equal: colours, then the middle square, then the size.

    Args:
        resolution: resize to N x N (Lanczos); None keeps the size.
        crop: "center" cuts to the middle square first.
        mode: "L" is grey; "RGB" has 3 channels, transparency on white; None keeps them.
    """

    resolution: PositiveInt | None = None
    crop: Crop | None = None
    mode: Mode | None = None

    def __call__(self, image: "Image", where: str) -> "Image":
        """The image made to fit; UserError, naming `where`, for one to be resized that is not square."""
        from PIL import Image

        if self.mode is not None:
            image = _on_white(image).convert(self.mode)
        width, height = image.size
        if self.crop == "center":
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if self.resolution is None:
            return image
        if image.width != image.height:
            raise UserError(
                f"{where} is {width} x {height}, not square: cut it with data.crop=center, in "
                "prepare with --crop center"
            )
        size = (self.resolution, self.resolution)
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


AS_THEY_ARE = Fit()


def _on_white(image: "Image") -> "Image":
    from PIL import Image

    if image.mode not in ("LA", "RGBA"):
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def open_image(data: bytes, where: str) -> "Image":
    """Decode an image file of any Pillow format to mode L, RGB, LA or RGBA (8 bits), upright by its EXIF tag.

    Raises UserError, naming `where`, if it cannot be read or has more than 8 bits a channel.
    """
    from PIL import ImageOps

    try:
        with _identify(data, where) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except Exception as error:  # decoders raise many kinds on damaged files; all of them mean the same here
        raise UserError(f"{where} is not a readable image ({error}): repair or remove it") from error
    if image.mode in ("L", "RGB", "LA", "RGBA"):
        return image
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{where} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _identify(data: bytes, where: str) -> "Image":
    """Open by the format of the extension, else by any: trying all costs more than decoding a small image."""
    from PIL import Image, UnidentifiedImageError

    hint = Image.registered_extensions().get(os.path.splitext(where)[1].lower())
    try:
        return Image.open(io.BytesIO(data), formats=[hint] if hint else None)
    except UnidentifiedImageError:
        pass
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"{len(data):,} bytes of no known image format") from error


def pixels(image: "Image", where: str) -> np.ndarray:
    """The pixels of a grey or RGB image, uint8 [C, H, W]; a wholly opaque alpha channel is dropped.

    Raises UserError for transparency.
    """
    if image.mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema() != (255, 255):
            channels = len(image.getbands())
            raise UserError(
                f"{where} has {channels} channels (transparency), 1 or 3 are expected: data.mode=RGB, in "
                "prepare --rgb, puts transparent images on white"
            )
        image = image.convert(image.mode[:-1])
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def describe(shape: tuple[int, ...]) -> str:
    """A shape in words, channels x height x width."""
    return " x ".join(map(str, shape))
