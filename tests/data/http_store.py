"""A real HTTP server of shards on the loopback, which can be stopped and started again."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from mvlm.runtime.launch import free_port


class Handler(SimpleHTTPRequestHandler):
    store: "Store"

    def log_message(self, *args):
        pass

    def do_GET(self):
        super().do_GET()
        if self.path.endswith(".arrow"):
            self.store.served()


class Store:
    """Serves a folder, on the same port whenever it is started."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = None

    def start(self, lasts=0):
        """Serve until `lasts` shards have been sent, or without end if it is 0."""
        self._left = lasts
        handler = type("Handler", (Handler,), {"store": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), partial(handler, directory=str(self.folder)))
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def served(self):
        self._left -= 1
        if self._left == 0:
            threading.Thread(target=self.stop).start()

    def stop(self):
        server, self.server = self.server, None
        if server:
            server.shutdown()
            server.server_close()
