"""Connected components by walking from every node, one link at a time."""

from __future__ import annotations

from collections.abc import Iterable


def connected(size: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """The component of each node, numbered as they are met from the smallest node on."""
    neighbours: list[set[int]] = [set() for _ in range(size)]
    for a, b in links:
        neighbours[a].add(b)
        neighbours[b].add(a)
    component = [-1] * size
    for start in range(size):
        if component[start] >= 0:
            continue
        number, waiting = max(component) + 1, [start]
        while waiting:
            node = waiting.pop()
            if component[node] < 0:
                component[node] = number
                waiting += neighbours[node]
    return component
