"""Hostile input: each kind has the outcome that data_tools/README.md states, and none stops a run."""

from __future__ import annotations

import io
import re
import resource
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made import photo, quarantine, read_rows, run, tree, write_captions, write_folder
from PIL import Image

from data_tools.filters import MAX_TEXT
from data_tools.image import decode, decoded_size
from data_tools.readers.tar_records import CUT
from mvlm.data.images.encoded import BadImage
from tests.pictures import encoded, png
from tests.tars import add_file


def huge_jpeg() -> bytes:
    """A JPEG whose header claims 60,000 x 60,000 pixels."""
    data = bytearray(encoded(Image.new("RGB", (16, 16))))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (30, 20), "red"), exif=exif)


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue", "white")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def palette_with_alpha() -> bytes:
    image = Image.new("P", (30, 20), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    return encoded(image, "PNG", transparency=bytes([0, 128]))


ROOT = Path(__file__).parents[2]
SOUND = {
    "one pixel jpeg": (encoded(Image.new("RGB", (1, 1))), (1, 1)),
    "one pixel png": (encoded(Image.new("RGB", (1, 1)), "PNG"), (1, 1)),
    "30,000 pixels wide": (encoded(Image.new("L", (30_000, 8))), (30_000, 8)),
    "30,000 pixels high": (encoded(Image.new("L", (8, 30_000)), "PNG"), (8, 30_000)),
    "CMYK": (encoded(Image.new("CMYK", (30, 20), (0, 200, 100, 9))), (30, 20)),
    "16 bits": (encoded(Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "PNG"), (30, 20)),
    "palette with alpha": (palette_with_alpha(), (30, 20)),
    "EXIF rotation": (rotated_by_exif(), (30, 20)),
    "animated GIF": (animated("GIF"), (30, 20)),
    "animated PNG": (animated("PNG"), (30, 20)),
    "animated WebP": (animated("WEBP"), (30, 20)),
    "TIFF of several pages": (animated("TIFF"), (30, 20)),
    "JPEG 2000": (encoded(Image.new("RGB", (30, 20)), "JPEG2000"), (30, 20)),
    "AVIF": (encoded(Image.new("RGB", (30, 20)), "AVIF"), (30, 20)),
    "progressive": (encoded(Image.open(io.BytesIO(photo(1))), progressive=True), (24, 18)),
}
"""Images, and their width and height in pixels."""

JPEG = photo(3, size=(64, 48))
UNSOUND = {
    "png bomb": (png(30_000, 30_000), "image is too large"),
    "jpeg bomb": (huge_jpeg(), "image is too large"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "image is damaged"),
    "three bytes of a jpeg": (JPEG[:3], "not an image"),
    "jpeg without its last two bytes": (JPEG[:-2], "image is damaged"),
    "jpeg with garbage inside": (JPEG[:-300] + bytes(90) + JPEG[-210:], "image is damaged"),
    "half a png": (photo(3, "PNG")[:600], "image is damaged"),
    "png of few pixels": (png(30, 20), "image is damaged"),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not an image"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(99), "unsupported image format (HEIC)"),
    "no bytes": (b"", "image is empty"),
}
"""Images and the reasons why they are dropped."""


def test_sound_images_are_kept_unchanged_and_others_dropped_with_a_reason(tmp_path: Path) -> None:
    images = {name: data for name, (data, _) in (SOUND | UNSOUND).items()}
    (tmp_path / "in/images").mkdir(parents=True)
    lines = []
    for number, (name, data) in enumerate(images.items()):
        (tmp_path / f"in/images/{number}.jpg").write_bytes(data)
        lines.append({"id": name, "image": f"images/{number}.jpg", "caption": "an image"})
    write_captions(tmp_path / "in", lines)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--tolerate", 1, "--workers", 1)
    rows = {row["key"]: row for row in read_rows(tmp_path / "out")}
    sizes = {name: (row["width"], row["height"]) for name, row in rows.items()}
    assert sizes == {name: size for name, (_, size) in SOUND.items()}
    assert all(row["image"] == images[name] for name, row in rows.items())
    assert quarantine(tmp_path / "out") == {name: reason for name, (_, reason) in UNSOUND.items()}
    run("verify", tmp_path / "out", "--workers", 1)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "small", "--tolerate", 1, "--longest-side", 16)
    assert {max(row["width"], row["height"]) for row in read_rows(tmp_path / "small")} == {1, 16}


def test_bombs_are_refused_before_they_are_decoded() -> None:
    """Decoded, they would take 2.7 and 10.8 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("png bomb", "jpeg bomb"):
        with pytest.raises(BadImage, match="too large"):
            decoded_size(UNSOUND[name][0])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_damage_that_pillow_does_not_report_is_found() -> None:
    """libjpeg warns of it, but Pillow discards the warning."""
    data = bytearray(JPEG)
    data[len(data) // 2 : len(data) // 2 + 4] = b"\xff\xd5\x00\x00"  # a restart marker where none belongs
    Image.open(io.BytesIO(bytes(data))).load()  # does not raise
    with pytest.raises(BadImage, match="damaged"):
        decode(bytes(data))


CAPTIONS: dict[str, tuple[object, list[str] | str]] = {
    "empty": ([""], "caption is empty"),
    "null": ([None], "caption is not text"),
    "not a list": (None, "caption is not text"),
    "a number": ([7], "caption is not text"),
    "100 kB": (["word " * 20_000], "caption is too long"),
    "just short enough": (["w" * MAX_TEXT], ["w" * MAX_TEXT]),
    "control characters": (["a\x00\x1b[31m dog\r\n\x85"], ["a [31m dog"]),
    "invalid UTF-8": (["bad \ud800"], "caption is not UTF-8"),
    "bad in two ways": (["", 7], "no caption"),
    "an empty list": ([], "no caption"),
    "markup": (["<script>alert(1)</script>"], ["<script>alert(1)</script>"]),
    "good beside bad": ([None, "good", ""], ["good"]),
}
"""A record's captions, and those that are kept or the reason why the record is dropped."""


