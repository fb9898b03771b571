"""Stop signals to commands in the background, for which a shell has the signal of Ctrl-C ignored."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT


def start_in_background(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


@pytest.mark.parametrize(("number", "workers", "code"), [(signal.SIGINT, "2", 130), (signal.SIGTERM, "1", 75)])
def test_sharding_stops_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, workers: str, code: int
) -> None:
    source, out, work = tmp_path / "source", tmp_path / "shards", tmp_path / "work"
    source.mkdir()
    work.mkdir()
    monkeypatch.setenv("TMPDIR", str(work))
    Image.effect_noise((1200, 1200), 50).convert("RGB").save(source / "noise.jpg")
    records = ({"id": str(number), "image": "noise.jpg", "caption": "noise"} for number in range(5000))
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    process = start_in_background(
        *("data_tools", "shard", "folder", str(source)),
        *("--out", f"file://{out}", "--workers", workers, "--shard-mb", "1000"),
    )
    try:
        deadline = time.monotonic() + 100
        while not any(path.is_file() for path in work.glob("mvlm-shards-*/**/*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and "the same command again" in errors and "Traceback" not in errors
    assert not (out / "manifest.json").exists()
    assert not any(out.glob(".state/*.part"))  # it does not wait for unfinished shards
    assert not any(work.iterdir())


def test_a_watch_ends_at_ctrl_c(tmp_path: Path) -> None:
    process = start_in_background("mvlm", "watch", str(tmp_path / "run"), "--json")
    try:
        assert process.stdout and "waiting" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and not errors
