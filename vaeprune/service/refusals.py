"""What the service says no with: a status, and the same error object that the commands print with --json."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from vaeprune.errors import one_line

CONTENT_TYPE = "application/json"
# written out, since Python's own names of 413 and 422 changed with RFC 9110
_KINDS = {
    400: "BadRequest",
    401: "Unauthorized",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    408: "RequestTimeout",
    413: "BodyTooLarge",
    415: "UnsupportedMediaType",
    422: "Unprocessable",
    429: "TooManyRequests",
    503: "ServiceUnavailable",
}


class Refusal(Exception):
    """A request that is not served. `status`: the HTTP status; `message` and `hint` as in VaepruneError."""

    def __init__(self, status: HTTPStatus, message: str, hint: str = "", headers: dict[str, str] | None = None) -> None:
        self.status, self.message, self.hint = status, one_line(message), one_line(hint)
        self.headers = headers or {}
        super().__init__(message)

    @property
    def kind(self) -> str:
        """The status in a word."""
        return _KINDS.get(self.status.value, "Refused")

    def body(self) -> bytes:
        """The error object as JSON."""
        return error_body(self.kind, self.message, self.hint)


def error_body(kind: str, message: str, hint: str = "") -> bytes:
    """{"error": {"type", "message", "hint"}} as JSON."""
    return json.dumps({"error": {"type": kind, "message": message, "hint": hint}}).encode()


def raw_response(refusal: Refusal) -> bytes:
    """A whole HTTP/1.1 response, for a connection on which no request has been read to its end."""
    body = refusal.body()
    lines = [
        f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}",
        f"content-type: {CONTENT_TYPE}",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in refusal.headers.items()),
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def bad_request(message: str, hint: str = "") -> Refusal:
    """400: what was sent cannot be read."""
    return Refusal(HTTPStatus.BAD_REQUEST, message, hint)


def unprocessable(message: str, hint: str = "") -> Refusal:
    """422: what was sent can be read, but makes no sense to this model."""
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, message, hint)


def too_large(limit: int) -> Refusal:
    """413: the body has more bytes than are taken."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"body: has more than {limit:,} bytes",
        "send fewer rows at once, or start the service with a larger --max-body",
        {"connection": "close"},
    )


def busy(queue: int) -> Refusal:
    """429: as many requests are being answered as may wait at once."""
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"queue: {queue} requests are waiting already",
        "send it again a little later",
        {"retry-after": "1"},
    )


def overloaded(what: str) -> Refusal:
    """503: there is no room for this connection or body."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        what,
        "send it again a little later",
        {"retry-after": "1", "connection": "close"},
    )


def too_slow(what: str, seconds: float) -> Refusal:
    """408: a request was not there in time."""
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, f"{what}: did not arrive within {seconds:g} seconds")


def schema() -> dict[str, Any]:
    """The error object for the OpenAPI document."""
    text = {"type": "string"}
    error = {
        "type": "object",
        "required": ["type", "message", "hint"],
        "properties": {"type": text, "message": text, "hint": text},
    }
    return {"type": "object", "required": ["error"], "properties": {"error": error}}
