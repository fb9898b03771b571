"""Tables of links: what is downloaded from a real server on loopback, and the reasons for what is not."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_server import HEADERS, TARGETS, ImageServer, serving
from made import photo, read_rows, tree

from data_tools.__main__ import main
from data_tools.download.addresses import allowed_addresses
from data_tools.download.client import Client, HeldMemory, Limits
from data_tools.download.prefetch import prefetched
from data_tools.readers.link_table import CAPTION_COLUMNS, DAMAGED
from data_tools.readers.row_files import LINK_COLUMNS
from data_tools.readers.urls import OUTAGE, UrlSource
from data_tools.record import Dropped, Record
from mvlm.errors import ExitCode, UserError

ROOT = Path(__file__).parents[3]


@cache
def image(number: int) -> bytes:
    return photo(number % 20, size=(120, 90))


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[ImageServer, int]]:
    with serving(image) as (serves, port):
        yield serves, port


@pytest.fixture
def port(server: tuple[ImageServer, int]) -> int:
    server[0].seen.clear()
    return server[1]


def write_table(folder: Path, urls: list[Any], **columns: list[Any]) -> Path:
    path = folder / "links.parquet"
    content = {"URL": urls, "TEXT": [f"caption {n}" for n in range(len(urls))]} | columns
    pq.write_table(pa.table(content), path)
    return path


def outcomes(path: Path, **options: Any) -> list[bytes | str]:
    """The image of each link, or the reason why it has none."""
    source = UrlSource([path], **{"allow_loopback": True} | options)
    return [item.reason if isinstance(item, Dropped) else item.image for item in source]


GOOD = ("ok", "slow", "late", "dropped", "flaky", "busy", "moved", "others")
BAD = {
    "reset": "download failed (cut short)",
    "short": "download failed (cut short)",
    "404": "download failed (HTTP 404)",
    "410": "download failed (HTTP 410)",
    "500": "download failed (HTTP 500)",
    "away": "download failed (HTTP 429)",
    "zone": "download failed (HTTP 404)",
    "garbage": "download failed (answer is not HTTP)",
    "loop": "download failed (too many redirects)",
    "endless": "download refused (too large)",
    "bomb": "download refused (too large)",
    "huge": "download refused (too large)",
    "private": "download refused (address is not public)",
    "metadata": "download refused (address is not public)",
    "decimal": "download failed (not an http or https link)",
    "file": "download failed (not an http or https link)",
    **dict.fromkeys(sorted(HEADERS.keys() - {"others"}), "download refused (site opts out)"),
}
ELSEWHERE = {
    "http://10.0.0.1/x.jpg": "download refused (address is not public)",
    "http://[::ffff:10.0.0.1]/x.jpg": "download refused (address is not public)",
    "http://2130706433/x.jpg": "download failed (not an http or https link)",
    "http://127.0.0.1:1/x.jpg": "download failed (no connection)",
    "http://nowhere.invalid/x.jpg": "download failed (host not found)",
    "ftp://example.com/x.jpg": "download failed (not an http or https link)",
    "no link": "download failed (not an http or https link)",
    None: "download failed (not an http or https link)",
}


def test_every_fault_has_its_reason_and_affects_no_other_link(
    tmp_path: Path, server: tuple[ImageServer, int], port: int
) -> None:
    faults = [*GOOD, *BAD]
    urls: list[Any] = [f"http://127.0.0.{2 + n}:{port}/{fault}/{n}.jpg" for n, fault in enumerate(faults)]
    table = write_table(tmp_path, [*urls, *ELSEWHERE])
    found = outcomes(table, timeout=300.0, retries=1, max_mb=1.0)
    assert dict(zip(faults, found, strict=False)) == {
        **{fault: image(number) for number, fault in enumerate(GOOD)},
        **BAD,
    }
    assert dict(zip(ELSEWHERE, found[len(faults) :], strict=True)) == ELSEWHERE

    asked = Counter(path.split("/")[1] for path in server[0].seen.elements())
    assert TARGETS.keys() - {"moved", "loop"} <= asked.keys(), "a redirect was not requested"
    once = ("404", "410", "away", "huge", "noai", "private", "file")
    assert {fault: asked[fault] for fault in once} == dict.fromkeys(once, 1)
    twice = ("500", "flaky", "busy", "dropped", "short")
    assert {fault: asked[fault] for fault in twice} == dict.fromkeys(twice, 2)


def test_a_host_that_is_silent_or_too_slow_is_given_up(
    tmp_path: Path, server: tuple[ImageServer, int], port: int
) -> None:
    urls = [f"http://127.0.0.1:{port}/{fault}/1.jpg" for fault in ("drip", "hang")]
    assert outcomes(write_table(tmp_path, urls), timeout=0.7, retries=1) == ["download failed (timed out)"] * 2
    assert server[0].seen["/hang/1.jpg"] <= 2


def test_a_content_length_that_is_too_short_spoils_no_other_download(tmp_path: Path, port: int) -> None:
    """The rest of the image comes before the next answer on the same connection."""
    urls = [f"http://127.0.0.1:{port}/{'long' if n == 2 else 'ok'}/{n}.jpg" for n in range(8)]
    found = outcomes(write_table(tmp_path, urls), connections=1)
    whole = [n for n in range(8) if found[n] == image(n)]
    assert whole == [0, 1, 3, 4, 5, 6, 7]
    assert found[2] != image(2)


def test_loopback_is_refused_unless_it_is_allowed(tmp_path: Path, server: tuple[ImageServer, int], port: int) -> None:
    urls = [f"http://{host}:{port}/ok/1.jpg" for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0")]
    refused = "download refused (address is not public)"
    assert outcomes(write_table(tmp_path, urls), allow_loopback=False) == [refused] * 4
    assert not server[0].seen


def test_a_host_is_looked_up_once_and_only_its_allowed_addresses_are_used(
    tmp_path: Path, server: tuple[ImageServer, int], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the look-up is replaced, since no name server would give such answers."""
    answers = {"inside.test": ["10.0.0.7", "169.254.169.254"], "mixed.test": ["192.168.1.1", "127.0.0.1"]}
    asked: Counter[str] = Counter()

    def look_up(host: str, port: int, *_: object, **__: object) -> list[Any]:
        asked[host] += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    urls = [f"http://{host}:{port}/ok/1.jpg" for host in answers]
    assert outcomes(write_table(tmp_path, urls)) == ["download refused (address is not public)", image(1)]
    assert asked == {"inside.test": 1, "mixed.test": 1}, "the address checked may not be the one connected to"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1"),
        *("64:ff9b::7f00:1", "2002:7f00:1::", "2130706433", "localhost"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not allowed_addresses(allow_loopback=False)(address)


def test_public_addresses_are_allowed() -> None:
    allowed = allowed_addresses(allow_loopback=False)
    assert all(map(allowed, ("93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822")))


def test_checksums_are_checked(tmp_path: Path, port: int) -> None:
    urls = [f"http://127.0.0.1:{port}/ok/{n}.jpg" for n in range(6)]
    sha256: list[str | None] = [hashlib.sha256(image(n)).hexdigest() for n in range(6)]
    md5 = [hashlib.md5(image(n)).hexdigest() for n in range(6)]
    sha256[1:4] = ["0" * 64, None, hashlib.sha256(image(3)).hexdigest().upper()]
    md5[4], md5[5] = "", md5[0]
    found = outcomes(write_table(tmp_path, urls, sha256=sha256, md5=md5))
    wrong = "download refused (checksum differs)"
    assert found == [image(0), wrong, image(2), image(3), image(4), wrong]


def test_concurrent_requests_are_bounded_per_host_and_in_total(tmp_path: Path) -> None:
    with serving(image) as (server, port):
        urls = [f"http://127.0.0.{(1, 1, 1, 2, 3)[n % 5]}:{port}/late/{n}.jpg" for n in range(45)]
        assert outcomes(write_table(tmp_path, urls), connections=5, per_host=2) == [image(n) for n in range(45)]
    assert set(server.most.values()) == {2}
    assert 3 < server.most_at_once <= 5


def test_memory_is_bounded_but_the_first_link_never_waits_for_it(port: int) -> None:
    """The first link needs a second attempt, and the others could fill the memory that it needs."""
    size = len(image(0))
    waiting = most = 0

    async def work(client: Client, number: int, memory: HeldMemory) -> bytes:
        nonlocal waiting, most
        fault = "flaky" if number == 100 else "ok"
        data = await client.fetch(f"http://127.0.0.1:{port}/{fault}/{number}.jpg", memory)
        waiting += len(data)
        most = max(most, waiting)
        return data

    for number, data in enumerate(
        prefetched(range(100, 200), work, Limits(connections=4, allow_loopback=True), most_bytes=6 * size), 100
    ):
        assert data == image(number)
        waiting -= len(data)
        if number == 101:
            time.sleep(0.5)  # time to download as much as there is room for
    handed_over, held, under_way = 32 * size, 6 * size, 4 * size
    assert most <= handed_over + held + under_way


def test_an_error_in_the_work_is_raised_and_ends_the_thread(port: int) -> None:
    async def work(client: Client, number: int, memory: HeldMemory) -> bytes:
        if number == 5:
            raise RuntimeError("five")
        return await client.fetch(f"http://127.0.0.1:{port}/ok/{number}.jpg", memory)

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="five"):
        list(prefetched(range(10), work, Limits(allow_loopback=True)))
    assert set(threading.enumerate()) <= before


