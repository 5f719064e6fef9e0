"""Pictures of every mode and make -> uint8 tensors, and what is refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from trajmatch.data.sources.decode import decode_images
from trajmatch.errors import DataError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8))
    smooth = smooth.resize((512, 512), Image.Resampling.BICUBIC)
    (small,) = decode_images(["a"], lambda _: encoded(smooth, "JPEG", quality=95), 32, None).images
    exact = np.asarray(smooth.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(small.numpy().astype(int) - exact).max() < 12


def test_phone_pictures_stand_upright():
    lying = Image.new("L", (20, 10))
    lying.paste(255, (0, 0, 5, 10))  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    data = encoded(lying, "JPEG", exif=exif)
    (upright,) = decode_images(["a"], lambda _: data, None, None).images
    assert upright.shape == (1, 20, 10)
    assert upright[0, :4].min() > 200
    assert upright[0, 8:].max() < 50


GRAY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
COLOR = np.stack([GRAY, GRAY.T, 255 - GRAY], axis=2)


def palette(pixels):
    return Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)


def transparent_palette():
    image = palette(COLOR)
    image.info["transparency"] = bytes([255] * 256)
    return image


MODES = {
    "L": (Image.fromarray(GRAY), "PNG", GRAY),
    "1": (Image.fromarray(GRAY > 100), "PNG", np.where(GRAY > 100, 255, 0)),
    "I;16": (Image.fromarray(GRAY.astype(np.uint16) * 257), "PNG", GRAY),
    "I;16 tiff": (Image.fromarray(GRAY.astype(np.uint16) * 257), "TIFF", GRAY),
    "I": (Image.fromarray(GRAY.astype(np.int32) * 257), "TIFF", GRAY),
    "LA": (Image.fromarray(np.stack([GRAY, GRAY * 0 + 255], 2)), "PNG", GRAY),
    "LA clear": (Image.fromarray(np.stack([GRAY, GRAY * 0], 2)), "PNG", GRAY * 0 + 255),
    "P gray": (palette(GRAY), "PNG", GRAY),
    "gif": (palette(GRAY), "GIF", GRAY),
    "RGB": (Image.fromarray(COLOR), "PNG", COLOR),
    "bmp": (Image.fromarray(COLOR), "BMP", COLOR),
    "RGBA": (Image.fromarray(np.dstack([COLOR, GRAY * 0 + 255])), "PNG", COLOR),
    "RGBA clear": (Image.fromarray(np.dstack([COLOR, GRAY * 0])), "PNG", COLOR * 0 + 255),
    "RGBA half": (Image.fromarray(np.dstack([COLOR * 0, GRAY * 0 + 51])), "PNG", COLOR * 0 + 204),
    "P": (palette(COLOR), "PNG", COLOR),
    "P clear bytes": (transparent_palette(), "PNG", COLOR),
    "CMYK": (Image.fromarray(COLOR).convert("CMYK"), "TIFF", COLOR),
    "RGB of grays": (Image.fromarray(np.dstack([GRAY] * 3)), "PNG", np.dstack([GRAY] * 3)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_comes_out_as_it_looks(mode):
    image, kind, looks = MODES[mode]
    data = encoded(image, kind)
    assert Image.open(io.BytesIO(data)).format == kind
    (decoded,) = decode_images(["a"], lambda _: data, None, None).images
    expected = np.atleast_3d(looks).transpose(2, 0, 1)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.numpy().astype(int) - expected).max() <= (3 if "P" in mode else 0)


def test_floating_point_pictures_are_refused():
    data = encoded(Image.fromarray(GRAY.astype(np.float32)), "TIFF")
    with pytest.raises(DataError, match="floating-point"):
        decode_images(["a.tiff"], lambda _: data, None, None)
    data = encoded(Image.fromarray(GRAY.astype(np.int32) * 100_000), "TIFF")
    with pytest.raises(DataError, match="exceed 16 bits"):
        decode_images(["a.tiff"], lambda _: data, None, None)


def test_formats_that_run_programs_are_not_opened():
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    with pytest.raises(DataError, match=r"cannot decode a\.png \(it is no JPEG, PNG, .*\)"):
        decode_images(["a.png"], lambda _: data, None, None)


def bomb_png(width, height):
    """A valid PNG that claims to be huge and is tiny."""

    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 40_000])
@pytest.mark.parametrize("size", [None, 8])
def test_decompression_bombs_are_refused(side, size):
    with warnings.catch_warnings():  # between its two limits Pillow only warns
        warnings.simplefilter("ignore" if side == 10_000 else "error")
        with pytest.raises(DataError, match=r"bomb\.png has more than 89 million pixels"):
            decode_images(["bomb.png"], lambda _: bomb_png(side, side), size, None)
