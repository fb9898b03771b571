"""Ctrl-C's signal, sent to commands that were started in the background by a shell which has them ignore it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def test_sharding_stops_and_says_how_to_resume(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "shards"
    source.mkdir()
    Image.effect_noise((1200, 1200), 50).convert("RGB").save(source / "noise.jpg")
    records = ({"id": str(number), "image": "noise.jpg", "caption": "noise"} for number in range(5000))
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    process = start_in_background("data_tools", "shard", "folder", str(source), "--out", str(out), "--workers", "1")
    try:
        deadline = time.monotonic() + 100
        while list(tmp_path.iterdir()) == [source]:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "the same command again" in errors and "Traceback" not in errors
    assert not (out / "manifest.json").exists()


def test_a_watch_ends(tmp_path: Path) -> None:
    process = start_in_background("mvlm", "watch", str(tmp_path / "run"), "--json")
    try:
        assert process.stdout and "waiting" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and not errors
