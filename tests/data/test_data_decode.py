import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from cpsd_lib.data.images.decode import BadImage, decode

# Four quarters of one colour each survive resizing and JPEG: red green / blue white.
QUARTERS = np.zeros((48, 64, 3), np.uint8)
QUARTERS[:24, :32], QUARTERS[:24, 32:], QUARTERS[24:, :32], QUARTERS[24:, 32:] = (
    (250, 0, 0),
    (0, 250, 0),
    (0, 0, 250),
    (250, 250, 250),
)
CORNERS = {"upper left": (2, 2), "upper right": (2, 13), "lower left": (13, 2), "lower right": (13, 13)}


def picture():
    return Image.fromarray(QUARTERS)


def corners(pixels):
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    return [names.get(tuple((pixels[:, y, x] > 128).astype(int).tolist()), "?") for y, x in CORNERS.values()]


def reason(path, **options):
    with warnings.catch_warnings(), pytest.raises(BadImage) as caught:
        warnings.simplefilter("error")
        decode(path, 16, **options)
    assert os.fspath(path) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp", "a.tif", "a.ppm", "a.jp2"])
def test_every_common_kind_of_file_gives_the_same_picture(tmp_path, name):
    picture().save(tmp_path / name)
    assert corners(decode(tmp_path / name, 16)) == ["red", "green", "blue", "white"]


