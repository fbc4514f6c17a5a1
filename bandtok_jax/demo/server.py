"""The server of the page: HTTP on loopback for programs of this machine, and for no other page of the browser.

A page from elsewhere can send requests to loopback too. Requests that name another host are refused (DNS rebinding),
and so are those that compute or change something and come from another origin. All content of a session needs its name,
which is random.
"""

import contextlib
import functools
from http import server
import os
import signal
import socketserver
import sys
import tempfile
import traceback
from typing import Any

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.demo.handler import Handler
from bandtok_jax.demo.site import HOST, Site


class Server(server.ThreadingHTTPServer):
    """A server of the page, with a thread for each connection.

    Args:
      site: its content.
      port: 0 for a free one.

    Raises:
      ValueError: the port is not free, or there is no such port.
    """

    daemon_threads = True  # a browser keeps connections open

    def __init__(self, site: Site, port: int = 0):
        if not 0 <= port <= 65_535:
            raise ValueError(f"--port={port}: give a number from 1 to 65535, or leave it out for a free port")
        try:
            super().__init__((HOST, port), functools.partial(Handler, site))
        except OSError as error:
            raise ValueError(f"--port={port}: {error.strerror}; choose another, or leave it out") from error
        site.port = self.server_port

    def server_bind(self) -> None:
        """Binds the port, without the look-up of a name that HTTPServer makes."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints an error that is a fault of this program; those of connections that end early are not."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            traceback.print_exc()


def serve(codec: Codec, title: str, port: int, open_page: bool) -> None:
    """Serves the page until Ctrl-C or SIGTERM, and prints its address.

    Args:
      codec, title: see `Site`.
      port: see `Server`.
      open_page: also opens it in a browser, where there is a display.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="bandtok-demo-", ignore_cleanup_errors=True) as folder:
            site = Site(codec, title, folder)
            with Server(site, port) as running:
                print(f"{site.address}  (Ctrl-C ends it)", flush=True)
                if open_page and _has_display():
                    import webbrowser

                    webbrowser.open(site.address)
                with contextlib.suppress(KeyboardInterrupt):
                    running.serve_forever(poll_interval=0.2)
                site.studio.stop()
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_display() -> bool:
    """Returns whether a browser would open in a window of its own, and not in the terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
