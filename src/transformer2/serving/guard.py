"""Who may ask, and how much: the key, the limits, and no pages of other sites in a browser on this machine."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transformer2.serving.faults import Fault

__all__ = ["LOOPBACK", "Guard", "Limits"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
GUARDED = ("/v1", "/metrics", "/openapi.json")


@dataclass(frozen=True)
class Limits:
    """What a server takes on; what is more is refused.

    Attributes:
        body: Bytes of a request.
        tokens: Budget of an answer; None is what the model has room for.
        queue: Answers that wait for a row of the running batch.
        seconds: From a request to the end of its answer.
        answers: Answers to one request (`n` x prompts).
        pixels: Of the different pictures of one request together; decoding takes seconds and memory for each million.
    """

    body: int = 4 << 20
    tokens: int | None = None
    queue: int = 256
    seconds: float = 600.0
    answers: int = 128
    pixels: int = 25_000_000


class Guard:
    """An ASGI app in front of another.

    Args:
        app: The other.
        api_key: What callers must know; None asks for nothing.
        hosts: Names under which the server may be addressed; None takes any. A server on the loopback interface takes
            its own names alone: a page whose name is made to resolve to 127.0.0.1 (DNS rebinding) has another.
        body: Bytes of a request.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Collection[str] | None, body: int) -> None:
        self.app, self.hosts, self.body = app, hosts, body
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "http" and (fault := self._fault(scope["path"], Headers(scope=scope))):
            await fault.response()(scope, receive, send)
        else:  # HEAD is GET without the body, which the HTTP server leaves out; FastAPI's routes do not know it
            method = {"method": "GET"} if scope.get("method") == "HEAD" else {}
            await self.app({**scope, **method}, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        """The same, up to the limit: a request need not announce how long it is."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.body:
                raise HTTPException(413, f"the request has more than the {self.body} bytes of this server")
            return message

        return counted

    def _fault(self, path: str, headers: Headers) -> Fault | None:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return Fault(403, f"this server is not {host[:100]!r}; address it as localhost", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return Fault(403, "other sites' pages may not use this server", "wrong_origin")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self.body:
            return Fault(413, f"the request has {length[:20]} bytes, more than the {self.body} of this server")
        if self._key is None or not path.startswith(GUARDED):
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key):
            return None
        message = "give this server's API key: Authorization: Bearer KEY"
        return Fault(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