def test_columns_are_found_by_their_usual_names(tmp_path: Path, port: int) -> None:
    link = f"http://127.0.0.1:{port}/ok/3.jpg"
    pq.write_table(
        pa.table({"uid": ["u1"], "url": [link], "text": ["a cat"], "clip": [0.3], "vector": [[0.1, 0.2]]}),
        tmp_path / "datacomp.PARQUET",
    )
    (tmp_path / "mine.CSV").write_text(f'url,caption\n{link},"a dog, asleep"\n{link},\n')
    (tmp_path / "more.jsonl").write_text(json.dumps({"url": link, "TEXT": "a bird"}) + "\n\nnot json\n\n")
    source = UrlSource([tmp_path], allow_loopback=True)
    items = list(source)
    assert source.size == source.position == 5
    records = [item for item in items if isinstance(item, Record)]
    assert [(r.key, list(r.captions), r.image == image(3), r.where, r.source) for r in records] == [
        ("u1", ["a cat"], True, "datacomp.PARQUET:0", "datacomp"),
        ("mine-000000000", ["a dog, asleep"], True, "mine.CSV:0", "mine"),
        ("mine-000000001", [""], False, "mine.CSV:1", "mine"),
        ("more-000000000", ["a bird"], True, "more.jsonl:0", "more"),
    ]
    assert dict(records[0].fields) == {"uid": "u1", "url": link, "clip": 0.3}
    assert [(item.reason, item.where) for item in items if isinstance(item, Dropped)] == [
        ("annotation is malformed", "more.jsonl:1")
    ]
    with pytest.raises(UserError, match="say which with --caption-column"):
        UrlSource([write_table(tmp_path, [link]).rename(tmp_path / "a.parquet")], caption_column="alt")


