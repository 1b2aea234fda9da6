"""Parameters of a statement: the ways in which dialects write them, put in the one that DuckDB takes.

What comes out are `$1`, `$2`, … in the order in which the text has them, or `$name`. A `?` is numbered while the
order of the text is known: translating between dialects moves and repeats arguments.
"""

from __future__ import annotations

import re
from typing import Final

import sqlglot
from sqlglot import exp

HOW: Final = "write parameters as ?, $1 or $name"
PARAMETERS: Final = (exp.Parameter, exp.Placeholder, exp.SessionParameter)

_NAME: Final = re.compile(r"[A-Za-z_]\w{0,63}|[1-9]\d{0,3}", re.ASCII)
_POSITION: Final = "position_"
_MIXED: Final = "write all parameters in one way: ?, $1 or $name"


class BadParameters(ValueError):
    """The parameters cannot be bound as they are written; the message says how to write them."""


def numbered(root: exp.Expr, text: str, dialect: str) -> str | None:
    """The text with each `?` replaced by a named parameter that `named` knows for a number; None where it has no `?`.

    `root` is the tree of `text`. Raises BadParameters.
    """
    unnumbered = [name == "" for name in map(_name, root.find_all(*PARAMETERS, exp.Column)) if name is not None]
    if not any(unnumbered):
        return None
    if not all(unnumbered):
        raise BadParameters(_MIXED)
    sign = "$" if dialect == "duckdb" else ":"  # where DuckDB reads `a: b`, a is an alias
    signs = [
        token for token in sqlglot.tokenize(text, read=dialect) if token.token_type == sqlglot.TokenType.PLACEHOLDER
    ]
    for number, token in reversed(list(enumerate(signs, 1))):
        text = f"{text[: token.start]} {sign}{_POSITION}{number} {text[token.end + 1 :]}"
    return text


def named(root: exp.Expr, *, unnumbered: bool) -> tuple[str, ...]:
    """Write every parameter of the tree as DuckDB does; gives their names, `("1", "2", …)` for positional ones.

    `unnumbered`: the text came from `numbered`. Raises BadParameters.
    """
    names: set[str] = set()
    for node in list(root.find_all(*PARAMETERS, exp.Column)):
        name = _name(node)
        if name is None:
            continue
        if unnumbered:
            name = name.removeprefix(_POSITION)
        if not _NAME.fullmatch(name):
            raise BadParameters(HOW)
        node.replace(exp.Placeholder(this=name))
        names.add(name)
    return _ordered(names)


def _name(node: exp.Expr) -> str | None:
    """What the parameter is called, empty where it is none that can be bound; None for a plain column."""
    if isinstance(node, exp.Column):
        # SQLite's own `$name` is read as a word.
        word = node.this
        plain = not isinstance(word, exp.Identifier) or word.quoted or node.table or not word.name.startswith("$")
        return None if plain else str(word.name)[1:]
    inner = node.this
    if isinstance(node, exp.SessionParameter) or (isinstance(inner, exp.Expr) and not _is_word(inner)):
        return ""
    return inner.name if isinstance(inner, exp.Expr) else str(inner or "")


def _is_word(node: exp.Expr) -> bool:
    return isinstance(node, exp.Identifier | exp.Var) or (isinstance(node, exp.Literal) and not node.is_string)


def _ordered(names: set[str]) -> tuple[str, ...]:
    numbers = sorted(int(name) for name in names if name.isdigit())
    if not numbers:
        return tuple(sorted(names))
    if len(numbers) != len(names):
        raise BadParameters(_MIXED)
    if numbers[-1] != len(numbers):
        raise BadParameters("number the parameters from $1 without a gap")
    return tuple(str(number) for number in numbers)
