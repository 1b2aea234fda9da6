"""A YAML file as plain values, each of which knows the line it was written on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml

Place = tuple[str | int, ...]
"""Where a value stands: the keys and list positions that lead to it from the top."""

FILE_BYTES = 1_000_000
VALUES = 50_000  # what aliases expand to is counted, so that a small file cannot grow without bound
DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?\d{1,18}")
_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d{1,3})?")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_VALUE_TAGS = frozenset(_TAG + kind for kind in ("plain", "str", "map", "seq"))
_VARIABLE = re.compile(r"(\$?)\$\{([^}]*)(\}?)")
_WHOLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-)?\}")
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:-)(.*))?", re.DOTALL)


class ConfigError(Exception):
    """What is wrong with a configuration. Its text is one line: file, line, YAML path, complaint."""

    def __init__(self, message: str, *, file: str, line: int | None = None, place: Place = ()) -> None:
        where = f"{file}:{line}" if line else file
        parts = [where, spelled(place), message] if place else [where, message]
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in ": ".join(parts)))
        self.file = file
        self.line = line
        self.place = place
        self.message = message


class Substituted(str):
    """A text that environment variables went into: it takes whatever type its key wants.

    `whole` where it is one variable's value, and nothing of it stands in the file.
    """

    __slots__ = ("whole",)
    whole: bool

    def __new__(cls, text: str, *, whole: bool = False) -> Self:
        self = super().__new__(cls, text)
        self.whole = whole
        return self

    @property
    def plain(self) -> object:
        """The value that YAML would read from this text."""
        return plain(self)


@dataclass(frozen=True, slots=True)
class Document:
    """A file's values, and the line of each. The line of a value is that of its key."""

    file: str
    tree: dict[str, object]
    lines: Mapping[Place, int]
    overridden: Mapping[Place, str] = field(default_factory=dict)
    """Places whose value is not the file's, and where it comes from instead: the name of an option."""

    def line(self, place: Place) -> int:
        """The line of `place`, or of the nearest thing around it that was written."""
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]

    def error(self, place: Place, message: str) -> ConfigError:
        if place in self.overridden:
            return ConfigError(message, file=self.overridden[place])
        return ConfigError(message, file=self.file, line=self.line(place), place=place)


def spelled(place: Place) -> str:
    """A place as people write it: `workflows.nl2sql.edges[3].to`."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if re.fullmatch(r"[^\s.\[\]\"]+", step) else json.dumps(step, ensure_ascii=False)
            text += f".{key}" if text else key
    return text


def plain(text: str) -> object:
    """What an unquoted scalar means: YAML 1.2's core rules, so `on` and `yes` are text and 010 is ten."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read(path: Path, environ: Mapping[str, str]) -> Document:
    """Read one mapping from `path`, with `${NAME}` and `${NAME:-default}` replaced in its values.

    Raises ConfigError. `$${NAME}` stands for the text `${NAME}`. Keys are always text; aliases are
    followed, tags and merge keys refused.
    """
    file = str(path)
    text = _text(path, file)
    node = _node(text, file)
    reading = _Reading(file, environ)
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        message = "the file is empty" if node is None else f"must be a mapping (key: value), not {found}"
        raise ConfigError(message, file=file, line=node.start_mark.line + 1 if node else 1)
    reading.lines[()] = node.start_mark.line + 1
    return Document(file, reading.mapping(node, ()), reading.lines)


def _text(path: Path, file: str) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("no such file", file=file) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, not a file", file=file) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", file=file) from None
    if len(raw) > FILE_BYTES:
        raise ConfigError("is larger than 1 MB", file=file)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", file=file, line=line) from None


