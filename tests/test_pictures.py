"""Pictures by reference: what is read of one, by how many threads, and what is refused before anybody sees it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from transformer2.errors import DataError
from transformer2.pictures import Picture, PictureBytes, PictureFile, PictureInTable, check_names


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corner(width: int = 48, height: int = 32) -> Image.Image:
    """Black, with a red upper left quarter."""
    image = Image.new("RGB", (width, height))
    image.paste("red", (0, 0, width // 2, height // 2))
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("tag", "red"), [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (6, (1, 0)), (8, (0, 1))])
def test_a_picture_is_upright_and_its_size_is_known_from_its_header(kind: str, tag: int, red: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    picture = PictureBytes(encoded(corner(), kind, exif=exif))
    picture.check()
    image = picture.open()
    assert picture.size() == image.size == ((32, 48) if tag > 4 else (48, 32))
    for x in (0, 1):
        for y in (0, 1):
            r, g, b = image.getpixel(
                (image.width // 4 + x * image.width // 2, image.height // 4 + y * image.height // 2)
            )
            assert (r > 200) == ((x, y) == red) and g < 60 and b < 60


def test_odd_tags_beside_the_orientation_do_no_harm() -> None:
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(
        "<HHI4s", 0x011A, 2, 4, b"abc"
    )  # a worded resolution
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", 0)
    picture = PictureBytes(encoded(corner(), "JPEG", exif=exif))
    picture.check()
    assert picture.open().size == picture.size() == (32, 48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"no EXIF at all", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_tags_that_are_none_do_no_harm(kind: str, exif: bytes) -> None:
    picture = PictureBytes(encoded(corner(), kind, exif=exif))
    picture.check()
    assert picture.open().size == picture.size() == (48, 32)


@pytest.mark.parametrize("path", ["a\0b.png", "\ud800.png", "x" * 5000])
def test_a_path_that_is_none_is_refused_in_a_short_line(path: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(.*\); put it there$") as refused:
        PictureFile(path).check()
    assert len(str(refused.value)) < 400 and str(refused.value).isprintable()


def test_a_name_can_be_written_whatever_the_path(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"sm\xf8rrebr\xf8d.png")
    corner().save(path)
    for picture in (PictureFile(str(path)), PictureFile(path)):  # type: ignore[arg-type]
        assert picture.open().size == (48, 32)
        assert json.dumps(picture.name, ensure_ascii=False).encode().endswith(b'rrebr\\\\udcf8d.png"')


def test_other_columns_are_no_pictures() -> None:
    names = {"image_id": "7.png", "image_width": 640, "file_name": "notes.txt", "picturesque": "yes", "source": "a.png"}
    check_names(names)
    check_names({"image": "a.png", "image_path": "/other/a.png"})
    check_names(dict.fromkeys(["images", "image_1"]))
    check_names({"image" + 5000 * "1" + "x": "a.png"})


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_that_is_let_in_is_read(mode: str) -> None:
    picture = PictureBytes(encoded(Image.new(mode, (20, 10)), "PNG"))
    picture.check()
    assert picture.open().mode == "RGB" and picture.open().getpixel((3, 3)) in ((0, 0, 0), (255, 255, 255))


def test_what_is_transparent_stands_on_white() -> None:
    assert PictureBytes(encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "PNG")).open().getpixel((4, 4)) == (255,) * 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no picture of a known kind; give a whole JPEG, PNG or WebP file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no picture of a known kind"),
        (encoded(corner(), "PNG")[:50], "is broken"),
        (encoded(corner(300, 200), "JPEG")[:-300], "is broken"),
        (encoded(Image.new("I;16", (9, 9)), "PNG"), "is stored as I;16; save it as 8-bit RGB"),
        (encoded(Image.new("L", (401, 4)), "PNG"), "has 401 x 4 pixels, too few or too narrow"),
    ],
)
def test_what_is_refused_is_refused_by_check_and_by_open(data: bytes, said: str) -> None:
    for read in (Picture.check, Picture.open):
        with pytest.raises(DataError, match="picture of the request ") as refused:
            read(PictureBytes(data))
        assert said in str(refused.value) and "0x" not in str(refused.value) and "\n" not in str(refused.value)


def test_many_threads_read_one_table(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": encoded(corner(8 + i, 8), "PNG"), "path": None}} for i in range(120)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=7)
    pictures = [PictureInTable(str(tmp_path / "t.parquet"), i * 37 % 120, "image") for i in range(600)]
    with ThreadPoolExecutor(8) as readers:
        sizes = list(readers.map(lambda p: p.open().size, pictures))
    assert sizes == [(8 + p.row, 8) for p in pictures]


def test_a_reference_is_small_and_goes_into_other_processes(tmp_path: Path) -> None:
    picture = PictureInTable(str(tmp_path / "t.parquet"), 3, "image")
    assert len(pickle.dumps(picture)) < 300 and pickle.loads(pickle.dumps(picture)) == picture
    with pytest.raises(DataError, match=r"t\.parquet, row 3, image cannot be read"):
        picture.data()
