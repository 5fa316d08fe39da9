"""Unusual pictures are decoded to RGB, or refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from albef_hf.data.images import BadImage, decode_image


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


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
