"""A prompt or answer template: a file's text with `{{variables}}`, filled in one pass so that it is byte-stable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLES = (
    "question", "schema", "sql", "error", "rows", "row_count", "columns", "answer", "database", "history",
)  # fmt: skip

_SLOT = re.compile(r"\{\{(.*?)\}\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A template and the file that it came from."""

    path: Path
    text: str

    @property
    def variables(self) -> frozenset[str]:
        return frozenset(found[1].strip() for found in _SLOT.finditer(self.text))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with each variable's value in its place, or nothing where it has none.

        A value that itself holds `{{name}}` is not filled again.
        """
        return _SLOT.sub(lambda found: values.get(found[1].strip(), ""), self.text)


def read(path: Path, *, name: str) -> Template:
    """Read a template; ValueError names it by `name` where it is unreadable or has an unknown variable."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ValueError(f"no such file: {name}") from None
    except (OSError, ValueError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeError) else "cannot be read"
        raise ValueError(f"{name} {reason}") from None
    for found in _SLOT.finditer(text):
        if (variable := found[1].strip()) not in VARIABLES:
            line = text.count("\n", 0, found.start()) + 1
            known = ", ".join(VARIABLES)
            raise ValueError(f"{name}:{line}: no variable named '{variable}' (variables: {known})")
    return Template(path, text)
