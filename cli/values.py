"""Option values of several numbers, written with commas between."""

from __future__ import annotations

import math

from vaeprune.errors import UsageError


def integers(text: str, option: str) -> list[int]:
    """A comma-separated list of whole numbers; raises UsageError."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option}: got {text!r}, expected whole numbers with commas between, like 1,4") from None


def sizes(text: str, option: str) -> list[int]:
    """A shape: positive whole numbers with commas between; raises UsageError."""
    found = integers(text, option)
    if not found or min(found) < 1:
        raise UsageError(f"{option}: got {text!r}, expected positive sizes with commas between, like 1,28,28")
    return found


def numbers(text: str, option: str) -> tuple[float, float]:
    """Two numbers, the lower first; raises UsageError."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise UsageError(f"{option}: got {text!r}, expected two numbers, the lower first, like -1,1")
    return low, high
