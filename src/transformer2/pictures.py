"""Pictures by reference: a question carries where its pictures are, never their pixels.

A reference is small and picklable, so it goes wherever a question goes: into batches, other processes, records. Pillow
reads the pixels when a model is about to see them (vision/), and every picture of a split is looked at before training.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer2.errors import DataError, one_line, shown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "PictureBytes", "PictureFile", "PictureInTable", "check_names"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # others lose or invert values as RGB
MIN_SIDE, MAX_SIDE, MAX_PIXELS, MAX_RATIO = 4, 16_384, 89_478_485, 100  # Pillow warns of a bomb beyond so many pixels
MAX_BYTES = 128 * 2**20
MISNAMED = re.compile(r"images|image_url|pictures?|(image|img|picture|pic|photo)[ _-]?\d+", re.I)  # `image` or not
LIKELY = re.compile(
    r"((input|query|question|base64|b64)[ _-]?)?(image|img|picture|pic|photo)s?"
    r"([ _-]?(path|file|name|url|uri|base64|b64|bytes|data|\d))*s?",
    re.I,
)
FILE = re.compile(r"file[ _-]?(name|path)?", re.I)  # of a picture, by what it names
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ORIENTATION = 0x0112  # of EXIF, 1 to 8
_TURNS = {
    **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM"},
    **{5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
}
_reading = threading.Lock()  # Arrow's readers are no business of several threads; pictures are decoded outside it


class Picture(ABC):
    """A reference to one picture."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @abstractmethod
    def data(self) -> bytes:
        """The encoded picture.

        Raises:
            DataError: It is not there.
        """

    def open(self) -> Image:
        """The pixels as RGB, upright; what is transparent stands on white.

        Raises:
            DataError: Missing, broken, truncated, animated, of an odd kind or size; the message names it.
        """
        with self._readable() as image:
            return _upright(image)

    def check(self) -> None:
        """Read every byte of it, at the least size at which it decodes; errors as of `open`."""
        with self._readable() as image:
            image.draft("RGB", (1, 1))  # a JPEG decodes at an eighth of its size; others as they are
            _upright(image)

    def size(self) -> tuple[int, int]:
        """(width, height), upright, from the header alone; errors as of `open` but for what the header does not say."""
        with self._readable() as image:
            return image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size

    def digest(self) -> str:
        """Of its content: the same for the same picture, wherever it lies."""
        return blake2b(self.data(), digest_size=16).hexdigest()

    @contextmanager
    def _readable(self) -> Iterator[Image]:
        """The picture before it is decoded; whatever Pillow says of it, in one line."""
        from PIL import Image

        data = self.data()
        Image.init()  # else it does not know the name of every format
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                self._check_header(image)
                yield image
        except DataError:
            raise
        except Image.DecompressionBombError as e:
            raise DataError(
                f"picture {self.name} has more than {MAX_PIXELS / 1e6:.0f} million pixels; scale it down"
            ) from e
        except Exception as e:  # Pillow's plugins raise whatever they come across
            known = type(e).__name__ != "UnidentifiedImageError"
            what = f"broken ({one_line(e, 80)})" if known else "no picture of a known kind"
            raise DataError(f"picture {self.name} is {what}; give a whole JPEG, PNG or WebP file") from e

    def _check_header(self, image: Image) -> None:
        width, height = image.size
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's second view
            raise DataError(f"picture {self.name} is animated or has several pages; save the one that is meant")
        if image.mode not in MODES:
            raise DataError(f"picture {self.name} is stored as {image.mode}; save it as 8-bit RGB")
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise DataError(
                f"picture {self.name} has {width} x {height} pixels, more than {MAX_SIDE} a side or "
                f"{MAX_PIXELS / 1e6:.0f} million; scale it down"
            )
        if min(width, height) < MIN_SIDE or max(width, height) > MAX_RATIO * min(width, height):
            raise DataError(
                f"picture {self.name} has {width} x {height} pixels, too few or too narrow to be seen; give a "
                "larger one"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Its fields alone: what a process keeps of a picture (vision/tokens.py) is nobody else's."""
        return {name: value for name, value in self.__dict__.items() if name != "_blocks"}


def _upright(image: Image) -> Image:
    """An opened picture as RGB; turned by its tag alone, since a whole block of EXIF may be odd."""
    from PIL import Image as images

    turn = _TURNS.get(_orientation(image))
    image.load()
    upright: Image = image if turn is None else image.transpose(images.Transpose[turn])
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = images.alpha_composite(images.new("RGBA", layer.size, "white"), layer)
    return upright.convert("RGB")


def _orientation(image: Image) -> int:
    """EXIF's orientation of an opened picture, read before its pixels; 1 for TIFF files, which Pillow turns itself."""
    from PIL import Image as images

    try:  # Not PNG's own getexif, which decodes the pixels to look for a tag behind them.
        return 1 if image.format == "TIFF" else images.Image.getexif(image).get(ORIENTATION, 1)
    except Exception:  # no EXIF; Pillow raises whatever it comes across, and other programs show the picture
        return 1


@dataclass(frozen=True)
class PictureFile(Picture):
    """A file.

    Attributes:
        path: Where it is.
    """

    path: str

    @property
    def name(self) -> str:
        """Its path, in characters that any file and terminal takes."""
        return shown(self.path, 4096)

    def data(self) -> bytes:
        """See `Picture.data`."""
        name = shown(self.path)
        try:
            status = Path(self.path).stat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a device may never end
                raise DataError(f"picture {name} is no regular file; copy the picture there")
            if (size := status.st_size) > MAX_BYTES:
                raise DataError(f"picture {name} has {size >> 20} MiB, more than {MAX_BYTES >> 20}; scale it down")
            return Path(self.path).read_bytes()
        except (OSError, ValueError) as e:  # a null byte, or half a character
            if isinstance(e, DataError):
                raise
            raise DataError(f"picture {name} cannot be read ({getattr(e, 'strerror', None) or e}); put it there") from e


@dataclass(frozen=True)
class PictureBytes(Picture):
    """A picture that came with a request.

    Attributes:
        content: The encoded picture.
        name: What messages call it.
    """

    content: bytes = field(repr=False)
    name: str = "of the request"

    def data(self) -> bytes:
        """See `Picture.data`."""
        return self.content


@dataclass(frozen=True)
class PictureInTable(Picture):
    """A cell of a Parquet or Arrow file with an encoded picture: bytes, a path, or `{"bytes", "path"}` as the Hub's.

    Attributes:
        file: The file.
        row: Its row in it, from 0.
        column: The column.
    """

    file: str
    row: int
    column: str

    @property
    def name(self) -> str:
        """File, row and column."""
        return f"{self.file}, row {self.row}, {self.column}"

    def cell(self) -> bytes | str | None:
        """The encoded picture, or the path of its file; None where the row has none.

        Raises:
            DataError: The table cannot be read, or the row has several.
        """
        try:
            with _reading:
                cell = _cell(self.file, self.row, self.column)
        except Exception as e:  # Arrow's errors share no class with each other
            raise DataError(f"picture {self.name} cannot be read ({' '.join(str(e).split())[:80]})") from e
        if isinstance(cell, list) and len(cell) > 1:
            raise DataError(
                f"picture {self.name} is {len(cell)} pictures, and a row has one; keep one, or drop the row"
            )
        cell = next(iter(cell), None) if isinstance(cell, list) else cell
        return (cell.get("bytes") or cell.get("path") or None) if isinstance(cell, dict) else cell

    def data(self) -> bytes:
        """See `Picture.data`."""
        found = self.cell()
        if isinstance(found, str) and found.strip():
            return PictureFile(str(Path(self.file).parent / os.path.expanduser(found))).data()
        if not isinstance(found, bytes) or not found:
            raise DataError(f"picture {self.name} is not there; drop the row")
        return found


def check_names(row: Mapping[str, Any], remedy: str = "name it 'image', which takes a path or a list") -> None:
    """Refuse a row whose pictures stand where nobody looks: an answer without what they show would look right.

    Raises:
        DataError: It has such a column, which is named, with the remedy.
    """
    for name, value in row.items():
        if isinstance(value, Mapping) and not any(value.values()):  # the Hub's way to say that there is none
            continue
        likely = LIKELY.fullmatch(str(name)) or (FILE.fullmatch(str(name)) and str(value).lower().endswith(SUFFIXES))
        if value and (MISNAMED.fullmatch(str(name)) or (likely and not row.get("image"))):
            raise DataError(f"{shown(repr(name), 40)} is not read; {remedy}, or leave it out")


def _cell(file: str, row: int, column: str) -> Any:
    if file.lower().endswith(".arrow"):
        return _arrow_column(file, column)[row].as_py()
    starts = _row_groups(file)
    group = max(g for g, start in enumerate(starts) if start <= row)
    return _parquet_column(file, group, column)[row - starts[group]].as_py()


@lru_cache(maxsize=64)
def _arrow_column(file: str, column: str) -> Any:
    return read_arrow(file)[column]


def read_arrow(file: str) -> Any:
    """The table in an Arrow file, mapped and not read: a stream, as `save_to_disk` writes it, or of the file format."""
    arrow: Any = importlib.import_module("pyarrow")
    source = arrow.memory_map(file)
    start = source.read(6)
    source.seek(0)
    return (arrow.ipc.open_file if start == b"ARROW1" else arrow.ipc.open_stream)(source).read_all()


@lru_cache(maxsize=64)
def _row_groups(file: str) -> list[int]:
    """The first row of each row group."""
    metadata = _parquet(file).metadata
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return [sum(counts[:i]) for i in range(len(counts))]


@lru_cache(maxsize=4)  # whole row groups, of some ten to a hundred pictures each
def _parquet_column(file: str, group: int, column: str) -> Any:
    return _parquet(file).read_row_group(group, columns=[column])[column]


@lru_cache(maxsize=64)
def _parquet(file: str) -> Any:
    return importlib.import_module("pyarrow.parquet").ParquetFile(file)
