"""What the columns of a result are called where the statement does not say: as the engine of its dialect calls them.

Translated, an expression may have grown to several hundred characters, and its text would be the column's name. Rows
are read by name, and names are read by models.

| dialect | the name of an expression |
|---|---|
| SQLite, MySQL | its text as it is written; in MySQL a text's own value |
| Snowflake | its text in upper case |
| PostgreSQL | that of the function, of the column that is cast, else of the type; `case`, `array`, `?column?` |
| BigQuery | `f0_`, `f1_`, … |
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.tokenizer_core import Token

from policies.rewriting import string

Names = Sequence[str | None]
"""One for each column of the result, None for those that have a name or are several."""

_OPENS: Final = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE})
_CLOSES: Final = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE})
_ENDS: Final = frozenset(
    {
        *(TokenType.FROM, TokenType.WHERE, TokenType.GROUP_BY, TokenType.HAVING, TokenType.ORDER_BY),
        *(TokenType.LIMIT, TokenType.OFFSET, TokenType.FETCH, TokenType.WINDOW, TokenType.QUALIFY),
        *(TokenType.UNION, TokenType.EXCEPT, TokenType.INTERSECT, TokenType.SEMICOLON),
    }
)
# The engine would take these words, wherever they stand, for the column of that name.
_WORDS: Final = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})
_NO_CALLS: Final = frozenset({"cast", "not", "case", "interval"})
_BEHIND_CALLS: Final = frozenset({"OVER", "FILTER", "WITHIN", "::", "AS", ")"})
_TYPES: Final = {
    **{exp.DType.INT: "int4", exp.DType.BIGINT: "int8", exp.DType.SMALLINT: "int2", exp.DType.BOOLEAN: "bool"},
    **{exp.DType.DOUBLE: "float8", exp.DType.FLOAT: "float4", exp.DType.DECIMAL: "numeric", exp.DType.CHAR: "bpchar"},
}


def names_of(root: exp.Expr, text: str, dialect: str) -> Names:
    """The names of the result's columns, of a tree and the text that it was read from."""
    select = _first_select(root)
    if select is None:
        return ()
    columns = select.expressions
    pieces = _pieces(sqlglot.tokenize(text, read=dialect))
    if len(pieces) != len(columns):
        pieces = [sqlglot.tokenize(column.sql(dialect, comments=False), read=dialect) for column in columns]
        texts = [column.sql(dialect, comments=False) for column in columns]
    else:
        texts = [text[piece[0].start : piece[-1].end + 1] for piece in pieces]
    numbers = itertools.count()
    return [
        None if _has_name(column) else _name(column, written, piece, dialect, numbers)
        for column, written, piece in zip(columns, texts, pieces, strict=True)
    ]


def name_columns(root: exp.Expr, names: Names) -> None:
    """Give the columns of the result these names; one that has its own by now keeps it."""
    select = _first_select(root)
    if select is None or len(select.expressions) != len(names):
        return
    for column, name in zip(list(select.expressions), names, strict=True):
        if name and name.lower() not in _WORDS and not _has_name(column):
            column.replace(exp.alias_(column.copy(), name, quoted=True))


def _first_select(root: exp.Expr) -> exp.Select | None:
    """The SELECT that names the columns: of several that are put together, the first."""
    node: exp.Expr | None = root
    while isinstance(node, exp.SetOperation | exp.Subquery):
        node = node.this
    return node if isinstance(node, exp.Select) else None


def _has_name(column: exp.Expr) -> bool:
    return column.is_star or isinstance(column, exp.Alias | exp.Aliases | exp.Column)


def _pieces(tokens: Sequence[Token]) -> list[Sequence[Token]]:
    """What stands between the commas of the first SELECT that is in no other's parentheses."""
    start = _start(tokens)
    pieces: list[Sequence[Token]] = []
    depth, begun = 0, start
    for place in range(start, len(tokens) + 1):
        kind = tokens[place].token_type if place < len(tokens) else TokenType.SEMICOLON
        over = depth == 0 and (kind in _ENDS or kind in _CLOSES)
        if over or (depth == 0 and kind == TokenType.COMMA):
            if begun < place:
                pieces.append(tokens[begun:place])
            begun = place + 1
        if over:
            break
        depth += (kind in _OPENS) - (kind in _CLOSES)
    return pieces


