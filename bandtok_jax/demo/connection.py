"""One connection of HTTP: its checks, its errors as one line, and its answers."""

from collections.abc import Iterator
import contextlib
from http import HTTPStatus, server
import json
import re
import sys
import traceback
from typing import Any
from urllib import parse

from bandtok_jax.demo.sessions import Unknown
from bandtok_jax.demo.site import Site
from bandtok_jax.demo.studio import Stopped
from bandtok_jax.runtime import expect, foreign_errors, untrusted

MOST_JSON_BYTES = 1 << 16
SILENT_SECONDS = 60.0  # after which a connection ends; our choice


class Refusal(Exception):
    """A request that is refused with a status and a line."""

    def __init__(self, status: HTTPStatus, line: str):
        super().__init__(line)
        self.status = status


class Connection(server.BaseHTTPRequestHandler):
    """The checks and the answers of all requests.

    Args:
      site: content of the answers.
      arguments: see the base class, which also handles the connection.
    """

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "bandtok", ""
    timeout = SILENT_SECONDS

    def __init__(self, site: Site, *arguments: Any):
        self.site = site
        self._has_begun = self._closes = False
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        """Prints nothing: the terminal is for errors."""

    @property
    def _path(self) -> str:
        return parse.urlsplit(self.path).path

    def _query(self, name: str) -> str:
        return parse.parse_qs(parse.urlsplit(self.path).query).get(name, [""])[0]

    def _check_host(self) -> None:
        if self.headers.get("Host") not in self.site.hosts:
            self.close_connection = True
            raise Refusal(HTTPStatus.FORBIDDEN, f"the page of another host: open {self.site.address}")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Sends an error as one line. After the head of an answer, the connection ends before its end."""
        self._has_begun = False
        try:
            yield
        except (ConnectionError, TimeoutError, Stopped):
            self.close_connection = True
        except Refusal as error:
            self._send_error(error.status, error)
        except Unknown as error:
            self._send_error(HTTPStatus.NOT_FOUND, error.args[0])
        except (ValueError, OSError) as error:
            self._send_error(HTTPStatus.BAD_REQUEST, error)
        except Exception as error:
            line = foreign_errors.explain(error, "generate" if self._path == "/generate" else "")
            if line is None:
                traceback.print_exc()
                line = f"a fault of this program, {type(error).__name__}: its terminal has more"
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, line)

    def _send_error(self, status: HTTPStatus, message: object) -> None:
        if self._has_begun:
            print(f"bandtok: error: {untrusted.one_line(message)}", file=sys.stderr)
            self.close_connection = True
            return
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._send_json({"error": untrusted.one_line(message)}, status)

    def _head(self, kind: str, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> None:
        self._has_begun = True
        self.send_response(status)
        headers |= {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, policy: bool = False) -> None:
        headers = {"Content_Security_Policy": self.site.policy} if policy else {}
        self._head(kind, status, Content_Length=str(len(body)), **headers)
        self.wfile.write(body)

    def _send_json(self, content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _body_bytes(self, most: int, part: str) -> int:
        """Returns the length of the body; a body that is too long is not read."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, f"{part} without its length: send Content-Length")
        if int(length) > most:
            limit = f"{most / 1e6:.0f} MB" if most >= 1e6 else f"{most} bytes"
            line = f"{part} of {int(length) / 1e6:.1f} MB: the page takes at most {limit}"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
        return int(length)

    def _read_json(self, schema: expect.Check) -> dict[str, Any]:
        body = self.rfile.read(self._body_bytes(MOST_JSON_BYTES, "a request"))
        self.close_connection = self._closes
        if self.headers.get_content_type() != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request that is no JSON: send application/json")
        return untrusted.parse_json(body, "the request", schema, cure="reload the page")
