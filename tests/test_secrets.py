"""Nothing that looks like a secret is committed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a token of GitHub": r"\b(gh[pousr]_[0-9A-Za-z]{36,}|github_pat_[0-9A-Za-z_]{60,})",
    "a token of Hugging Face": r"\bhf_[0-9A-Za-z]{30,}",
    "a token of Slack": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "a key of an API": r"\bsk-[0-9A-Za-z_-]{32,}",
    "a web token": r"\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}",
    "a password in a URL": r"\b[a-z][a-z0-9+]*://[^/\s:@\"'{}$<>]+:[^/\s:@\"'{}$<>]+@[a-z0-9]",
    "a value for a secret": r"(?i)\b(password|secret_?key|api_?key|token)[\"']?\s*[:=]\s*[\"'][^\"'{}$<>\s]{12,}[\"']",
}


def committed() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    return [name for name in listed.stdout.split("\0") if name]


def found(text: str) -> Iterator[str]:
    for what, pattern in SECRETS.items():
        if re.search(pattern, text):
            yield what


def test_no_secret_is_committed() -> None:
    names = committed()
    assert len(names) > 500
    for name in names:
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 4e6:
            what = list(found(path.read_text(encoding="utf-8", errors="replace")))
            assert what == [] or name == "tests/test_secrets.py", f"{name} holds {', '.join(what)}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("id = AKIA" + "QWERTYUIOPASDFGH", "a key of AWS"),
        ("hf_" + "aB3" * 11, "a token of Hugging Face"),
        ("ghp_" + "aB3" * 12, "a token of GitHub"),
        ("postgres://me:" + "hunter2@db", "a password in a URL"),
        ("api_key = " + '"0123456789abcdef"', "a value for a secret"),
    ],
)
def test_the_search_finds(text: str, what: str) -> None:
    assert list(found(text)) == [what]
