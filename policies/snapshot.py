"""Reading back what was learned, as plain data that somebody may have damaged: each field by name, or an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


class ProfileError(ValueError):
    """What was learned cannot be read back; the message names the field."""


@dataclass(frozen=True, slots=True)
class Record:
    """A mapping of the data, and where it stands in it."""

    data: object
    place: str = ""

    def field(self, name: str) -> object:
        if not isinstance(self.data, Mapping) or name not in self.data:
            raise ProfileError(f"{self.place}{name}: missing")
        return self.data[name]

    def text(self, name: str) -> str:
        value = self.field(name)
        if not isinstance(value, str):
            raise ProfileError(f"{self.place}{name}: must be text")
        return value

    def number(self, name: str, most: float = 1e18) -> float:
        """A number from 0 to `most`."""
        value = self.field(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise ProfileError(f"{self.place}{name}: must be a number from 0 to {most:g}")
        assert math.isfinite(value)
        return value

    def whole(self, name: str, most: int = 2**53) -> int:
        value = self.number(name, most)
        if not isinstance(value, int):
            raise ProfileError(f"{self.place}{name}: must be a whole number")
        return value

    def record(self, name: str) -> Record:
        return Record(self.field(name), f"{self.place}{name}.")

    def records(self, name: str, most: int) -> list[Record]:
        """A list of mappings, no longer than `most`."""
        value = self.field(name)
        if not isinstance(value, list) or len(value) > most:
            raise ProfileError(f"{self.place}{name}: must be a list of at most {most}")
        return [Record(one, f"{self.place}{name}[{index}].") for index, one in enumerate(value)]

    def numbers(self, name: str, most: int) -> dict[int, float]:
        """A list of pairs of a whole number and a number, as a mapping."""
        value = self.field(name)
        if not isinstance(value, list) or len(value) > most:
            raise ProfileError(f"{self.place}{name}: must be a list of at most {most}")
        found: dict[int, float] = {}
        for pair in value:
            match pair:
                case [int(key), int(weight) | float(weight)] if 0 <= weight <= 1e18:
                    found[key] = float(weight)
                case _:
                    raise ProfileError(f"{self.place}{name}: must hold pairs of numbers")
        return found
