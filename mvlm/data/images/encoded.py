"""Encoded images before they are decoded: which formats are accepted, and how much memory and time one may cost.

Sharding and training both apply these rules, whatever the decoder, so that no row is good on one machine and bad on
another.
"""

from __future__ import annotations

import io
import re

from PIL import Image, ImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF")
"""Listed, since some of Pillow's other readers run external programs or follow references."""

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "j2k", "jpx", "avif")
"""File extensions of these formats."""

BYTE_LIMIT = 1 << 28
"""Largest size of decoded pixels: width x height x channels (at least three) x bytes per sample.

For 8-bit colours this is Pillow's own limit for a plausible image. WebP and JPEG 2000 count double, since their
libraries hold the pixels more than once. A few bytes can claim to be a far larger image; at the limit, decoding needs
about 1 GB.
"""

PIXEL_LIMIT = BYTE_LIMIT // 3

SCAN_LIMIT = 100
"""Most scans in a JPEG: each goes over all the pixels, however few bytes it has. Real images have about ten."""

OTHERS = {"heic": "HEIC", "heif": "HEIC", "jxl": "JPEG XL", "psd": "Photoshop", "exr": "OpenEXR", "dcm": "DICOM"}
"""Formats that people have but Pillow does not read safely, by file extension."""

JPEG_START = b"\xff\xd8\xff"

_SIGNATURES = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"DDS ", "DDS"),
    (0, b"II\xbc", "JPEG XR"),
)
"""Offset in the file, magic number and format, for the formats that users are likely to ask about."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}

_WHITE_IS_ZERO = 0
_PHOTOMETRIC = 262  # TIFF's tag


class BadImage(ValueError):
    """Bytes that we cannot decode: `reason` is one of a few phrases, which are counted; `detail` explains."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class ChangedImage(BadImage):
    """Bytes of a shard whose checksum is not that of the image written, whether or not they decode."""

    def __init__(self) -> None:
        super().__init__("its checksum differs")


def why_bad(error: BadImage) -> str:
    """A clause that says whether the image arrived bad or has been damaged since it was written."""
    if isinstance(error, ChangedImage):
        return f"the image is not the one that was written ({error})"
    return f"the image cannot be decoded ({error})"


def open_image(data: bytes | memoryview) -> Image.Image:
    """Open an image with Pillow, reading only the header; of several frames or pages, the first.

    Raises:
        BadImage: its format is not accepted, or it is damaged or exceeds the limits.
    """
    check_scans(data)
    start = bytes(data[:132])
    if size := _webp_size(start):
        check_size(*size, 4, 2)  # before Pillow opens it, which allocates memory for all pixels
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        assert isinstance(image, ImageFile.ImageFile), "Image.open returns one"
        _check_colours(image)
        check_size(*image.size, len(image.getbands()), _sample_bytes(image))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("image is too large", str(error)) from None
    except Image.UnidentifiedImageError:
        raise _unidentified(start) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise damaged(error) from error
    return image


def damaged(error: Exception) -> BadImage:
    """The `BadImage` for an error that Pillow raised while reading."""
    return BadImage("image is damaged", f"{type(error).__name__}: {error}".replace("\n", " "))


def check_size(width: int, height: int, channels: int = 3, sample_bytes: int = 1) -> None:
    """Raise `BadImage` if the decoded pixels would exceed `BYTE_LIMIT`."""
    channels = max(3, channels)
    if width * height * channels * sample_bytes > BYTE_LIMIT:
        most = BYTE_LIMIT // (channels * sample_bytes)
        raise BadImage(
            "image is too large", f"{width} x {height} pixels of its kind are more than the limit of {most:,}"
        )


def check_scans(data: bytes | memoryview) -> None:
    """Raise `BadImage` if a JPEG has more than `SCAN_LIMIT` scans."""
    if data[:3] == JPEG_START and _scans(bytes(data)) > SCAN_LIMIT:
        raise BadImage("image has too many scans", f"more than {SCAN_LIMIT}: save it again")


def _scans(jpeg: bytes) -> int:
    """How often libjpeg would go over the pixels, counted no further than needed."""
    at = scans = components = 0
    sequential = False
    while scans <= SCAN_LIMIT and (marker := _MARKER.search(jpeg, at)):
        code, content = jpeg[marker.start() + 1], marker.end()
        if code == _END_OF_IMAGE:
            break
        if code in _FRAMES and not components:
            sequential, components = code in _SEQUENTIAL, int.from_bytes(jpeg[content + 7 : content + 8])
        if code == _START_OF_SCAN:
            scans += 1
            whole = sequential and jpeg[content + 2 : content + 3] == bytes((components,))
            if whole or (scans == 1 and jpeg.count(bytes((0xFF, _START_OF_SCAN)), content) < SCAN_LIMIT):
                return scans  # libjpeg accepts no scan after a whole one; otherwise there are too few to matter
        at = content + int.from_bytes(jpeg[content : content + 2])
    return scans


def _webp_size(start: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a WebP; None for other formats."""
    if start[:4] != b"RIFF" or start[8:12] != b"WEBP":
        return None
    kind, content = start[12:16], start[20:]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[4:7], "little"), 1 + int.from_bytes(content[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(content[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(content[6:8], "little") & 0x3FFF, int.from_bytes(content[8:10], "little") & 0x3FFF


def _sample_bytes(image: ImageFile.ImageFile) -> int:
    """Bytes per sample in the file: 2 for 16-bit colours, though Pillow keeps only their upper 8 bits."""
    raw = " ".join(str(tile.args) for tile in image.tile)
    if image.mode in ("I", "F"):
        return 8 if "64" in raw else 4
    return 2 if "16" in raw or "16" in image.mode or image.format == "JPEG2000" else 1


def _check_colours(image: ImageFile.ImageFile) -> None:
    """Raise `BadImage` if Pillow's pixels would not be what a viewer shows."""
    bits = [str(tile.args) for tile in image.tile[:1]]
    inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
    if image.mode == "LAB" or any(";12" in raw for raw in bits) or (inverted and image.mode[0] in "IF"):
        kind = "L*a*b*" if image.mode == "LAB" else "more than 8 bits with white as 0" if inverted else "12 bits"
        raise _unsupported("TIFF", f"its pixels are {kind}")


def _unidentified(start: bytes) -> BadImage:
    for at, mark, name in _SIGNATURES:
        if start[at:].startswith(mark):
            is_accepted = name.replace(" ", "") in FORMATS
            why = "cut short, or of a kind that Pillow does not read" if is_accepted else "not read here"
            return _unsupported(name, why)
    return BadImage("not an image", f"begins with {start[:16]!r}")


def _unsupported(name: str, why: str) -> BadImage:
    return BadImage(f"unsupported image format ({name})", f"{why}: convert it to PNG or JPEG")
