"""An object store that steps read shards from and write them to: a server with S3's protocol.

It is a process on this machine or, with a cluster, a separate node. Between trials its content is kept in a folder.

    python -m benchmarks.pipeline.store put|get FOLDER

copies the folder into the empty store at AWS_ENDPOINT_URL, or the store into the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.conftest import ROOT

NODES = str(ROOT / "tests/cluster/nodes.sh")
BUCKET, PORT = "faults", 8631
GONE_SECONDS = 20.0
PATIENCE = 120.0


class ObjectStore:
    """Args:
    site: of a cluster, in which it is the node `store`; None = it is on this machine's loopback.
    """

    def __init__(self, site: Path | None) -> None:
        self._site = site
        self._on = ["bash", NODES, "on", str(site), "store"] if site else []
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://{_address(site) if site else '127.0.0.1'}:{PORT}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @contextmanager
    def holding(self, folder: Path) -> Iterator[None]:
        """Run the store with the folder's content, and copy its content back into the folder when the block ends."""
        os.environ.update(self.variables)  # submitting looks into the store too
        if self._site:
            subprocess.run(["bash", NODES, "start", str(self._site), "store"], check=True)
        host = "0.0.0.0" if self._site else "127.0.0.1"
        command = [*self._on, sys.executable, "-m", "moto.server", "--host", host, "--port", str(PORT)]
        with open(os.devnull, "wb") as nowhere:
            self._server = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        try:
            self._run("put", folder)
            yield
            self._run("get", folder)
        finally:
            for process in [*psutil.Process(self._server.pid).children(recursive=True), self._server]:
                process.kill()
            self._server.wait()
            if self._site:
                subprocess.run(["bash", NODES, "kill", str(self._site), "store"], check=True)

    def cut(self) -> None:
        """Cut it off for a while; on this machine, where there is no link to cut, it stops answering."""
        if self._site:
            subprocess.run(["bash", NODES, "cut", str(self._site), "store"], check=True)
            time.sleep(GONE_SECONDS)
            subprocess.run(["bash", NODES, "heal", str(self._site), "store"], check=True)
            return
        server = psutil.Process(self._server.pid)
        server.suspend()
        time.sleep(GONE_SECONDS)
        server.resume()

    def _run(self, verb: str, folder: Path) -> None:
        words = [*self._on, sys.executable, "-m", __name__, verb, str(folder)]
        subprocess.run(words, cwd=ROOT, check=True, timeout=PATIENCE)


def _address(site: Path) -> str:
    """The store's address in the cluster's network, whose list of hosts it joins."""
    hosts = site / "hosts"
    network = next(line for line in hosts.read_text().splitlines() if not line.startswith("127."))
    address = f"{network.split()[0].rpartition('.')[0]}.99"
    if " store" not in hosts.read_text():
        with hosts.open("a") as file:  # every node reads it
            file.write(f"{address} store\n")
    return address


def main() -> None:
    """Copy, once the server has started."""
    import s3fs

    verb, folder = sys.argv[1], Path(sys.argv[2])
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            store = s3fs.S3FileSystem(skip_instance_cache=True)
            if not store.exists(BUCKET):
                store.mkdir(BUCKET)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    if verb == "get":
        shutil.rmtree(folder, ignore_errors=True)
        for path in store.find(BUCKET):
            target = folder / path.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(path, str(target))
        return
    for file in folder.rglob("*"):
        if file.is_file():
            store.put_file(str(file), f"{BUCKET}/{file.relative_to(folder)}")


if __name__ == "__main__":
    main()
