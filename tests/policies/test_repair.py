"""From an engine's complaint to words that a model can repair its statement by."""

from __future__ import annotations

import time
from collections.abc import Iterator

import duckdb
import pytest

from policies.repair import OFFERED_MOST, closest, distance, explained, placed
from policies.sql_functions import FUNCTIONS

KNOWN = {
    "customers": ["customer_id", "customer_name", "city", "joined"],
    "orders": ["order_id", "customer_id", "total", "placed"],
    "Refunds": ["order_id", "city", "amount"],
}


@pytest.fixture(scope="module")
def shop() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("create table customers (customer_id int, customer_name text, city text, joined date)")
        connection.execute("create table orders (order_id int, customer_id int, total double, placed timestamp)")
        connection.execute('create table "Refunds" (order_id int, city text, amount double)')
        yield connection


def complaint(shop: duckdb.DuckDBPyConnection, text: str) -> str:
    """What a model is told of its text, through the engine's own complaint."""
    with pytest.raises(duckdb.Error) as caught:
        shop.execute(text).fetchall()
    return placed(explained(str(caught.value), KNOWN, FUNCTIONS), text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "select customr_id from customers",
            'column "customr_id" not found in FROM clause; did you mean customer_id?',
        ),
        ("select c.custmer_name from customers c", '"custmer_name"; did you mean customer_name?'),
        ("select CustomerID from customers", "did you mean customer_id?"),
        ("select name from customers", "did you mean customer_name?"),
        ("select total from customers", "; orders has a column of that name"),
        ("select o.city from orders o", "; customers, Refunds have a column of that name"),
        ("select * from customers join orders using (custmer_id)", "did you mean customers.customer_id?"),
        ("select * exclude (citi) from customers", "did you mean city?"),
        ("with w as (select 1 as alpha) select alhpa from w", "did you mean alpha?"),
        ('select "Rome!" from Refunds', "candidate columns: order_id"),
        ('select "Rome!" from customers', "a text is written in single quotes: 'Rome!'"),
        ("select * from custmers", "Table with name custmers does not exist; did you mean customers?"),
        ("select * from refund", "did you mean Refunds?"),
        ("select * from planets", "the tables are: Refunds, customers, orders"),
        ("select * from x.y.orders", "did you mean orders?"),
        ("select orders.total from customers", "join orders in FROM, or use the alias that it has there"),
        ("select cus.city from customers as cust", "did you mean cust?"),
        ("select zzz.city from customers as c", "candidate tables: c"),
        ("select uper(city) from customers", "did you mean upper"),
        ("select zzzzzz(city) from customers", "Function with name zzzzzz does not exist"),
        (
            "select sum(city) from customers",
            "'sum(VARCHAR)'. You might need to add explicit type casts; it takes sum(",
        ),
        (
            "select city + 1 from customers",
            "'+(VARCHAR, INTEGER_LITERAL)'. You might need to add explicit type casts",
        ),
        ("select city, count(*) from customers", "must appear in the GROUP BY clause"),
        ("select joined > city from customers", "Cannot compare values of type DATE and type VARCHAR"),
    ],
)
def test_the_complaint_offers_what_exists(shop: duckdb.DuckDBPyConnection, text: str, words: str) -> None:
    said = complaint(shop, text)
    assert words in said
    for gone in ("LINE", "\n", "Candidate bindings"):
        assert gone not in said


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("select customr_id from customers", 1, 8),
        ("select city,\n  'nope', -- nope\n  nope\nfrom customers", 3, 3),
        ("/* nope */ select c.nope from customers c", 1, 21),
        ('select "nope" from customers', 1, 8),
        ("select * from\n\tcustmers", 2, 2),
        ("select * from main.custmers", 1, 20),
        ("select city,\r\n cast('abc' as int) from (select 1 as city)", 2, 7),
        ("select city,\n UPER(city) from customers", 2, 2),
        ("select\n sum(city) from customers", 2, 2),
        ("select nopes, nope from (select 1 as nopes)", 1, 15),
    ],
)
def test_the_complaint_tells_the_place_in_the_text_that_was_written(
    shop: duckdb.DuckDBPyConnection, text: str, line: int, column: int
) -> None:
    assert complaint(shop, text).endswith(f"(line {line}, column {column})")


