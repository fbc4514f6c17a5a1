"""A server on loopback, for as long as a context lasts."""

import contextlib
import threading


@contextlib.contextmanager
def serving(server):
    """Answers the requests to a server of `socketserver` in a thread, and closes it at the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
