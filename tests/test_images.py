"""Unusual pictures are decoded to RGB, or refused with a reason."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from data_helpers import array_file, encode, pages
from PIL import Image

from albef_hf.data.images import MAX_PIXELS, BadImage, decode_image


def test_transparency_becomes_white():
    for mode, color in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        assert decode_image(encode(Image.new(mode, (4, 4), color))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert decode_image(encode(palette, transparency=0)).getpixel((1, 1)) == (255, 255, 255)
    assert decode_image(encode(palette)).getpixel((1, 1)) == (10, 20, 30)


def test_sixteen_bits_are_scaled_not_clipped():
    gray = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert decode_image(encode(gray)).getpixel((0, 0)) == (128, 128, 128)


def test_one_bit_gray_and_cmyk():
    assert decode_image(encode(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)
    cmyk = decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    red, green, blue = cmyk.getpixel((4, 4))
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_shows_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 0, 250))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = decode_image(data).getpixel((4, 4))
    assert red > 200 and blue < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(image, "JPEG", exif=exif))
    assert decoded.size == ((10, 20) if orientation >= 5 else (20, 10))


@pytest.mark.parametrize("tenth", range(10))
def test_a_truncated_jpeg_is_refused(tenth):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG")
    with pytest.raises(BadImage):
        decode_image(data[: len(data) * tenth // 10])


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty file"),
        (None, "no image"),
        ({"bytes": None, "path": None}, "no image"),
        ("/nowhere/cat.jpg", "no such file"),
        (b"<html>404</html>", "unreadable"),
        (bomb(), "20000 x 20000|exceeds limit"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(value, reason):
    with pytest.raises(BadImage, match=reason):
        decode_image(value)


def test_datasets_forms_and_one_pixel():
    data = encode(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert decode_image({"bytes": data, "path": "x.png"}).getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(BadImage, match="are more than 3"):
        decode_image(Image.new("RGB", (2, 2)), max_pixels=3)


def test_the_pixel_limit_is_the_last_that_is_read():
    assert decode_image(Image.new("RGB", (2, 3)), max_pixels=6).size == (2, 3)
    with pytest.raises(BadImage, match="2 x 3 pixels are more than 5"):
        decode_image(Image.new("RGB", (2, 3)), max_pixels=5)
    with pytest.raises(BadImage, match="6 pixels are more than 5"):
        decode_image(array_file(np.zeros((3, 2, 3), dtype=np.uint8)), max_pixels=5)


ORIENTED = [(mode, orientation) for mode in ("RGBA", "LA", "I;16") for orientation in (3, 6, 8)]


@pytest.mark.parametrize(("mode", "orientation"), ORIENTED)
def test_orientation_together_with_transparency_or_sixteen_bits(mode, orientation):
    if mode == "I;16":
        values = np.zeros((2, 3), dtype=np.uint16)
        values[0, 0] = 65535  # the top left corner is white
        image = Image.fromarray(values)
    else:
        image = Image.new(mode, (3, 2), (0,) * (len(mode) - 1) + (255,))
        image.putpixel((0, 0), (0,) * len(mode))  # transparent: white
    exif = image.getexif()
    exif[0x0112] = orientation
    decoded = np.asarray(decode_image(encode(image, exif=exif)))[:, :, 0]
    white = [tuple(place) for place in np.argwhere(decoded == 255)]
    assert white == [{3: (1, 2), 6: (0, 1), 8: (2, 0)}[orientation]]
    assert decoded.min() == 0


def test_a_transparent_value_of_sixteen_bit_gray_becomes_white():
    values = np.array([[1000, 2000]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), transparency=1000))
    assert (decoded.getpixel((0, 0))[0], decoded.getpixel((1, 0))[0]) == (255, 8)


def test_large_pictures_are_converted_strip_by_strip_without_a_seam():
    values = np.linspace(0, 65535, 1200 * 1100).reshape(1200, 1100).astype(np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))[:, :, 0]
    assert np.array_equal(decoded, (values * (255 / 65535)).astype(np.float32).round())
    alpha = Image.fromarray(
        np.dstack([np.full((1200, 1100, 3), 7), np.arange(1100) % 256 + np.zeros((1200, 1))]).astype(np.uint8)
    )
    opacity = np.asarray(alpha)[:, :, 3:] / 255
    expected = np.asarray(alpha)[:, :, :3] * opacity + 255 * (1 - opacity)
    assert np.abs(np.asarray(decode_image(alpha)) - expected).max() <= 1


MEASURED = """
import io, sys
import numpy as np
from PIL import Image
from albef_hf.data.images import decode_image
side, mode = 6000, sys.argv[1]
made = io.BytesIO()
if mode == "palette":
    image = Image.new("P", (side, side)); image.putpalette([1, 2, 3] * 256); image.save(made, "PNG", transparency=0)
elif mode == "gray16":
    image = Image.new("I;16", (side, side)); image.save(made, "PNG")
elif mode == "F":
    image = Image.new(mode, (side, side)); image.save(made, "TIFF", compression="tiff_lzw")
else:
    image = Image.new(mode, (side, side)); image.save(made, "PNG")
del image
small = Image.new("RGBA", (8, 8)); decode_image(small)
open("/proc/self/clear_refs", "w").write("5")
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
decode_image(made.getvalue())
print((peak() - before) / (3 * side * side))
"""


@pytest.mark.parametrize("mode", ["gray16", "palette", "RGBA", "LA", "F", "L"])
def test_decoding_takes_at_most_three_times_the_size(mode):
    done = subprocess.run([sys.executable, "-c", MEASURED, mode], capture_output=True, text=True)
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not let a process reset its peak of memory")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 3


def test_arrays_of_color_and_gray():
    color = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(np.asarray(decode_image(array_file(color))), color)
    assert np.array_equal(np.asarray(decode_image(color)), color)
    for gray in (color[:, :, 0], color[:, :, :1]):
        assert np.array_equal(np.asarray(decode_image(array_file(gray)))[:, :, 1], color[:, :, 0])
    deep = np.full((2, 2), 65535, dtype=np.uint16)
    assert decode_image(array_file(deep)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (array_file(np.zeros((4, 4, 12), dtype=np.uint8)), r"shape \(4, 4, 12\).*3\) are needed"),
        (array_file(np.zeros((4, 4, 3), dtype=np.float32)), "type float32"),
        (array_file(np.zeros(4)), r"shape \(4,\) and type float64 is no picture"),
        (array_file(np.zeros((4, 4), dtype="U3")), "is no picture"),
        (array_file(np.zeros((4, 4), dtype=np.uint8))[:90], "unreadable"),
        (pages(12), "12 pages with one channel each; 3 channels are needed"),
        (encode(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)), "TIFF"), "not all within 0"),
        (encode(Image.fromarray(np.full((2, 2), -1, dtype=np.float32)), "TIFF"), "not all within 0"),
        (7, "int '7' is no picture"),
    ],
)
def test_arrays_and_pages_that_are_no_color_picture_are_refused(value, reason):
    with pytest.raises(BadImage, match=reason):
        decode_image(value)


def test_numbers_of_0_to_1_are_gray_too():
    unit = Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32))
    assert decode_image(encode(unit, "TIFF")).getpixel((0, 0)) == (128, 128, 128)
    assert MAX_PIXELS == 89_478_485