def test_without_a_network_the_run_stops_and_drops_nothing(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["http://127.0.0.1:1/x.jpg"] * (OUTAGE + 5))
    argv = ["shard", "urls", str(table), "--allow-loopback", "--retries", "0", "--per-host", "64"]
    assert main([*argv, "--workers", "1", "--out", str(tmp_path / "out")]) == ExitCode.REQUEUE
    assert not (tmp_path / "out").exists()


def test_a_table_becomes_shards_in_one_pass_and_a_retry(tmp_path: Path, port: int) -> None:
    faults = ("ok", "later", "html", "ok", "ok", "ok")
    urls = [f"http://127.0.0.1:{port}/{fault}/{n}.jpg" for n, fault in enumerate(faults)]
    out = tmp_path / "out"
    argv = ["shard", "urls", str(write_table(tmp_path, urls)), "--allow-loopback", "--workers", "1", "--out", str(out)]
    assert main([*argv, "--longest-side", "60"]) == 0
    rows = read_rows(out)
    assert [row["key"] for row in rows] == [f"links-{n:09d}" for n in (0, 3, 4, 5)]
    assert {(row["width"], row["height"]) for row in rows} == {(60, 45)}
    dropped = json.loads((out / "yield.json").read_text())["dropped"]
    assert dropped == {"download failed (HTTP 404)": 1, "not an image": 1}
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert listed[0]["where"] == "links.parquet:1"
    assert listed[0]["detail"] == f"{urls[1]}: Not Found"

    assert main(["retry", str(out), "--workers", "1"]) == 0
    assert [row["key"] for row in read_rows(out)][4:] == ["links-000000001"]
    assert json.loads((out / "yield.json").read_text())["dropped"] == {"not an image": 1}


