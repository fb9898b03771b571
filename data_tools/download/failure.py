"""Why an image was not downloaded, in a few fixed phrases that are counted."""

from __future__ import annotations

NO_LINK = "download failed (not an http or https link)"
NO_HOST = "download failed (host not found)"
NO_CONNECTION = "download failed (no connection)"
CERTIFICATE = "download failed (certificate not valid)"
TIMED_OUT = "download failed (timed out)"
LOST = "download failed (connection lost)"
CUT = "download failed (cut short)"
NO_HTTP = "download failed (answer is not HTTP)"
BUSY = "download failed (host asks to come back later)"
REDIRECTS = "download failed (too many redirects)"
HTTP = "download failed (HTTP {})"
NOT_PUBLIC = "download refused (address is not public)"
OPTED_OUT = "download refused (site opts out)"
TOO_LARGE = "download refused (too large)"
OTHER_CONTENT = "download refused (checksum differs)"

UNREACHABLE = (NO_HOST, NO_CONNECTION)
"""What every link fails with when this machine has lost its network."""


class Failure(Exception):
    """An image that was not downloaded. If `transient`, another attempt in `wait` seconds or more may help."""

    def __init__(self, reason: str, detail: str = "", transient: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.transient, self.wait = reason, detail, transient, wait
