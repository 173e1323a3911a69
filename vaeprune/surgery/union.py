"""Sets that are found by joining pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Union:
    """Channels that belong together, found by joining pairs (Galler and Fischer's forest)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}
        self._obstacles: dict[Any, str] = {}

    def add(self, node: Any, entry: tuple[str, int, int]) -> None:
        """A channel has an entry in a tensor."""
        self.join(node, ("entry", *entry))

    def join(self, a: Any, b: Any) -> None:
        """Two belong together."""
        a, b = self._root(a), self._root(b)
        if a != b:
            self._parent[b] = a
            if b in self._obstacles:
                self._obstacles.setdefault(a, self._obstacles[b])

    def hold(self, node: Any, why: str) -> None:
        """A channel has to stay."""
        self._obstacles.setdefault(self._root(node), why)

    def members(self) -> Iterator[tuple[list[Any], str | None]]:
        """Each set with its obstacle."""
        sets: dict[Any, list[Any]] = {}
        for node in list(self._parent):
            sets.setdefault(self._root(node), []).append(node)
        for root, nodes in sets.items():
            yield nodes, self._obstacles.get(root)

    def _root(self, node: Any) -> Any:
        parent = self._parent.setdefault(node, node)
        while parent != self._parent[parent]:
            self._parent[node] = parent = self._parent[self._parent[parent]]
            node = parent
        return parent
