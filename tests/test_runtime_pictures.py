"""Pictures of every kind come out as a person sees them; broken ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import encoded

from toolchain.runtime.errors import PictureError
from toolchain.runtime.pictures import decode, find_pictures

# 4 wide, 2 high: a red corner at the top left of a grey picture, so that every turn is told apart.
SEEN = np.full((16, 32, 3), 100, np.uint8)
SEEN[:8, :8] = (250, 0, 0)
ORIENTATION = 0x0112
# What a camera stored for SEEN under each EXIF orientation (the inverse of the turn that shows it upright).
STORED = {
    1: SEEN,
    2: SEEN[:, ::-1],
    3: SEEN[::-1, ::-1],
    4: SEEN[::-1],
    5: SEEN.transpose(1, 0, 2),
    6: np.rot90(SEEN, 1),
    7: SEEN[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SEEN, -1),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
def test_exif_orientation_is_applied(orientation: int, form: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options = {"quality": 95, "subsampling": 0} if form in ("JPEG", "MPO") else {}
    options |= {"lossless": True} if form == "WEBP" else {}
    found = decode(encoded(image, form, exif=exif(orientation), **options))
    assert found.shape == SEEN.shape
    assert np.abs(found.astype(int) - SEEN).max() < 12


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_beside_good_pixels_is_upright() -> None:
    data = encoded(Image.fromarray(SEEN), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x01")
    assert decode(data).shape == SEEN.shape


def test_the_array_is_rgb_contiguous_and_writable(tmp_path: Path) -> None:
    Image.fromarray(SEEN).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, SEEN)


def test_grey_palette_and_one_bit() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = decode(encoded(Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(grey, np.repeat(ramp[..., None], 3, axis=2))
    palette = Image.fromarray(SEEN).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decode(encoded(palette, "GIF")), SEEN)
    bits = decode(encoded(Image.fromarray(ramp > 127), "PNG"))
    np.testing.assert_array_equal(bits[..., 0], np.where(ramp > 127, 255, 0))


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([SEEN, np.full(SEEN.shape[:2], 255, np.uint8)])
    rgba[8:, :, 3] = 0
    rgba[:8, 16:, 3] = 128
    found = decode(encoded(Image.fromarray(rgba), "PNG"))
    np.testing.assert_array_equal(found[8:], 255)
    np.testing.assert_array_equal(found[:8, :16], SEEN[:8, :16])
    assert abs(int(found[0, 20, 0]) - 177) <= 1  # half of 100 and half of 255
    la = Image.fromarray(rgba).convert("LA")
    np.testing.assert_array_equal(decode(encoded(la, "PNG"))[8:], 255)


def test_transparent_colour_of_png_and_gif_is_white() -> None:
    keyed = encoded(Image.fromarray(SEEN), "PNG", transparency=(250, 0, 0))
    np.testing.assert_array_equal(decode(keyed)[:8, :8], 255)
    palette = Image.fromarray(SEEN).convert("P", palette=Image.Palette.ADAPTIVE)
    gif = encoded(palette, "GIF", transparency=palette.getpixel((0, 0)))
    np.testing.assert_array_equal(decode(gif)[:8, :8], 255)


def test_cmyk_jpeg_and_tiff_keep_their_colours() -> None:
    cmyk = Image.fromarray(SEEN).convert("CMYK")
    for form in ("JPEG", "TIFF"):
        options = {"quality": 95} if form == "JPEG" else {}
        found = decode(encoded(cmyk, form, **options))
        assert np.abs(found[2:6, 2:6].astype(int) - (250, 0, 0)).max() < 16, form
        assert np.abs(found[12:, 20:].astype(int) - 100).max() < 16, form


def test_sixteen_bit_grey_is_scaled_by_its_type() -> None:
    values = np.array([[0, 256, 32768, 65535], [1, 128, 129, 4095]], np.uint16)
    wanted = np.rint(values / 257).astype(np.uint8)
    for form in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(values), form))
        np.testing.assert_array_equal(found, np.repeat(wanted[..., None], 3, axis=2))
    wide = Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    np.testing.assert_array_equal(decode(encoded(wide, "TIFF"))[..., 0], wanted)


def test_sixteen_bit_big_endian_and_pgm() -> None:
    values = np.array([[0, 65535, 32768]], np.uint16)
    pgm = b"P5 3 1 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(pgm)[0, :, 0], [0, 255, 128])
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(encoded(big, "TIFF"))[0, :, 0], [0, 255, 128])


def test_float_tiff_is_read_by_its_range() -> None:
    def tiff(*values: float) -> bytes:
        return encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")

    np.testing.assert_array_equal(decode(tiff(0, 0.5, 1))[0, :, 0], [0, 128, 255])
    np.testing.assert_array_equal(decode(tiff(0, 127.6, 255))[0, :, 0], [0, 128, 255])
    for wrong in ((0, 256), (-0.1, 1), (0, float("nan")), (0, float("inf"))):
        with pytest.raises(PictureError, match=r"depth\.tif: grey values .* outside 0\.\.1 or 0\.\.255"):
            decode(tiff(*wrong), name="depth.tif")


def test_wide_integers_without_an_agreed_range_are_refused() -> None:
    for wrong in ([0, 70000], [-5, 100]):
        data = encoded(Image.fromarray(np.array([wrong], np.int32)), "TIFF")
        with pytest.raises(PictureError, match=r"outside 0\.\.65535"):
            decode(data)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF"])
def test_the_first_frame_counts(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(data)[4, 4], (255, 0, 0))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.95])
def test_cut_short_is_named(tmp_path: Path, form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    path = tmp_path / "cut picture.bin"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PictureError, match=r"cut picture\.bin: .*cut short"):
        decode(path)


@pytest.mark.filterwarnings("ignore")  # Pillow tells of damaged tags and large sizes
def test_damaged_bytes_never_escape_as_another_error() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    order = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000"):
        good = encoded(Image.fromarray(noise), form)
        for _ in range(60):
            data = bytearray(good)
            for at in order.integers(0, min(len(data), 400), 6):
                data[at] = order.integers(0, 256)
            try:
                assert decode(bytes(data), max_pixels=1_000_000).ndim == 3
            except PictureError as e:
                assert "picture:" in str(e)  # noqa: PT017


def test_not_a_picture_missing_folder_and_other_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(PictureError, match=r"notes\.jpg: not a picture"):
        decode(tmp_path / "notes.jpg")
    with pytest.raises(PictureError, match=r"absent\.png: no such file"):
        decode(tmp_path / "absent.png")
    with pytest.raises(PictureError, match="cannot be read"):
        decode(tmp_path)
    eps = encoded(Image.fromarray(SEEN), "EPS")
    with pytest.raises(PictureError, match="not a picture"):
        decode(eps)


def test_too_many_pixels_is_told_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(SEEN), "PNG")
    with pytest.raises(PictureError, match=r"wide\.png: 32 x 16 pixels are more than the 500 allowed"):
        decode(data, name="wide.png", max_pixels=500)
    assert decode(data, max_pixels=512).shape == SEEN.shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(PictureError, match="bomb"):
        decode(data)


def test_find_pictures_searches_folders(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a/deep/x.tiff", "a/notes.txt", ".hidden/y.png", "b/._1.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "z.webp").touch()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "set" / "b" / "round").symlink_to(tmp_path / "set")
    odd = tmp_path / "set" / "a" / "notes.txt"
    found = find_pictures([odd, tmp_path / "set", tmp_path / "set" / "b" / "1.png"])
    names = [str(p.relative_to(tmp_path / "set")) for p in found]
    assert names == ["a/notes.txt", "a/deep/x.tiff", "b/1.png", "b/2.JPG", "link/z.webp"]
    with pytest.raises(PictureError, match="absent: no such file or folder"):
        find_pictures([tmp_path / "absent"])