def test_no_place_is_told_where_the_text_has_none() -> None:
    for message, text in [
        ("Set operations can only apply to the same number of columns", "select 1 union select 1, 2"),
        ('column "made_up" not found', "select made_up_too, 'made_up', -- made_up\n1"),
    ]:
        assert placed(message, text) == message


def test_what_stands_in_the_text_is_no_pattern() -> None:
    assert placed('column "a(b[" not found', 'select "a(b["').endswith("(line 1, column 8)")
    assert placed('column "a.*" not found', "select abc").endswith("found")


@pytest.mark.parametrize(
    ("one", "other", "steps"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "abd", 1),
        ("abc", "acb", 1),
        ("abc", "ab", 1),
        ("ca", "abc", 3),
        ("kitten", "sitting", 3),
        ("abcdef", "fedcba", 5),
        ("abcdef", "uvwxyz", 6),
        ("a", "abcdefghi", 6),
    ],
)
def test_the_distance_counts_steps_and_swaps_up_to_a_bound(one: str, other: str, steps: int) -> None:
    assert distance(one, other, 5) == steps
    assert distance(other, one, 5) == steps


def test_the_nearest_names_come_first_and_only_a_few() -> None:
    assert closest("custmer", ["custume", "customers", "customer", "x"]) == ["customer", "customers", "custume"]
    assert len(closest("column_1", [f"column_{number}" for number in range(50)])) == OFFERED_MOST
    assert closest("id", ["identity", "a"]) == []
    assert closest("", ["a", "bcd"]) == ["a"]


def test_a_database_of_many_columns_is_no_burden() -> None:
    many = [f"{letter * 30}_{number:025d}" for number in range(200) for letter in "abcdefghijklmnopqrst"]
    started = time.process_time()
    closest("k" * 31 + "9" * 30, many)
    assert time.process_time() - started < 2


def test_long_lists_are_cut() -> None:
    known = {f"table_{number:02d}": ["a"] for number in range(30)}
    said = explained("Catalog Error: Table with name zzz does not exist!", known)
    assert said.endswith("table_19 and 10 more")


def test_without_names_the_first_sentence_stays() -> None:
    assert explained('Binder Error: Referenced column "a" not found in FROM clause!', {}) == (
        'Binder Error: Referenced column "a" not found in FROM clause'
    )
    assert explained('Catalog Error: Table with name a does not exist!\nDid you mean "pg_am"?', {}) == (
        "Catalog Error: Table with name a does not exist"
    )
    assert (
        explained('Binder Error: Referenced table "a" not found!', {})
        == 'Binder Error: Referenced table "a" not found'
    )


@pytest.mark.parametrize("sign", ["/*", "'", '"', "--", "$$", "`", "(", "/* "])
@pytest.mark.parametrize("name", ["nocol", "(" * 60, "a" * 10_000])
def test_the_place_costs_next_to_nothing_in_a_hostile_text(sign: str, name: str) -> None:
    for text in (sign * (20_000 // len(sign)), f'SELECT 1 AS "{sign * (19_000 // len(sign))}", nocol'):
        spent = []
        for _ in range(3):
            started = time.thread_time()
            placed(f'Referenced column "{name}" not found', text)
            spent.append(time.thread_time() - started)
        assert sorted(spent)[1] < 0.005


def test_a_sign_of_a_comment_within_a_name_or_a_text_is_none() -> None:
    said = 'column "nocol" not found'
    assert placed(said, 'select 1 as "/* --", nocol') == f"{said} (line 1, column 22)"
    assert placed(said, "select '/* -- it''s', nocol /* open") == f"{said} (line 1, column 23)"
    assert placed(said, "select 1 /* open, nocol") == said
    assert placed(said, 'select "a nocol b", "nocol"') == f"{said} (line 1, column 21)"


@pytest.mark.parametrize("filling", ["\n", " ", "\nLINE 1", "\nCandidate bindings", "Did you mean "])
def test_a_complaint_of_whatever_length_is_read_in_time(filling: str) -> None:
    message = "Conversion Error: Could not convert string '" + filling * (100_000 // len(filling))
    started = time.thread_time()
    explained(message, {})
    assert time.thread_time() - started < 0.1