def test_pixels_are_those_of_a_plain_antialiased_resize_of_both_sides(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    expected = np.asarray(noise.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert (decode(tmp_path / "a.png", 16) == expected).all()
    small = Image.fromarray(rng.integers(0, 256, (1, 1, 3), dtype=np.uint8))
    small.save(tmp_path / "b.png")
    assert (decode(tmp_path / "b.png", 16) == np.asarray(small).reshape(3, 1, 1)).all()


def test_the_short_cut_for_large_jpegs_stays_close_to_the_full_decode(tmp_path):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
    large.save(tmp_path / "a.jpg", quality=92)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(int)
    assert np.abs(decode(tmp_path / "a.jpg", 32) - expected).mean() < 2


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, "red green blue white"),
        (3, "white blue green red"),
        (6, "blue red white green"),
        (8, "green white red blue"),
    ],
)
def test_a_photo_taken_sideways_is_turned_upright(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert corners(decode(tmp_path / "a.jpg", 16)) == expected.split()
    # Turning back what exif_transpose turned must give the stored file.
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    picture().save(tmp_path / "b.jpg", quality=95)
    plain = decode(tmp_path / "b.jpg", 16).astype(int)
    turned = np.rot90(decode(tmp_path / "a.jpg", 16), turns, (1, 2))
    assert np.abs(turned - plain).max() <= 2


def odd_exif(orientation):
    """Return EXIF with an orientation beside a tag that Pillow reads and cannot write: a date as a signed byte."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, orientation) + struct.pack("<HHIf", 0x0132, 11, 1, 1.5)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


def test_odd_metadata_beside_an_orientation_costs_no_photo(tmp_path):
    picture().save(tmp_path / "a.jpg", exif=odd_exif(6), quality=95)
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(Exception):  # noqa: B017
        image.getexif().tobytes()
    assert corners(decode(tmp_path / "a.jpg", 16)) == ["blue", "red", "white", "green"]


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF header here", b"Exif\0\0II*\0" + bytes([8, 0, 0, 0, 9, 0, 1])])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_broken_metadata_says_nothing_about_the_pixels(tmp_path, exif, name):
    picture().save(tmp_path / name, exif=exif)
    assert corners(decode(tmp_path / name, 16)) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize("kind", ["compressed text", "texts", "profile"])
def test_long_texts_and_colour_profiles_of_a_png_are_allowed_as_pixels_are(tmp_path, kind):
    info = PngImagePlugin.PngInfo()
    for number in range({"compressed text": 1, "texts": 70, "profile": 0}[kind]):
        info.add_text(f"note {number}", "x" * 2**20 + "y", zip=kind != "texts")
    profile = {"icc_profile": bytes(2**21)} if kind == "profile" else {}
    picture().save(tmp_path / "a.png", pnginfo=info, **profile)
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert corners(decode(tmp_path / "a.png", 16)) == ["red", "green", "blue", "white"]
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    if kind != "texts":
        assert "too large" in reason(tmp_path / "a.png", max_pixels=64 * 48)


def test_cmyk_is_converted(tmp_path):
    picture().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert corners(decode(tmp_path / "a.jpg", 16)) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    grey = np.repeat(np.array([[0, 257, 32768, 65535]], np.uint16), 4, axis=0).repeat(4, axis=1).repeat(4, axis=0)
    Image.fromarray(grey).save(tmp_path / name)
    pixels = decode(tmp_path / name, 16)
    assert pixels[:, 8, [1, 5, 9, 14]].tolist() == [[0, 1, 128, 255]] * 3


def test_numbers_of_unknown_range_are_refused_and_not_guessed(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "f.tif")
    assert "floating-point" in reason(tmp_path / "f.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "i.tif")
    assert "more than 16 bits" in reason(tmp_path / "i.tif")


def test_transparent_parts_become_white(tmp_path):
    clear = picture().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 32, 24))
    clear.save(tmp_path / "a.png")
    assert corners(decode(tmp_path / "a.png", 16)) == ["white", "green", "blue", "white"]

    palette = Image.fromarray(np.repeat(np.repeat([[0, 1], [2, 3]], 24, 0), 32, 1).astype(np.uint8), "P")
    palette.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250, 250, 250, 250])
    palette.save(tmp_path / "b.png")
    assert corners(decode(tmp_path / "b.png", 16)) == ["red", "green", "blue", "white"]
    palette.save(tmp_path / "c.png", transparency=0)
    assert corners(decode(tmp_path / "c.png", 16)) == ["white", "green", "blue", "white"]
    palette.save(tmp_path / "d.png", transparency=bytes([255, 0, 255, 255]))
    assert corners(decode(tmp_path / "d.png", 16)) == ["red", "white", "blue", "white"]


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_and_black_and_white_have_three_equal_channels(tmp_path, mode):
    Image.fromarray(np.repeat([[0, 255]], 8, 1).repeat(16, 0).astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", 16)
    assert (pixels[:, :, :7] == 0).all() and (pixels[:, :, 9:] == 255).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert corners(decode(tmp_path / "a.gif", 16)) == ["red"] * 4


def test_files_that_are_missing_empty_folders_or_no_image_say_so(tmp_path):
    assert reason(tmp_path / "none.jpg") == "the file does not exist"
    (tmp_path / "zero.jpg").touch()
    assert reason(tmp_path / "zero.jpg") == "the file is empty (0 bytes)"
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "folder.jpg") == "a folder, not a file"
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    assert "not an image" in reason(tmp_path / "text.jpg")
    # Pillow would hand this one to an interpreter.
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert "not an image" in reason(tmp_path / "script.jpg")
    (tmp_path / "x.jpg").touch()
    assert reason(tmp_path / "x.jpg" / "y.jpg") == "the file cannot be read (Not a directory)"
    assert "null byte" in reason(str(tmp_path / "a\0.jpg"))
    assert "File name too long" in reason(tmp_path / ("a" * 5000))
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "not a regular file"


def test_a_file_without_permission_says_so(tmp_path, monkeypatch):
    # Permission bits do not bind root, which tests may run as: refuse in its place.
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr("builtins.open", refuse)
    assert reason(tmp_path / "a.png") == "the file cannot be read (Permission denied)"


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("name", ["a.jpg", "progressive.jpg", "a.png", "a.bmp", "a.gif", "a.webp", "a.tif"])
def test_a_truncated_file_is_bad_even_where_pillow_would_pad_it(tmp_path, monkeypatch, name, allowed):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    noise.save(tmp_path / name, **({"progressive": True} if name.startswith("progressive") else {}))
    whole = (tmp_path / name).read_bytes()
    decode(tmp_path / name, 16)
    for part in (0.1, 0.5, 0.9):
        (tmp_path / name).write_bytes(whole[: int(part * len(whole))])
        assert "broken image" in reason(tmp_path / name) or "not an image" in reason(tmp_path / name)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is allowed


def test_a_file_with_broken_bytes_is_bad_or_decoded_but_never_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "a.gif", "a.webp", "a.tif", "a.bmp"):
        picture().save(tmp_path / name)
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(40):
            broken = whole.copy()
            broken[rng.integers(0, len(whole), 8)] = rng.integers(0, 256, 8)
            (tmp_path / name).write_bytes(broken.tobytes())
            try:
                assert decode(tmp_path / name, 16, max_pixels=10**6).shape == (3, 16, 16)
            except BadImage as error:
                assert str(error)


def png_claiming(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_a_gigantic_image_is_refused_by_its_header_without_warning(tmp_path):
    (tmp_path / "a.png").write_bytes(png_claiming(60_000, 60_000))
    assert "gigantic: 60,000 x 60,000 pixels, more than max_pixels = 178,956,970" in reason(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png_claiming(10_000, 10_000))  # where Pillow alone only warns
    assert "gigantic" in reason(tmp_path / "b.png", max_pixels=99_999_999)
    picture().save(tmp_path / "c.png")
    assert "gigantic: 64 x 48" in reason(tmp_path / "c.png", max_pixels=64 * 48 - 1)
    decode(tmp_path / "c.png", 16, max_pixels=64 * 48)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_trouble_of_the_machine_is_not_blamed_on_the_image(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*a\.png"):
        decode(tmp_path / "a.png", 16)


def test_trouble_of_the_machine_while_an_opened_picture_is_read_is_not_blamed_on_it_either(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    picture().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        monkeypatch.setattr(type(image), "load", fail)
        with pytest.raises(OSError, match=r"Input/output error: .*a\.png"):
            decode(image, 16)
