"""More threads for the last statement of a run, as many as there are workers that stand idle.

The run's end is what is waited for, and nobody else wants those processors at the moment. When more statements come,
each has its own worker as ever; what was given is not taken back before its statement has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from gateway.runtime import Runtime
from policies.calls import Call
from policies.workflow import Workflow

LEAST = -8
"""Calls of this priority, statements ahead of their calls among them, are given no more than one thread."""


class Spare:
    """The threads that are given beside those of each worker, in all pools."""

    def __init__(self, *, runtime: Runtime, graphs: Mapping[str, Workflow]) -> None:
        self._runtime = runtime
        self._graphs = graphs
        self._given = Counter[str]()

    @contextmanager
    def threads(self, call: Call, most: int) -> Iterator[Callable[[], int]]:
        """How many threads the call's statement runs on, `most` at most: to be asked when a worker was found for it.

        What was answered is given until the block is left.
        """
        given = 0

        def ask() -> int:
            nonlocal given
            self._given[call.pool] -= given  # by an attempt that failed
            given = max(0, min(most - 1, self._idle(call.pool)))
            self._given[call.pool] += given
            return 1 + given

        if most == 1 or call.priority <= LEAST or not self._is_last(call):
            yield lambda: 1
            return
        try:
            yield ask
        finally:
            self._given[call.pool] -= given

    def _is_last(self, call: Call) -> bool:
        """Whether nothing follows: the client says so, or the graph does."""
        graph = self._graphs.get(call.workflow)
        return call.final or (graph is not None and call.stage in graph.stages and graph.ends(call.stage) == 1.0)

    def _idle(self, pool: str) -> int:
        view = self._runtime.dispatcher.pool_view(pool, self._runtime.now())
        return 0 if view.waiting else view.slots - view.running - self._given[pool]
