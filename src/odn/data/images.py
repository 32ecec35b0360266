"""Image files: find, check and decode them."""

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from odn.errors import OdnError

_GRAY_MODES = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L"})


class BadImage(OdnError):
    """A file that does not hold a readable image.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"{path} is not a readable image ({reason}); replace or remove it")
        self.path, self.reason = path, str(reason)

    def __reduce__(self) -> tuple[type["BadImage"], tuple[Path, str]]:
        """Say how to rebuild the error: workers that decode hand it over to the process that trains."""
        return BadImage, (self.path, self.reason)


@contextlib.contextmanager
def image_warnings() -> Iterator[None]:
    """Turn Pillow's warning of decompression bombs into an error and silence those about metadata.

    Filters of warnings belong to the process, not to a thread: enter this around threads that decode, not in them.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    bombs = (Image.DecompressionBombWarning, Image.DecompressionBombError)
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, *bombs) as error:
        raise BadImage(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def image_facts(path: Path) -> tuple[int, int, bool]:
    """Read the size and kind of an image from its header, without decoding it.

    Args:
        path: the file.

    Returns:
        Height and width in pixels as displayed, and whether it is grayscale.

    Raises:
        BadImage: when the file cannot be opened as an image.
    """
    with _opened(path) as image:
        width, height = image.size
        sideways = image.getexif().get(0x0112) in (5, 6, 7, 8)
        gray = image.mode in _GRAY_MODES
    return (width, height, gray) if sideways else (height, width, gray)


def decode(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Decode an image file to the shape a network expects.

    Args:
        path: the file.
        shape: channels (1 or 3), height and width; images of another size are resized.

    Returns:
        uint8 tensor of that shape.

    Raises:
        BadImage: when the file is not an image or is cut short.
    """
    channels, height, width = shape
    with _opened(path) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            # Pillow clips 16-bit samples when it converts them; keep their upper 8 bits instead.
            samples = np.asarray(image).astype(np.int64).clip(0, 65535)
            image = Image.fromarray((samples >> 8).astype(np.uint8))
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
