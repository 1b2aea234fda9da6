"""Hashes of prompts that are never written out: what equals what, up to where, from the identities of segments.

The hash of a block stands for all tokens up to its end. Inside a segment it is a number that depends on all
segments before, plus the offset: so equal beginnings have equal hashes, and a thousand of them are one `range`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from policies.routing.prefix import spans
from simulator.workload import Segment


def chained(segments: Sequence[Segment], size: int, seed: int) -> tuple[int, ...]:
    """The hashes of a prompt's whole blocks of `size` tokens each; `seed` keeps apart what must not be shared."""
    hashes: list[int] = []
    start, end, before = 0, size, seed
    for name, tokens in segments:
        here = hash((before, name))
        stop = start + tokens
        if end <= stop:
            hashes += range(here + end - start, here + tokens + 1, size)
            end += (stop - end) // size * size + size
        start, before = stop, hash((here, tokens))
    return tuple(hashes)


def at_ends(segments: Sequence[Segment], ends: Sequence[int], seed: int) -> tuple[int, ...]:
    """The hashes at these distances from the prompt's beginning, which grow and do not pass its end."""
    hashes: list[int] = []
    start, before, index = 0, seed, 0
    for name, tokens in segments:
        here = hash((before, name))
        stop = start + tokens
        last = bisect_right(ends, stop, index)
        hashes += map((here - start).__add__, ends[index:last])
        index, start, before = last, stop, hash((here, tokens))
    return tuple(hashes)


def leading(segments: Sequence[Segment], prompt: int, seed: int) -> tuple[int, ...]:
    """What the gateway would make of the prompt: the hashes of its leading blocks, for `Call.prefix`."""
    return at_ends(segments, spans(prompt), seed)


class Reuse:
    """Which beginnings have been seen before, in a memory without bounds."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def known(self, segments: Sequence[Segment], seed: int) -> int:
        """How many tokens of the prompt's beginning have been seen."""
        known, before = 0, seed
        for name, tokens in segments:
            here = hash((before, name))
            seen = self._seen.get(here, 0)
            known += min(seen, tokens)
            if seen < tokens:
                break
            before = hash((here, tokens))
        return known

    def see(self, segments: Sequence[Segment], seed: int) -> None:
        before = seed
        for name, tokens in segments:
            here = hash((before, name))
            if self._seen.get(here, 0) < tokens:
                self._seen[here] = tokens
            before = hash((here, tokens))
