"""From the bytes of an image file to pixels."""

import io
import os
from typing import TYPE_CHECKING

import numpy as np

from scoregen.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

PREPARE = "python -m scoregen.data.prepare SRC --out OUT.zip"


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
                f"{where} has {channels} channels (transparency), 1 or 3 are expected: {PREPARE} --rgb puts "
                "transparent images on white"
            )
        image = image.convert(image.mode[:-1])
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def describe(shape: tuple[int, ...]) -> str:
    """A shape in words, channels x height x width."""
    return " x ".join(map(str, shape))
