"""Reading YAML: values, variables and lines, and the one line that ill-formed files are answered with."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.yamlfile import DEPTH, FILE_BYTES, ConfigError, Document, plain, read, spelled


def document(path: Path, text: str | bytes, **environ: str) -> Document:
    file = path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(file, environ)


def complaint(path: Path, text: str | bytes, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        document(path, text, **environ)
    assert str(caught.value).startswith(f"{path}/c.yaml:")
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{path}/c.yaml:").strip()


ILL_FORMED = [
    ("", "1: the file is empty"),
    ("# nothing but this\n", "1: the file is empty"),
    ("- a\n- b\n", "1: must be a mapping (key: value), not a list"),
    ("\njust text\n", "2: must be a mapping (key: value), not a single value"),
    ("a:\n\tb: 1\n", "2: a tab where YAML allows only spaces"),
    ("a:\n  b: 1\n\tc: 2\n", "3: a tab where YAML allows only spaces"),
    ("a: 1\nb: 2\na: 3\n", "3: a: the key stands here a second time (first on line 1)"),
    ("a: {b: 1, b: 2}\n", "1: a.b: the key stands here a second time (first on line 1)"),
    ("a: 1\n---\nb: 2\n", "2: only one document is allowed in the file"),
    ("a: !!python/object/apply:os.system [ls]\n", "1: a: the tag !!python/object/apply:os.system is not allowed"),
    ("a:\n  - !!int 5\n", "2: a[0]: the tag !!int is not allowed"),
    ("a: &x {b: 1}\nc:\n  <<: *x\n",
     "3: c.<<: merge keys are not supported; repeat the keys, or use an alias of the whole mapping"),
    ("{[a, b]: 1}\n", "1: a key must be text"),
    ("a: *nowhere\n", "1: not valid YAML: found undefined alias 'nowhere'"),
    ("a: 'text\nb: 2\n", "1: the quote is never closed"),
    ("a: b: c\n", "1: not valid YAML: mapping values are not allowed here"),
    ("a: 1\nport 8080\nb: 2\n",
     "2: not valid YAML (check indentation, colons and brackets): could not find expected ':'"),
    ("a:\n  b: 1\n c: 2\n",
     "3: not valid YAML (check indentation, colons and brackets): expected <block end>, but found "
     "'<block mapping start>'"),
    ("a: [1, 2\nb: 3\n", "2: not valid YAML: expected ',' or ']', but got ':'"),
    ("a: 1\nb: \x01\n", "2: character U+0001 is not allowed"),
    (b"a: 1\nb: \xff\n", "2: is not UTF-8 text"),
    ("a: ${NOT_SET}\n", "1: a: the environment variable NOT_SET is not set"),
    ("a:\n  - b\n  - x${NOT_SET}\n", "3: a[1]: the environment variable NOT_SET is not set"),
    ("a: ${2x}\n", "1: a: ${2x} is neither ${NAME} nor ${NAME:-default}"),
    ("a: ${X-y}\n", "1: a: ${X-y} is neither ${NAME} nor ${NAME:-default}"),
    ("a: ${X\n", "1: a: ${X is neither ${NAME} nor ${NAME:-default}"),
    ("a: {b: ${X}}\n", '1: inside { } and [ ] a variable must be quoted: "${NAME}"'),
    ("a: [${X}]\n", '1: inside { } and [ ] a variable must be quoted: "${NAME}"'),
    ("a: " + "[" * 1000 + "\n", "is nested more than 32 levels deep"),
    ("a: &x [*x]\n", f"1: a{'[0]' * DEPTH}: nested more than 32 levels deep, or an alias of itself"),
    (b"a: " + b"x" * FILE_BYTES, "is larger than 1 MB"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), ILL_FORMED, ids=[said[:50] for _, said in ILL_FORMED])
def test_an_ill_formed_file_is_answered_with_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert complaint(tmp_path, text) == said


def test_aliases_that_multiply_are_stopped(tmp_path: Path) -> None:
    names = "abcdefghijklmno"
    rows = ["a: &a [x, x, x, x]"]
    rows += [f"{name}: &{name} [{', '.join(['*' + before] * 4)}]" for before, name in pairwise(names)]
    assert "more than 50000 values, counting what aliases stand for" in complaint(tmp_path, "\n".join(rows))


def test_what_cannot_be_read_is_said_without_a_line(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "missing.yaml", "no such file"),
        (tmp_path, "is a folder, not a file"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        (Path("a\0b"), "cannot be read: embedded null byte"),
    ):
        with pytest.raises(ConfigError) as caught:
            read(path, {})
        shown = str(path).replace("\0", "\\x00")
        assert str(caught.value) == f"{shown}: {said}"


def test_an_unquoted_scalar_is_read_by_the_rules_of_yaml_1_2() -> None:
    for text in ("on", "off", "yes", "No", "1:30", "2024-01-01", "0x10", "1_000", ".inf", "8s", "1.2.3", "e5", "."):
        assert plain(text) == text
    assert [plain(text) for text in ("010", "-3", "+4")] == [10, -3, 4]
    assert [plain(text) for text in ("1.5", ".5", "2.", "1e-3", "-1.5E2")] == [1.5, 0.5, 2.0, 0.001, -150.0]
    assert [plain(text) for text in ("true", "False", "null", "~", "")] == [True, False, None, None, None]


def test_keys_are_text_and_quoted_values_stay_text(tmp_path: Path) -> None:
    found = document(tmp_path, "on: '5'\n5: \"true\"\nnull: |\n  7\ntrue: !!str 8\n")
    assert found.tree == {"on": "5", "5": "true", "null": "7\n", "true": "8"}


def test_an_alias_stands_for_the_whole_value(tmp_path: Path) -> None:
    found = document(tmp_path, "a: &x\n  b: [1]\nc: *x\n")
    assert found.tree == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert found.line(("c",)) == 3


def test_a_value_has_the_line_of_its_key_and_a_missing_one_that_of_its_mapping(tmp_path: Path) -> None:
    found = document(tmp_path, "\ufeff# first\na:\n  b:\n\n    - 1\n    - c: 2\n      d: >\n        x\n")
    assert [found.line(place) for place in ((), ("a",), ("a", "b"), ("a", "b", 1, "d"))] == [2, 2, 3, 7]
    assert found.line(("a", "b", 1, "missing")) == 6
    assert found.line(("z", "y")) == 2


def test_variables_are_replaced_in_values_only(tmp_path: Path) -> None:
    text = "${X}: ${X}\na: pre-${X}-${Y:-why}\nb: '${Y:-}'\nc: $${X}\nd: \"${Z:-a:-b}\"\ne: ${X:-unused}\n"
    found = document(tmp_path, text, X="ex", Z="")
    assert found.tree == {"${X}": "ex", "a": "pre-ex-why", "b": "", "c": "${X}", "d": "a:-b", "e": "ex"}


def test_what_a_variable_holds_is_not_replaced_again(tmp_path: Path) -> None:
    assert document(tmp_path, "a: ${X}\n", X="${Y}").tree == {"a": "${Y}"}


def test_a_place_is_spelled_so_that_it_can_be_read_back() -> None:
    assert spelled(("workflows", "nl2sql", "edges", 3, "to")) == "workflows.nl2sql.edges[3].to"
    assert spelled(("models", "gpt-4.1*")) == 'models."gpt-4.1*"'
    assert spelled(("a b", "é", "")) == '"a b".é.""'


@given(st.text(alphabet=" \n\t\r:-[]{}&*!|>'\"%@`#,?a1$\x85\u2028\x00é", max_size=40))
def test_any_text_is_read_or_answered_with_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode())
    try:
        said = "" if isinstance(read(path, {}).tree, dict) else "no mapping\n"
    except ConfigError as error:
        said = str(error)
    assert said.isprintable()
