"""Failures on demand: which trouble a request asks for, so that whoever calls engines can be tested against it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backends.emulated.fields import Refusal

HEADER = "x-emulated-fault"
PLAIN = ("refuse", "hang", "die_before", "html")
ANSWERED = ("refuse", "status")
COUNTED = ("die_after", "stall_after", "garbage_after", "status")
FAULT = re.compile(r"([a-z_]+)(?:=(\d+))?(?:;retry_after=(\d+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Fault:
    """`refuse`, `hang`, `die_before`, `html`; with a number `die_after`, `stall_after`, `garbage_after`, `status`.

    `retry_after` is a header of the answer, in seconds.
    """

    kind: str
    number: int = 0
    retry_after: int | None = None

    @property
    def midway(self) -> bool:
        """It happens within an answer, after `number` of its events."""
        return self.kind.endswith("_after")


def read_fault(header: str | None) -> Fault | None:
    """The fault that the header asks for. Raises Refusal for one that does not exist."""
    if header is None:
        return None
    found = FAULT.fullmatch(header)
    if found:
        kind, number, later = found[1], found[2], found[3]
        wanted = COUNTED if number else PLAIN
        answered = kind in ANSWERED or later is None
        if kind in wanted and answered and (kind != "status" or 400 <= int(number) < 600):
            return Fault(kind, int(number or 0), int(later) if later else None)
    known = ", ".join([*PLAIN, *(f"{name}=N" for name in COUNTED)])
    raise Refusal(400, "BadRequestError", f"no fault {header!r} (known: {known})", HEADER)
