"""Which policies have a test of what they claim: tests mark themselves, `test_catalog.py` finds what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

CLAIMED: set[tuple[str, str]] = set()
F = TypeVar("F", bound=Callable[..., None])


def claims(slot: str, name: str) -> Callable[[F], F]:
    """Mark a test as one of what this policy claims."""

    def mark(test: F) -> F:
        CLAIMED.add((slot, name))
        return test

    return mark
