"""Minimum cut by Dinic's algorithm (1970): levels by breadth first, blocking flows by depth first.

The cut with the smallest sink side is returned: what could stand on either side stands with the source.
"""

from __future__ import annotations

from collections import deque

UNBOUNDED = 1 << 60


class CutGraph:
    """A directed graph with integer capacities. Node 0 is the source, node 1 the sink."""

    source, sink = 0, 1

    def __init__(self) -> None:
        self._edges_of: list[list[int]] = [[], []]
        self._head: list[int] = []
        self._room: list[int] = []  # residual capacity; edge e and its reverse e ^ 1 are neighbours

    def add_node(self) -> int:
        """A new node's number."""
        self._edges_of.append([])
        return len(self._edges_of) - 1

    def add_edge(self, tail: int, head: int, capacity: int) -> None:
        """Cutting this edge (tail on the source side, head on the sink side) costs ``capacity``."""
        for start, end, room in ((tail, head, capacity), (head, tail, 0)):
            self._edges_of[start].append(len(self._head))
            self._head.append(end)
            self._room.append(room)

    def cut(self) -> tuple[int, frozenset[int]]:
        """Cost of a minimum cut, and the nodes on its sink side."""
        cost = 0
        while (level := self._levels())[self.sink] >= 0:
            unexplored = [0] * len(self._edges_of)
            while pushed := self._push(level, unexplored):
                cost += pushed
        return cost, self._nodes_that_reach_the_sink()

    def _levels(self) -> list[int]:
        level = [-1] * len(self._edges_of)
        level[self.source] = 0
        queue = deque([self.source])
        while queue:
            node = queue.popleft()
            for edge in self._edges_of[node]:
                head = self._head[edge]
                if self._room[edge] and level[head] < 0:
                    level[head] = level[node] + 1
                    queue.append(head)
        return level

    def _push(self, level: list[int], unexplored: list[int]) -> int:
        """Push flow along one path to the sink; ``unexplored`` remembers dead edges of this level graph."""
        path: list[int] = []
        node = self.source
        while node != self.sink:
            edges = self._edges_of[node]
            while unexplored[node] < len(edges):
                edge = edges[unexplored[node]]
                if self._room[edge] and level[self._head[edge]] == level[node] + 1:
                    break
                unexplored[node] += 1
            else:
                if not path:
                    return 0
                node = self._head[path.pop() ^ 1]
                unexplored[node] += 1
                continue
            path.append(edge)
            node = self._head[edge]
        pushed = min(self._room[edge] for edge in path)
        for edge in path:
            self._room[edge] -= pushed
            self._room[edge ^ 1] += pushed
        return pushed

    def _nodes_that_reach_the_sink(self) -> frozenset[int]:
        reached = {self.sink}
        stack = [self.sink]
        while stack:
            for edge in self._edges_of[stack.pop()]:
                tail = self._head[edge]
                if self._room[edge ^ 1] and tail not in reached:
                    reached.add(tail)
                    stack.append(tail)
        return frozenset(reached)
