"""Failures on demand: which trouble a request asks for, so that whoever calls engines can be tested against it."""

from __future__ import annotations

from dataclasses import dataclass

from backends.emulated.fields import Refusal

HEADER = "x-emulated-fault"
PLAIN = ("refuse", "hang", "die_before", "html")
COUNTED = ("die_after", "stall_after", "garbage_after", "status")


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
    header, _, later = header.partition(";retry_after=")
    retry_after = int(later) if later.isascii() and later.isdigit() else None
    kind, _, number = header.partition("=")
    if kind in PLAIN and not number:
        return Fault(kind, retry_after=retry_after)
    if kind in COUNTED and number.isascii() and number.isdigit() and (kind != "status" or 400 <= int(number) < 600):
        return Fault(kind, int(number), retry_after)
    known = ", ".join([*PLAIN, *(f"{name}=N" for name in COUNTED)])
    raise Refusal(400, "BadRequestError", f"no fault {header!r} (known: {known})", HEADER)
