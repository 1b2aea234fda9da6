"""Whether what is observed of late still comes from where the earlier observations came from: a two-sample test."""

from __future__ import annotations

import math

from policies.sketch import VALUES, Sketch

LEVEL = 0.001
"""Chance of a false alarm of one test. Service times of neighbouring calls are alike, so it is a small one."""
FAR = 0.25
"""The mean must have moved by this share too: what is certain but small is no reason to forget anything."""
_CRITICAL = math.sqrt(-math.log(LEVEL / 2) / 2)


def drifted(older: Sketch, newer: Sketch) -> bool:
    """Whether two samples differ, surely (Kolmogorov and Smirnov) and by much (Wasserstein over the mean)."""
    if not older.total or not newer.total:
        return False
    apart, moved = distances(older, newer)
    certain = apart > _CRITICAL * math.sqrt(1 / older.total + 1 / newer.total)
    return certain and moved > FAR * older.mean


def distances(one: Sketch, other: Sketch) -> tuple[float, float]:
    """The greatest distance of two distribution functions, and the area between them."""
    each, every = 1 / one.total, 1 / other.total
    apart = greatest = area = before = 0.0
    for index in sorted({**one.buckets, **other.buckets}):
        area += abs(apart) * (VALUES[index] - before)
        before = VALUES[index]
        apart += each * one.buckets.get(index, 0.0) - every * other.buckets.get(index, 0.0)
        greatest = max(greatest, abs(apart))
    return greatest, area
