"""Connections that may not wait for ever: for a request's head, for its body, or for somebody to take an answer.

uvicorn limits none of these. Where all places are taken, whoever has been waited for longest makes room, so that slow
clients, however many, keep nobody else out.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any, Literal

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vaeprune.service.limits import Limits
from vaeprune.service.refusals import CONTENT_TYPE, Refusal, bad_request, overloaded, raw_response, too_slow

_Phase = Literal["request", "body", "answer", "work"]
_TICK = 1.0  # seconds between two looks at a connection


class Connection(H11Protocol):
    """One connection of uvicorn's server, within `limits`."""

    def __init__(self, limits: Limits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = limits
        self._seen: tuple[int, _Phase] = (0, "request")
        self._since = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, if need be in the place of one that keeps us waiting."""
        others = len(self.connections)
        super().connection_made(transport)
        # asyncio does so for sockets that name TCP as their protocol, which those of `socket.create_server` do not;
        # without it the second part of an answer waits for the client to acknowledge the first, 40 ms on Linux
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer = self.loop.call_later(_TICK, self._look)
        if others >= self._limits.connections and not self._make_room():
            if others >= 2 * self._limits.connections:
                transport.abort()
            self.app = _refuse_all

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking at it."""
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets the same error object as everything else."""
        self._say(bad_request(msg, "send HTTP/1.1"))

    def timeout_keep_alive_handler(self) -> None:
        """As uvicorn's, but an answer that nobody takes does not keep the connection."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _make_room(self) -> bool:
        """Drop the connection that has been waited for longest; False where all are at work."""
        waiting = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and other._phase() != "work"
            and not other.transport.is_closing()
        ]  # fmt: skip
        if not waiting:
            return False
        slowest = min(waiting, key=lambda other: other._waited_since())
        slowest._drop(overloaded("connections: all are taken, and this one was waited for longest"))
        return True

    def _phase(self) -> _Phase:
        """What we wait for: its next request, a body, that it takes an answer; or it waits for us."""
        if self.transport.get_write_buffer_size():
            return "answer"
        if self.cycle is None or self.cycle.response_complete:
            return "request"
        return "body" if self.cycle.more_body else "work"

    def _waited_since(self) -> float:
        """The time at which it came into the phase it is in."""
        now = (id(self.cycle), self._phase())
        if now != self._seen:
            self._seen, self._since = now, self.loop.time()
        return self._since

    def _look(self) -> None:
        waited = self.loop.time() - self._waited_since()
        if self.transport.is_closing() and waited > self._limits.seconds:
            self.transport.abort()
        elif waited > self._limits.seconds and self._phase() != "work":
            what = "body" if self._phase() == "body" else "request"
            self._drop(too_slow(what, self._limits.seconds))
        self._timer = self.loop.call_later(_TICK, self._look)

    def _drop(self, refusal: Refusal) -> None:
        """Close it; told why where a request had begun."""
        phase = self._phase()
        if phase == "answer":
            self.transport.abort()
        elif phase == "body" or self.conn.trailing_data[0]:
            self._say(refusal)
        else:
            self.transport.close()

    def _say(self, refusal: Refusal) -> None:
        if not self.transport.is_closing():
            self.transport.write(raw_response(refusal))
            self.transport.close()


async def _refuse_all(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that has room for nobody."""
    if scope["type"] != "http":
        return
    refusal = overloaded("connections: all are taken by requests that are being answered")
    headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    await send(
        {
            "type": "http.response.start",
            "status": HTTPStatus.SERVICE_UNAVAILABLE.value,
            "headers": [(b"content-type", CONTENT_TYPE.encode()), *headers],
        }
    )
    await send({"type": "http.response.body", "body": refusal.body()})
