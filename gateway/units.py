"""Durations and sizes as people write them: `8s`, `250ms`, `10MB`, `512MiB`."""

from __future__ import annotations

import re

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES = {"B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

# The count of digits is bounded so that no figure overflows a float.
_FIGURE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s?([A-Za-z]+)")


def duration(value: object) -> float:
    """Seconds in `value`; ValueError where it is none. Only 0 may stand without a unit."""
    return _measure(value, SECONDS, "a duration such as 8s, 250ms, 2m or 1h")


def size(value: object) -> int:
    """Bytes in `value`; ValueError where it is none. Only 0 may stand without a unit."""
    return round(_measure(value, BYTES, "a size such as 10MB, 512MiB or 64kB"))


def _measure(value: object, units: dict[str, float] | dict[str, int], wanted: str) -> float:
    text = "" if isinstance(value, bool) or value is None else str(value)
    if text == "0":
        return 0.0
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        raise ValueError(f"{text} has no unit; write {wanted}")
    found = _FIGURE.fullmatch(text)
    if found is None or found[2] not in units:
        raise ValueError(f"must be {wanted}")
    return float(found[1]) * units[found[2]]
