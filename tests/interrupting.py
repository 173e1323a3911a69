"""Ctrl-C in the middle of a training."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from vaeprune.training.objective import Objective


def interrupting(step: int) -> Any:
    """Press Ctrl-C within that minibatch."""
    count, compute = [0], Objective.__call__

    def press(self: Objective, *arguments: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            raise KeyboardInterrupt
        return compute(self, *arguments, **named)

    return patch.object(Objective, "__call__", press)
