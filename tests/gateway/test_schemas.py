"""`GET /v1/databases/{database}/schema?tables=…`: the text of some tables, the same for the same ones."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import pytest
import pytest_asyncio

from gateway.openai.errors import ApiError
from gateway.question import TABLES_MOST
from gateway.schemas import chosen, tables_of
from tests.gateway.support import Running, error_of, running, settled, written

TABLES = """
    CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER);
    CREATE TABLE customers (id INTEGER, name VARCHAR);
    CREATE TABLE "Order, Lines" (id INTEGER);
    CREATE SCHEMA old;
    CREATE TABLE old.stores (id INTEGER);
    CREATE TABLE stores (city VARCHAR);
    CREATE TABLE "main.orders" (ß INTEGER);
    CREATE TABLE "STRASSE" ("two
lines" INTEGER);
    CREATE TABLE "straße" (id INTEGER);
    COMMENT ON COLUMN customers.name IS 'In full';
"""
CUSTOMERS = "customers(id INTEGER, name VARCHAR) -- 0 rows\n  name: In full\n"
ORDERS = "orders(id INTEGER PRIMARY KEY, customer INTEGER) -- 0 rows\n"
LINES = '"Order, Lines"(id INTEGER) -- 0 rows\n'
STORES = "old.stores(id INTEGER) -- 0 rows\n"
DOTTED = '"main.orders"("ß" INTEGER) -- 0 rows\n'
UPPER = '"STRASSE"("two\\nlines" INTEGER) -- 0 rows\n'
SHARP = '"straße"(id INTEGER) -- 0 rows\n'

module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("schemas")
    with duckdb.connect(str(folder / "shop.duckdb")) as connection:
        connection.execute(TABLES)
    backend = {"name": "duckdb", "databases": {"shop": str(folder / "shop.duckdb")}, "timeout": "20s"}
    async with running(folder, written({"warehouse": {"backend": backend}}), report_every=60) as up:
        yield up
        await settled(up.gateway)


@module_loop
@pytest.mark.parametrize(
    ("tables", "text"),
    [
        (["orders"], ORDERS),
        (["orders,customers"], CUSTOMERS + ORDERS),
        (["customers,orders"], CUSTOMERS + ORDERS),
        (["orders", "customers", "orders"], CUSTOMERS + ORDERS),
        ([" ORDERS , main.Customers "], CUSTOMERS + ORDERS),
        (['"Order, Lines",old.stores'], LINES + STORES),
        (['OLD."stores"'], STORES),
        (["main.orders"], ORDERS),
        (['main."ORDERS"'], ORDERS),
        (['"Main.orders"'], DOTTED),
        (["strasse"], UPPER),
        (["STRAßE"], SHARP),
        (['"order, lines",orders,customers,old.stores'], LINES + CUSTOMERS + ORDERS + STORES),
    ],
)
async def test_the_tables_asked_for_come_in_the_order_of_the_database(
    up: Running, tables: list[str], text: str
) -> None:
    reply = await up.http.get("/v1/databases/shop/schema", params={"tables": tables})
    assert reply.status_code == 200, reply.text
    assert reply.json()["text"] == text
    assert "".join(table["text"] for table in reply.json()["tables"]) == text
    assert reply.json()["database"] == "shop"
    whole = (await up.http.get("/v1/databases/shop/schema")).json()
    assert all(table in whole["tables"] for table in reply.json()["tables"])


@module_loop
async def test_however_tables_are_asked_for_the_bytes_are_the_same(up: Running) -> None:
    asked = ["orders,customers", "customers,orders", "CUSTOMERS,orders,orders"]
    replies = [await up.http.get("/v1/databases/shop/schema", params={"tables": tables}) for tables in asked]
    assert len({reply.content for reply in replies}) == 1


@module_loop
@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("order", "did you mean orders"),
        ("costumers", "did you mean customers?"),
        ("shop.stores", "did you mean "),
        ("zebra", 'the tables are: "Order, Lines", "STRASSE", customers, '),
        ("STRASZE", 'did you mean "STRASSE"'),
        ("orders'; DROP TABLE orders", "did you mean "),
        ("../../etc/passwd", "the tables are: "),
    ],
)
async def test_an_unknown_table_is_answered_with_what_can_have_been_meant(
    up: Running, wanted: str, offered: str
) -> None:
    reply = await up.http.get("/v1/databases/shop/schema", params={"tables": f"orders,{wanted}"})
    assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")
    assert error_of(reply)["message"].startswith(f"no table named '{wanted}'; {offered}")
    assert error_of(reply)["param"] == "tables"


@module_loop
@pytest.mark.parametrize("tables", ["", ",", " , ", "orders, ", "a," * (TABLES_MOST + 1)])
async def test_no_table_at_all_is_no_choice(up: Running, tables: str) -> None:
    reply = await up.http.get("/v1/databases/shop/schema", params={"tables": tables})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "tables")


@module_loop
async def test_an_unknown_database_is_404_whatever_tables_are_asked_for(up: Running) -> None:
    reply = await up.http.get("/v1/databases/nowhere/schema", params={"tables": "orders"})
    assert (reply.status_code, error_of(reply)["code"]) == (404, "database_not_found")


async def test_what_went_wrong_with_the_database_is_told_before_the_tables_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(TABLES)
    backend = {"name": "duckdb", "databases": {"shop": str(path)}, "timeout": "20s"}
    async with running(tmp_path, written({"warehouse": {"backend": backend}}), report_every=60) as up:
        path.write_bytes(b"no database at all")
        reply = await up.http.get("/v1/databases/shop/schema", params={"tables": "zebra"})
        assert reply.status_code not in (200, 404)
        assert str(tmp_path) not in reply.text


def test_names_are_parted_by_commas_that_stand_outside_of_quotes() -> None:
    assert tables_of(b"") is None
    assert tables_of(b"tables=a,b&tables=c") == ["a", "b", "c"]
    assert tables_of(b"tables=%22a,+%22%22b%22,c%20d") == ['"a, ""b"', "c d"]
    assert tables_of(b"tables=%22open,b") == ["open", "b"]
    assert tables_of("tables=\xe9t\xe9".encode()) is not None
    with pytest.raises(ApiError, match="tables"):
        tables_of(b"tables=")
    with pytest.raises(ApiError, match=r"table: is not known here; did you mean tables\?"):
        tables_of(b"table=stores")


@pytest.mark.parametrize("wanted", ["table_of_thing_00500", "zebra", "xtable_of_things_0050"])
def test_among_thousands_of_tables_a_name_that_is_none_costs_little(tmp_path: Path, wanted: str) -> None:
    names = [f"table_of_things_{number:05d}" for number in range(5000)]
    described = [{"name": name, "text": ""} for name in names]
    best = float("inf")
    for _ in range(9):
        began = time.thread_time()
        with pytest.raises(ApiError, match="no table named"):
            chosen(described, [wanted])
        best = min(best, time.thread_time() - began)
    assert best < 0.05, "with every table compared it takes a fifth of a second"