def test_a_damaged_table_is_read_from_the_damage_onwards_once_it_is_mended(tmp_path: Path, port: int) -> None:
    links = [f"http://127.0.0.1:{port}/ok/{n}.jpg" for n in range(6)]
    sound = pa.table({"url": links, "text": [f"caption {n}" for n in range(6)]})
    table, out = tmp_path / "links.parquet", tmp_path / "out"
    pq.write_table(sound, table, row_group_size=2, use_dictionary=False)
    content, about = bytearray(table.read_bytes()), pq.read_metadata(table).row_group(1).column(0)
    page = slice(about.data_page_offset, about.data_page_offset + about.total_compressed_size)
    content[page] = bytes(about.total_compressed_size)
    table.write_bytes(content)
    argv = ["shard", "urls", str(table), "--allow-loopback", "--workers", "1", "--out", str(out)]
    assert main(argv) == 0
    assert len(read_rows(out)) == 2
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["reason"], line["where"]) for line in listed] == [(DAMAGED, "links.parquet")]

    pq.write_table(sound, table, row_group_size=2)
    assert main(["retry", str(out), "--workers", "1"]) == 0
    assert [row["key"] for row in read_rows(out)] == [f"links-{n:09d}" for n in range(6)]
    report = json.loads((out / "yield.json").read_text())
    assert (report["read"], report["kept"], report["dropped"]) == (6, 6, {})


def test_pieces_of_tables_make_up_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a piece begins or ends within a row group. No link is valid, so each row gives a `Dropped`."""
    monkeypatch.setattr("data_tools.readers.urls.UNIT_ROWS", 7)
    links = [f"no link {n}" for n in range(50)]
    pq.write_table(pa.table({"url": links, "text": links}), tmp_path / "a.parquet", row_group_size=20)
    (tmp_path / "b.csv").write_text("url,text\n" + "".join(f"{link},{link}\n" for link in links[:10]))
    source = UrlSource([tmp_path])
    whole = [item.where for item in source]
    assert len(whole) == 60
    starts = [start for start, _ in source.units()]
    assert starts == [*((0, row) for row in range(0, 50, 7)), (1, 0), (1, 7)]
    ends: list[tuple[int, ...] | None] = [*starts[1:], None]
    pieces = [
        item.where for start, end in zip([(), *starts[1:]], ends, strict=True) for item in source.read(start, end)
    ]
    assert pieces == whole


def test_a_killed_run_does_not_download_finished_parts_again(
    tmp_path: Path, server: tuple[ImageServer, int], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run is killed while it waits for link 50, when two parts of 20 links are finished."""
    faults = {7: "404", 50: "stuck"}
    urls = [f"http://127.0.0.1:{port}/{faults.get(n, 'ok')}/{n}.jpg" for n in range(70)]
    argv = ["shard", "urls", str(write_table(tmp_path, urls)), "--allow-loopback", "--workers", "1", "--shard-mb", "1"]
    code = "import data_tools.readers.urls as u; u.UNIT_ROWS = 20; import data_tools.__main__ as m; m.main()"
    process = subprocess.Popen([sys.executable, "-c", code, *argv, "--out", str(tmp_path / "out")], cwd=ROOT)
    while not server[0].seen["/stuck/50.jpg"]:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()

    monkeypatch.setattr("data_tools.readers.urls.UNIT_ROWS", 20)
    assert main([*argv, "--out", str(tmp_path / "out"), "--connections", "16"]) == 0
    asked = {int(path.split("/")[2].partition(".")[0]): count for path, count in server[0].seen.items()}
    assert [asked[number] for number in range(40)] == [1] * 40
    assert asked[50] == 2
    assert main([*argv, "--out", str(tmp_path / "uninterrupted"), "--connections", "16"]) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "uninterrupted")
    assert len(read_rows(tmp_path / "out")) == 69


def test_the_help_names_the_columns_that_are_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["shard", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for columns in (LINK_COLUMNS, CAPTION_COLUMNS):
        assert f"(default: the first of {', '.join(columns)})" in said