def test_captions_are_cleaned_or_dropped_with_a_reason(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "in", len(CAPTIONS))
    for record, (name, (given, _)) in zip(records, CAPTIONS.items(), strict=True):
        record |= {"id": name, "captions": given}
    write_captions(tmp_path / "in", records)
    with (tmp_path / "in/captions.jsonl").open("ab") as file:
        file.write(b'{"id": "bytes", "image": "images/0.jpg", "caption": "caf\xe9"}\n')
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--tolerate", 1)
    rows = {row["key"]: row["captions"] for row in read_rows(tmp_path / "out")}
    assert rows == {name: kept for name, (_, kept) in CAPTIONS.items() if isinstance(kept, list)}
    reasons = quarantine(tmp_path / "out")
    assert reasons.pop("") == "line is not JSON in UTF-8"
    assert reasons == {name: reason for name, (_, reason) in CAPTIONS.items() if isinstance(reason, str)}


LIMITED = """
import resource, sys
from data_tools.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
sys.exit(main(sys.argv[1:]))
"""


def test_shards_finished_before_the_disk_was_full_are_kept_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: writes fail the same way, with another error number."""
    write_folder(tmp_path / "in", 80)
    (tmp_path / "in/images/60.jpg").write_bytes(photo(60, size=(500, 500)))
    argv = ["shard", "folder", str(tmp_path / "in"), "--shard-mb", "0.02", "--workers", "1", "--out"]
    run(*argv, tmp_path / "whole")
    limited = [sys.executable, "-c", LIMITED, *argv, str(tmp_path / "out")]
    ended = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("mvlm-data: No room to write")
    assert "run the same command again" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.partial/.state").glob("*.part"))) > 1
    run(*argv, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE, pax: dict[str, str] | None = None) -> bytes:
    """The header of a member that claims to have `size` bytes, without the bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.pax_headers = size, kind, pax or {}
    return member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def good_tar() -> bytes:
    """A sound archive, but for the zeros that would end it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("a.jpg", photo(1)), ("a.txt", b"a caption"), ("b.txt", b"another")):
            add_file(tar, name, data)
        return buffer.getvalue()[: tar.offset]


def header_with_negative_size() -> bytes:
    """A size of -1,536 bytes, in base 256: a reader that trusts it goes back to the previous member, for ever."""
    header = bytearray(tar_header("b.jpg", 0))
    header[124:136] = (-1536 & (1 << 96) - 1).to_bytes(12)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


SPARSE_TAIL = 40 << 30
PAX_CHAIN = b"".join(tar_header("p", 0, tarfile.XHDTYPE) for _ in range(3000)) + tar_header("b.jpg", 0)
TARS = {
    "10 TB": (tar_header("b.jpg", 10 << 40), 0, "claims 10,995,116,277,760 bytes"),
    "20 GB": (tar_header("b.jpg", 20_000_000_000), SPARSE_TAIL, "claims 20,000,000,000 bytes"),
    "10 TB in a pax record": (
        tar_header("b.jpg", 0, pax={"size": str(10 << 40)}),
        0,
        "claims 10,995,116,277,760 bytes",
    ),
    "6 GB that are not there": (tar_header("b.jpg", 6_000_000_000), 0, "unexpected end"),
    "a name of 500 MB": (tar_header("././@LongLink", 500_000_000, tarfile.GNUTYPE_LONGNAME), SPARSE_TAIL, "a name or"),
    "pax records of 500 MB": (tar_header("pax", 500_000_000, tarfile.XHDTYPE), SPARSE_TAIL, "a name or"),
    # The reason depends on the release of Python.
    "a negative size": (header_with_negative_size(), 0, "(claims -1,536 bytes|invalid offset)"),
    "3,000 pax headers in a row": (PAX_CHAIN, 0, "recursion"),
    "a sparse map": (tar_header("b.jpg", 0, tarfile.GNUTYPE_SPARSE), 0, "a file with holes"),
    "40 GB of zeros": (b"", SPARSE_TAIL, "nothing but zeros"),
}
"""What follows a good archive, the length of the file in bytes if it is longer, and a pattern of the reason given."""

BOUNDED = """
import resource, sys
from pathlib import Path
from data_tools.readers.webdataset import WebdatasetSource
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    items = WebdatasetSource([Path(path)])
    print(*(f"{item.key}: {getattr(item, 'reason', 'good')} {getattr(item, 'detail', '')}" for item in items), sep="; ")
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
"""


def test_hostile_headers_end_a_tar_within_100_mb_of_memory_and_a_minute(tmp_path: Path) -> None:
    """The files are sparse: all but their first blocks are holes."""
    paths = []
    for number, (tail, length, _) in enumerate(TARS.values()):
        paths.append(tmp_path / f"{number}.tar")
        with paths[-1].open("wb") as file:
            file.write(good_tar() + tail)
            file.truncate(max(file.tell(), length))
    ended = subprocess.run([sys.executable, "-c", BOUNDED, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for (name, (_, _, reason)), line in zip(TARS.items(), ended.stdout.splitlines(), strict=True):
        assert re.fullmatch(f"a: good ; b: {CUT} .*{reason}.*", line), name
