"""Image files: check and decode them, and what turns an image into a network's input. No torch here.

Shapes: B batch, C channels, H height, W width.
"""

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from odn.errors import OdnError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]


class Stored(Protocol):
    """An image file inside of a larger one; its text names both."""

    def read_bytes(self) -> bytes:
        """Return the encoded image."""


ImageFile = Path | Stored
Fault = Literal["unknown", "damaged", "too large"]
_ORIENTATION = 0x0112  # an EXIF tag
_IMAGE_WIDTH, _IMAGE_LENGTH = 256, 257
_MASK_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})
_GRAY_MODES = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L"})


class BadImage(OdnError):
    """A file that does not hold a readable image.

    Attributes:
        path: the file.
        reason: what is wrong with it.
        fault: its kind.
    """

    def __init__(self, path: ImageFile, reason: object, fault: Fault = "damaged") -> None:
        super().__init__(f"{path} is not a readable image ({reason}); replace or remove it")
        self.path, self.reason, self.fault = path, str(reason), fault

    def __reduce__(self) -> tuple[type["BadImage"], tuple[ImageFile, str, Fault]]:
        """Say how to rebuild the error: workers that decode hand it over to the process that trains."""
        return BadImage, (self.path, self.reason, self.fault)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What turns an image into a network's input.

    Attributes:
        input_shape: channels (1 is grayscale, 3 is RGB), height and width; other sizes are resized bilinearly.
        mean: per channel, of the training split's pixels scaled to [0, 1].
        std: likewise the standard deviation.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        channels = self.input_shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise UsageError(
                f"{len(self.mean)} means and {len(self.std)} deviations; allowed: {channels}, one per channel"
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < std < math.inf for std in self.std):
            raise UsageError(f"mean {self.mean} and std {self.std}; allowed: finite numbers, deviations above 0")

    def prepare(self, images_BCHW: "Tensor") -> "Tensor":
        """Turn decoded images into a network's input.

        Args:
            images_BCHW: uint8, shape (B, C, H, W).

        Returns:
            Normalised float32 images, same shape.
        """
        return self.normalise(images_BCHW.float() / 255)

    def noise(self, count: int) -> Pixels:
        """Make inputs that cost what real ones cost.

        Args:
            count: how many.

        Returns:
            Random images, uint8 of shape (count, C, H, W).
        """
        return np.random.default_rng(0).integers(0, 256, (count, *self.input_shape), dtype=np.uint8)

    def normalise(self, x_BCHW: "Tensor") -> "Tensor":
        """Scale images by the training split's statistics.

        Args:
            x_BCHW: images in [0, 1], shape (B, C, H, W); anything else with channels second does as well.

        Returns:
            Images of about zero mean and unit variance, same shape.
        """
        per_channel = (-1, *[1] * (x_BCHW.ndim - 2))
        mean, std = (x_BCHW.new_tensor(values).view(per_channel) for values in (self.mean, self.std))
        return (x_BCHW - mean) / std


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
def _opened(
    path: ImageFile, content: IO[bytes] | None = None, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    bombs = (Image.DecompressionBombWarning, Image.DecompressionBombError)
    try:
        source = path if isinstance(path, Path) else io.BytesIO(path.read_bytes()) if content is None else content
        with Image.open(content or source, formats=formats) as image:
            yield image
    except UnidentifiedImageError as error:
        raise BadImage(path, "no known image format", "unknown") from error
    except bombs as error:
        raise BadImage(path, _reason(error), "too large") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise BadImage(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def image_facts(path: ImageFile) -> tuple[int, int, bool]:
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
        exif = image.getexif()
        if image.format == "TIFF":  # whose size is that of the file in some versions of Pillow, as displayed in others
            width, height = exif[_IMAGE_WIDTH], exif[_IMAGE_LENGTH]
        sideways = exif.get(_ORIENTATION) in (5, 6, 7, 8)
        gray = image.mode in _GRAY_MODES
    return (width, height, gray) if sideways else (height, width, gray)


def decode_mask(path: Path, size: tuple[int, int] | None = None) -> npt.NDArray[np.int32]:
    """Decode a file whose pixels are labels, not colours.

    Args:
        path: gray, black and white, or with a palette, whose indices count.
        size: height and width to resize to, taking the nearest pixel; None keeps the file's own.

    Returns:
        The label of every pixel, shape (H, W).

    Raises:
        BadImage: when the file is not an image, or its pixels are colours.
    """
    with _opened(path) as image:
        if image.mode not in _MASK_MODES:
            raise BadImage(path, f"{image.mode} colours; allowed for a mask: a label per pixel, gray or with a palette")
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        labels = np.asarray(image).astype(np.int32)
    if size is not None and labels.shape != size:
        labels = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    return labels


def decode(
    path: ImageFile,
    shape: tuple[int, int, int],
    *,
    content: IO[bytes] | None = None,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
) -> Pixels:
    """Decode an image file to the shape a network expects.

    Args:
        path: the file.
        shape: channels (1 or 3), height and width; images of another size are resized. Transparent ones are laid on
            white; of animated ones the first picture counts; 16-bit samples lose their lower 8 bits.
        content: what to read instead of the file; ``path`` is then a name for messages.
        formats: the only ones to try, by Pillow's names; None tries all.
        max_pixels: refuse larger images by their header; None leaves it to Pillow's own limit.

    Returns:
        uint8 array of that shape.

    Raises:
        BadImage: when the file is not an image, is cut short, or has too many pixels.
    """
    channels, height, width = shape
    with _opened(path, content, formats) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            pixels = f"{image.width}x{image.height} pixels, allowed: {max_pixels:,} in all"
            raise BadImage(path, pixels, "too large")
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data and not image.mode.startswith("I"):
            # What lies under transparent pixels is any colour, mostly black; viewers show them on white.
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode == "F":
            raise BadImage(path, "floating-point samples, whose range no file says; convert it to 8 or 16 bits")
        if image.mode.startswith("I"):
            # Pillow clips 16-bit samples when it converts them; keep their upper 8 bits instead.
            samples = np.asarray(image).astype(np.int64)
            if samples.size and not 0 <= samples.min() <= samples.max() <= 65535:
                raise BadImage(path, f"samples from {samples.min()} to {samples.max()}; allowed: 16 bits")
            image = Image.fromarray((samples >> 8).astype(np.uint8))
        mode = "L" if channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        array: Pixels = np.array(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))
