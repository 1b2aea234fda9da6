"""The values of labels that clients choose: so many of them are kept as they are, all others are one.

What is configured keeps its name whatever clients send.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

OTHER: Final = "other"


class Places:
    """Workflows and their stages as labels. At most `most` names of each that are not configured are kept, those
    that came first; of a known workflow further stages are "other", and of a further workflow all is."""

    def __init__(self, known: Iterable[tuple[str, str]], *, most: int) -> None:
        """`known` are the pairs that are configured."""
        self._pairs = {("", ""), *known}
        self._workflows = {workflow for workflow, _ in self._pairs}
        self._most = most

    def workflow(self, name: str) -> str:
        """A workflow as a label."""
        if name in self._workflows:
            return name
        if len(self._workflows) >= self._most:
            return OTHER
        self._workflows.add(name)
        return name

    def pair(self, workflow: str, stage: str) -> tuple[str, str]:
        """A workflow and its stage as labels."""
        pair = workflow, stage
        if pair in self._pairs:
            return pair
        shown = self.workflow(workflow)
        if shown == OTHER or len(self._pairs) >= self._most:
            return shown, OTHER
        self._pairs.add(pair)
        return pair
