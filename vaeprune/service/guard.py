"""Around the application: who may ask, and what is counted of every answer."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vaeprune.service.metrics import Metrics
from vaeprune.service.refusals import CONTENT_TYPE, Refusal, bad_request

OPEN = ("/", "/health", "/docs")  # and the page's files: they say nothing of the model
PAGE = "/page/"
_SAFE = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Guard:
    """Asks for `token` where there is one, else for a host name of this machine; counts answers by route.

    Without a token a page from elsewhere could give its own name our address and read what we say to it (DNS
    rebinding); its requests carry that name.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics, routes: Collection[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, frozenset(routes)
        self._token = None if token is None else b"bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_SAFE)
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, sent)
            else:
                await refusal_response(refusal)(scope, receive, sent)
        finally:
            if status:
                route = scope["path"] if scope["path"] in self._routes else "other"
                self._metrics.answered(route, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if self._token is None:
            host = headers.get("host", "").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if is_loopback(name.strip("[]")):
                return None
            return bad_request(
                f"host: got {host!r:.80}, this service answers to localhost alone", "start it with a token"
            )
        if scope["path"] in OPEN or scope["path"].startswith(PAGE):
            return None
        given = headers.get("authorization", "")
        scheme, _, token = given.partition(" ")
        if hmac.compare_digest(f"{scheme.lower()} {token.strip()}".encode("latin-1", "replace"), self._token):
            return None
        return Refusal(
            HTTPStatus.UNAUTHORIZED,
            f"authorization: {'is not the token of this service' if given else 'is missing'}",
            "send the header Authorization: Bearer TOKEN",
            {"www-authenticate": "Bearer"},
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refusal_response(refusal: Refusal) -> Response:
    """The answer that says no."""
    return Response(refusal.body(), refusal.status.value, refusal.headers, CONTENT_TYPE)
