"""Which known conversations a prompt goes on from: all that it begins with, byte for byte, at the cost of its blocks.

A conversation is remembered by its length and a hash. Its text is cut into the blocks of `policies.routing.prefix`,
and the hash of each covers all before it; a state is filed under the last whole block before its end. So a prompt
asks at each of its blocks for the lengths that are known there, and hashes less than a block for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from policies.linkage_runs import State, Step, Tail
from policies.routing.prefix import TOKEN_BYTES, spans

Digest = Callable[[bytes, int], int]
"""`digest(block, previous)`: any good 64-bit hash."""

_LENGTHS_MOST = 256
_STEPS_MOST = 64
_SHORT = 64
_TURN = 0x1E


class Match(NamedTuple):
    """A step whose conversation a prompt begins with; `answer`: together with what was answered to it.

    `alike`: how many runs have been in that same state.
    """

    step: Step
    length: int
    answer: bool
    alike: int


class Text:
    """The bytes of a conversation and the hashes of their blocks; `behind` continues another one's end."""

    def __init__(self, content: bytes, digest: Digest, behind: Tail) -> None:
        self._content = behind.rest + content
        self._digest = digest
        self._start = behind.start
        self.length = behind.start + len(self._content)
        self.marks = [(behind.start, behind.chain)]
        for tokens in spans(self.length // TOKEN_BYTES):
            end = tokens * TOKEN_BYTES
            start, chain = self.marks[-1]
            if end > start:
                self.marks.append((end, digest(self._cut(start, end), chain)))

    def _cut(self, start: int, end: int) -> bytes:
        return self._content[start - self._start : end - self._start]

    def key(self, mark: tuple[int, int], length: int) -> int:
        """The hash of the first `length` bytes; `mark` is that of the last whole block before it."""
        start, chain = mark
        return self._digest(self._cut(start, length), chain)

    def state(self) -> State:
        mark = self.marks[-1]
        return State(mark[1], self.length, self.key(mark, self.length))

    def tail(self) -> Tail:
        start, chain = self.marks[-1]
        return Tail(chain, start, self._cut(start, self.length))

    def may_end(self, length: int) -> bool:
        """Whether a conversation can have ended here: a short text begins with many by accident."""
        return length >= _SHORT or length == self.length or self._cut(length, length + 1)[0] in (_TURN, 0x0A)


class States:
    """Where conversations have been, of one tenant."""

    def __init__(self) -> None:
        self._lengths: dict[int, dict[int, int]] = {}
        self._steps: dict[int, list[Step]] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def file(self, step: Step, state: State) -> None:
        """Remember that a step's conversation has been there."""
        lengths = self._lengths.setdefault(state.chain, {})
        lengths[state.length] = lengths.get(state.length, 0) + 1
        self._steps.setdefault(state.key, []).append(step)
        step.filed.append(state)

    def drop(self, step: Step) -> None:
        """Forget a step."""
        for state in step.filed:
            steps, lengths = self._steps[state.key], self._lengths[state.chain]
            steps.remove(step)
            lengths[state.length] -= 1
            if not steps:
                del self._steps[state.key]
            if not lengths[state.length]:
                del lengths[state.length]
            if not lengths:
                del self._lengths[state.chain]
        step.filed.clear()

    def matches(self, text: Text) -> Iterator[Match]:
        """The steps that a text begins with, the longest first. Of a state that many have been in, the latest few."""
        for mark in reversed(text.marks):
            known = islice(reversed(self._lengths.get(mark[1], {})), _LENGTHS_MOST)
            for length in sorted((length for length in known if length <= text.length), reverse=True):
                steps = self._steps.get(text.key(mark, length)) if text.may_end(length) else None
                if steps:
                    alike = len({step.run.id for step in steps})
                    for step in steps[-_STEPS_MOST:]:
                        yield Match(step, length, step.filed[0].length != length, alike)