def _start(tokens: Sequence[Token]) -> int:
    """The place of the first column. Parentheses that begin the statement or follow its WITH hold it as well."""
    around: list[bool] = []
    before: TokenType | None = None
    for place, token in enumerate(tokens):
        kind = token.token_type
        if kind == TokenType.SELECT and all(around):
            return _behind_words(tokens, place + 1)
        if kind in _OPENS:
            around.append(before in {None, TokenType.R_PAREN} or (before == TokenType.L_PAREN and around[-1]))
        elif kind in _CLOSES and around:
            around.pop()
        before = kind
    return len(tokens)


def _behind_words(tokens: Sequence[Token], place: int) -> int:
    """Pass over what may stand between SELECT and its first column: `DISTINCT ON (…)`, `ALL`, `TOP 3`."""
    words = {TokenType.DISTINCT, TokenType.ALL, TokenType.TOP, TokenType.ON}
    while place < len(tokens) and tokens[place].token_type in words:
        takes = tokens[place].token_type in {TokenType.TOP, TokenType.ON}
        place += 1
        if takes and place < len(tokens):
            place = _closing(tokens, place) + 1
    return place


def _closing(tokens: Sequence[Token], place: int) -> int:
    """The place of the parenthesis that closes the one at this place; of anything else, the place itself."""
    depth = 0
    for at in range(place, len(tokens)):
        kind = tokens[at].token_type
        depth += (kind in _OPENS) - (kind in _CLOSES)
        if depth == 0:
            return at
    return len(tokens) - 1


def _name(
    column: exp.Expr, written: str, tokens: Sequence[Token], dialect: str, numbers: itertools.count[int]
) -> str:
    if isinstance(column, exp.Dot):
        return column.name
    if dialect == "bigquery":
        return f"f{next(numbers)}_"
    if dialect == "postgres":
        return _of_postgres(column, tokens)
    if dialect == "mysql":
        return string(column) or written
    return written.upper() if dialect == "snowflake" else written


def _of_postgres(column: exp.Expr, tokens: Sequence[Token]) -> str:
    call = _call(tokens)
    if call is not None:
        return call
    node, kind = column, "?column?"
    while isinstance(node, exp.Cast | exp.Paren | exp.Collate):
        if isinstance(node, exp.Cast) and kind == "?column?":
            kind = _TYPES.get(node.to.this) or node.to.sql("postgres").partition("(")[0].lower()
        node = node.this
    if isinstance(node, exp.Case):
        otherwise = node.args.get("default")
        return (_plain(otherwise) if otherwise is not None else None) or "case"
    if isinstance(node, exp.Subquery) and (select := _first_select(node)) is not None:
        only = select.expressions[0]
        return only.alias or _plain(only) or "?column?"
    if isinstance(column, exp.Cast) and isinstance(node, exp.Func) and not isinstance(node, exp.Binary):
        # The parser has names of its own.
        return next(filter(None, (_call(tokens[place:]) for place in range(len(tokens)))), kind)
    return _plain(node) or kind


def _plain(node: exp.Expr) -> str | None:
    """The name of a column, of a function or an array, None for anything else."""
    if isinstance(node, exp.Column | exp.Dot):
        return node.name
    if isinstance(node, exp.Window | exp.Filter | exp.WithinGroup):
        return _plain(node.this)
    if isinstance(node, exp.Anonymous):
        return node.name.lower()
    if isinstance(node, exp.Func) and not isinstance(node, exp.Binary | exp.Cast | exp.Case):
        return type(node).sql_names()[0].lower()
    return None


def _call(tokens: Sequence[Token]) -> str | None:
    """The function's name where the whole is a call, as it is written."""
    if len(tokens) < 2 or tokens[1].token_type != TokenType.L_PAREN:
        return None
    name = tokens[0].text.lower()
    if not name.isidentifier() or name in _NO_CALLS:
        return None
    behind = _closing(tokens, 1) + 1
    return name if behind == len(tokens) or tokens[behind].text.upper() in _BEHIND_CALLS else None
