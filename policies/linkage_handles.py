"""Which call handed out an id that a prompt gives back: ids of tool calls, and of what else an answer holds.

Most clients send the ids of tool calls back as they came, and most engines make each of them only once: then nothing
says more surely which run goes on, however alike two are. Some engines number them (`search:0`) and some clients
invent their own, so an id that two calls had says nothing, nor does one that no known call had.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from policies.linkage_runs import Step

_MOST, _MOST_OF_A_STEP = 50_000, 32


class Handles:
    """The ids that the answers to one tenant's calls had, the oldest forgotten."""

    def __init__(self) -> None:
        self._givers: OrderedDict[str, Step | None] = OrderedDict()

    def give(self, step: Step, handles: Sequence[str]) -> None:
        """The answer to a call had these ids."""
        for handle in handles[:_MOST_OF_A_STEP]:
            giver = self._givers.get(handle, step)
            self._givers[handle] = step if giver is step else None
            self._givers.move_to_end(handle)
            step.handles.append(handle)
        while len(self._givers) > _MOST:
            self._givers.popitem(last=False)

    def giver(self, handles: Iterable[str]) -> Step | None:
        """Who gave the first of these ids that one known call alone gave."""
        return next((giver for handle in handles if (giver := self._givers.get(handle)) is not None), None)

    def drop(self, step: Step) -> None:
        """Forget a step. What two calls gave stays as it is: it would seem to be one's."""
        for handle in step.handles:
            if self._givers.get(handle) is step:
                del self._givers[handle]
        step.handles.clear()
