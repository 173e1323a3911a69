"""Libraries that log and warn about their own internals, quiet for a while; exceptions still come through."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Nothing from these loggers ("" is the root), nor a warning about torch's own deprecated LeafSpec."""
    found = [logging.getLogger(name or None) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)
