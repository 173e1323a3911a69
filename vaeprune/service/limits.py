"""How much one request, and all of them together, may ask of the service."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vaeprune.errors import UsageError

_BYTES_OF_A_NUMBER = 32  # as text: a sign, 17 digits, an exponent, a comma, brackets and blanks
_LEAST_BODY = 64 * 1024
_BODIES_AT_ONCE = 16


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    `rows`: of a request, and of a call of onnxruntime that answers several. `body_bytes`: of a request's body.
    `queue`: requests that are there whole and not yet answered. `connections`: open at once. `seconds`: for a request's
    head, for its body, and for taking an answer.
    """

    rows: int = 256
    body_bytes: int = 8 * 1024 * 1024
    queue: int = 128
    connections: int = 512
    seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("rows", "body_bytes", "queue", "connections"):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"{name}: got {value}, expected at least 1")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"seconds: got {self.seconds}, expected a positive number")

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies that are held at once."""
        return _BODIES_AT_ONCE * self.body_bytes


def body_bytes_for(rows: int, numbers_in_a_row: int) -> int:
    """Bytes that a body of as many rows may have, written out as JSON with all digits."""
    return max(_LEAST_BODY, rows * numbers_in_a_row * _BYTES_OF_A_NUMBER)
