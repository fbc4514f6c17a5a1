"""The content that the server of the page answers from."""

import base64
import hashlib
import importlib.resources
import re

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.demo.sessions import Sessions
from bandtok_jax.demo.studio import Studio

HOST = "127.0.0.1"
PAGE = "page.html"


class Site:
    """The page, and the state behind it.

    Args:
      codec: with or without vocoder and language model.
      title: name of the model.
      folder: place of the files of the sessions.

    Attributes:
      page: the HTML of the page.
      policy: its content security policy.
      port: that of the server, which sets it.
    """

    def __init__(self, codec: Codec, title: str, folder: str):
        self.title, self.port = title, 0
        self.studio, self.sessions = Studio(codec), Sessions(folder)
        self.page = importlib.resources.files("bandtok_jax.demo").joinpath(PAGE).read_bytes()
        self.policy = content_security_policy(self.page.decode())

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts, with the port unless it is 80, by which a browser on this machine can name the server."""
        port = "" if self.port == 80 else f":{self.port}"
        return tuple(f"{name}{port}" for name in (HOST, "localhost"))

    @property
    def address(self) -> str:
        """The URL of the page."""
        return f"http://{self.hosts[0]}/"


def content_security_policy(page: str) -> str:
    """Returns the policy by which a page runs its own script and style alone, and asks no other server."""

    def source(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; connect-src 'self'; "
        "media-src 'self' blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
