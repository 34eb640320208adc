"""From a picture file to pixels, as a person would see it: uint8 RGB [H, W, 3]."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from toolchain.runtime.errors import PictureError

PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".avif",
})  # fmt: skip
# Pillow knows many more, some of which start other programs (EPS) or carry no pictures.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
# What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, AttributeError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_ORIENTATION = 0x0112
_STRIP = 64  # rows
# EXIF 2.32, tag 0x0112: how the stored picture must be turned to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    source: Path | bytes,
    *,
    name: str | None = None,
    max_pixels: int = 100_000_000,
    before: Callable[[int], object] | None = None,
) -> NDArray[np.uint8]:
    """Return the first frame of a picture as RGB, uint8 [H, W, 3], contiguous and writable.

    EXIF orientation is applied; transparency is laid on white; grey is repeated; CMYK is converted.
    16-bit grey is scaled by its type's range (65535 -> 255), never stretched or clipped. Float pictures
    are taken as 0..1, or as 0..255 when they hold values above 1. Colour profiles are ignored.
    before: told how many pixels there will be, before memory is taken for them; what it raises is passed on.

    Raises PictureError naming the file (or `name`): missing, not a picture, damaged, cut short, values
    with no agreed range, or more than `max_pixels` pixels (Pillow's own limit against bombs holds too).
    """
    label = name or (str(source) if isinstance(source, Path) else "picture")
    try:
        with _open(source, label, max_pixels) as image:
            if before is not None:
                before(image.width * image.height)
            image.load()
            # Pillow turns TIFFs itself while loading and drops the tag, so it is read afterwards.
            turn = _UPRIGHT.get(_orientation(image))
            rgb = _rgb(image, label)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise PictureError(f"{label}: more pixels than are allowed; make it smaller ({e})") from e
    except _DAMAGE as e:
        raise PictureError(f"{label}: damaged or cut short, it cannot be decoded ({_reason(e)})") from e
    return np.array(rgb if turn is None else rgb.transpose(turn), dtype=np.uint8, order="C")


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the picture files that `paths` name: files as given, folders searched to the bottom.

    A folder gives its files with a suffix of PICTURE_SUFFIXES in sorted order, hidden ones left out; no file
    comes twice. Raises PictureError for a path that does not exist.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(sorted(_below(path))))
        elif path.exists():
            found[path] = None
        else:
            raise PictureError(f"{path}: no such file or folder")
    return list(found)


def _below(folder: Path) -> Iterator[Path]:
    """Picture files under `folder`, links to folders followed, circles of links not."""
    seen: set[str] = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(at, name)


def _open(source: Path | bytes, label: str, max_pixels: int) -> Image.Image:
    """Open without decoding, so that the size is known before memory is taken for it."""
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    if isinstance(source, Path) and source.exists() and not (source.is_file() or source.is_dir()):
        raise PictureError(f"{label}: cannot be read (it is no plain file)")  # a pipe would be waited for
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except UnidentifiedImageError as e:
        raise PictureError(f"{label}: not a picture of a known format, or cut short in its header") from e
    except FileNotFoundError as e:
        raise PictureError(f"{label}: no such file") from e
    except (PermissionError, IsADirectoryError) as e:
        raise PictureError(f"{label}: cannot be read ({e.strerror})") from e
    if image.width * image.height > max_pixels:
        width, height = image.size
        image.close()
        raise PictureError(
            f"{label}: {width} x {height} pixels are more than the {max_pixels} allowed; make it smaller"
        )
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; unreadable EXIF beside good pixels counts as upright."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return 1


def _rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image), label)).convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic], label: str) -> NDArray[np.uint8]:
    """Grey [H, W] of more than 8 bits, to uint8 by the range that its values are meant in."""
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    limits = (65535.0,) if whole else (1.0, 255.0)
    limit = next((limit for limit in limits if low >= 0 and high <= limit), None)
    if limit is None:  # also when a value is NaN
        agreed = "0..65535" if whole else "0..1 or 0..255"
        raise PictureError(
            f"{label}: grey values {low:g}..{high:g} are outside {agreed}; save it with 8 or 16 bits"
        )
    out = np.empty(values.shape, np.uint8)
    for at in range(0, len(values), _STRIP):  # in strips, for float64 takes eight times the room
        strip = values[at : at + _STRIP].astype(np.float64)
        out[at : at + _STRIP] = np.rint(strip * (255.0 / limit))
    return out


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