def _node(text: str, file: str) -> yaml.Node | None:
    """The file's nodes. Scalars keep their text: what they mean is decided by `plain`, not by YAML 1.1's guesses."""
    try:
        loader = yaml.SafeLoader(text)
        loader.yaml_implicit_resolvers = {None: [(f"{_TAG}plain", re.compile(""))]}
        node: yaml.Node | None = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"character U+{ord(text[error.position]):04X} is not allowed"
        raise ConfigError(message, file=file, line=line) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file) from None
    except RecursionError:
        raise ConfigError(f"is nested more than {DEPTH} levels deep", file=file) from None
    return node


def _syntax_error(error: yaml.MarkedYAMLError, file: str) -> ConfigError:
    """Say what is wrong in the words of someone who writes YAML, on the line where the mistake is."""
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark
    if "scanning a simple key" in context or "scanning a quoted scalar" in context:
        mark = error.context_mark  # the problem's own mark is where the search was given up
    line = mark.line + 1 if mark else 1
    written = (mark.get_snippet() or "") if mark else ""
    if "'\\t'" in problem:
        message = "a tab where YAML allows only spaces"
    elif "another document" in problem:
        message = "only one document is allowed in the file"
    elif "expected ',' or" in problem and "${" in written:
        message = 'inside { } and [ ] a variable must be quoted: "${NAME}"'
    elif "scanning a quoted scalar" in context:
        message = "the quote is never closed"
    elif "<block end>" in problem or "could not find expected ':'" in problem:
        message = f"not valid YAML (check indentation, colons and brackets): {problem}"
    else:
        message = f"not valid YAML: {problem}"
    return ConfigError(message, file=file, line=line)


@dataclass(slots=True)
class _Reading:
    """One pass over a document's nodes: plain values out, lines and the count of values kept."""

    file: str
    environ: Mapping[str, str]
    lines: dict[Place, int] = field(default_factory=dict)

    def mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be text", file=self.file, line=line, place=place)
            key = key_node.value
            here = (*place, key)
            if key in values:
                first = self.lines[here]
                raise ConfigError(
                    f"the key stands here a second time (first on line {first})",
                    file=self.file,
                    line=line,
                    place=here,
                )
            if key == "<<":
                message = "merge keys are not supported; repeat the keys, or use an alias of the whole mapping"
                raise ConfigError(message, file=self.file, line=line, place=here)
            self.lines[here] = line
            values[key] = self.value(value_node, here)
        return values

    def value(self, node: yaml.Node, place: Place) -> object:
        line = self.lines.setdefault(place, node.start_mark.line + 1)
        if len(place) > DEPTH:
            raise self.error(place, f"nested more than {DEPTH} levels deep, or an alias of itself")
        if len(self.lines) > VALUES:
            raise self.error(place, f"more than {VALUES} values, counting what aliases stand for")
        if node.tag not in _VALUE_TAGS:
            tag = node.tag.replace(_TAG, "!!")
            raise ConfigError(f"the tag {tag} is not allowed", file=self.file, line=line, place=place)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*place, index)) for index, item in enumerate(node.value)]
        return self.scalar(node, place)

    def scalar(self, node: yaml.Node, place: Place) -> object:
        text: str = node.value
        replaced = _VARIABLE.sub(lambda found: self.variable(found, place), text)
        if "${" in text:
            return Substituted(replaced, whole=_WHOLE.fullmatch(text) is not None)
        return plain(text) if node.tag == f"{_TAG}plain" else text

    def variable(self, found: re.Match[str], place: Place) -> str:
        escape, inner, end = found.groups()
        if escape:
            return found[0][1:]
        reference = _REFERENCE.fullmatch(inner) if end else None
        if reference is None:
            raise self.error(place, f"{found[0]} is neither ${{NAME}} nor ${{NAME:-default}}")
        name, default = reference[1], reference[3]
        value = self.environ.get(name)
        if default is not None and not value:
            return default
        if value is None:
            raise self.error(place, f"the environment variable {name} is not set")
        return value

    def error(self, place: Place, message: str) -> ConfigError:
        return ConfigError(message, file=self.file, line=self.lines[place], place=place)
