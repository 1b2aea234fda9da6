"""The example's material holds together: database, questions, mistakes, script and prompts fit each other."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest
import sqlglot

from backends.emulated.script import load_script
from examples.nl2sql import database, gold, questions, script
from examples.nl2sql.questions import Mistake, Question

QUESTIONS = questions.load()
MISTAKES = [
    pytest.param(question, mistake, id=f"{mistake.kind}: {question.text}")
    for question in QUESTIONS
    for mistake in question.mistakes
]
PROMPTS = {path.stem: path.read_text(encoding="utf-8") for path in script.FILE.parent.glob("prompts/*.md")}
STAGES = ("generate", "verify", "fix")

# What seed 7 gives on every machine. Who changes database.sql on purpose puts the new values here.
FINGERPRINTS = {
    "customers": "9c51226ad39af89f2966444030c0fbce",
    "products": "34e6ffe4d5d3d252e6260c668efc2078",
    "promotions": "3e2262d81273390fd55e58e445683e98",
    "regions": "19edf5a39c2ccad720e2e88692918510",
    "returns": "311e048e24a874bbe7266becac3c5a79",
    "sales": "a8221f27f181fdb90d172b9f9a236417",
    "stores": "9c8589ad3f1ece3ac7372ee4d1bc7635",
}


def one(connection: duckdb.DuckDBPyConnection, sql: str) -> object:
    row = connection.execute(sql).fetchone()
    assert row is not None
    return row[0]


def fingerprint(connection: duckdb.DuckDBPyConnection, table: str) -> object:
    lines = f"SELECT concat_ws('|', *COLUMNS(*)) AS line FROM {table}"
    return one(connection, f"SELECT md5(string_agg(line, chr(10) ORDER BY line)) FROM ({lines})")


def canonical(sql: str) -> str:
    """The statement as a parser that stands before DuckDB writes it anew."""
    return sqlglot.parse_one(sql, dialect="duckdb").sql("duckdb")


def fill(stage: str, **values: str) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: values.get(name[1], ""), PROMPTS[stage])


# --- the database ---


def test_the_warehouse_has_the_same_rows_on_every_machine(connection: duckdb.DuckDBPyConnection) -> None:
    assert {table: fingerprint(connection, table) for table in FINGERPRINTS} == FINGERPRINTS


def test_the_warehouse_has_seven_tables_and_says_what_is_in_them(connection: duckdb.DuckDBPyConnection) -> None:
    tables = connection.execute("SELECT table_name, comment FROM duckdb_tables() ORDER BY 1").fetchall()
    assert [name for name, _ in tables] == list(FINGERPRINTS)
    assert all(comment for _, comment in tables)
    assert one(connection, "SELECT count(*) FROM duckdb_columns() WHERE NOT internal AND comment IS NULL") == 0
    rows = one(connection, "SELECT count(*) FROM sales")
    assert isinstance(rows, int)
    assert rows >= 200_000


@pytest.mark.parametrize(
    ("table", "column", "target"),
    [
        ("sales", "customer_id", "customers"),
        ("sales", "product_id", "products"),
        ("sales", "store_id", "stores"),
        ("sales", "promotion_id", "promotions"),
        ("returns", "sale_id", "sales"),
        ("stores", "region_id", "regions"),
        ("customers", "region_id", "regions"),
    ],
)
def test_every_reference_leads_to_a_row(
    connection: duckdb.DuckDBPyConnection, table: str, column: str, target: str
) -> None:
    lost = f"SELECT count(*) FROM {table} ANTI JOIN {target} USING ({column}) WHERE {column} IS NOT NULL"
    assert one(connection, lost) == 0
    assert one(connection, f"SELECT count(*) - count(DISTINCT {column}) FROM {target}") == 0


@pytest.mark.parametrize(
    "impossible",
    [
        "SELECT count(*) FROM sales WHERE sold_on NOT BETWEEN DATE '2023-01-01' AND DATE '2025-12-31'",
        "SELECT count(*) FROM returns WHERE returned_on > DATE '2025-12-31'",
        "SELECT count(*) FROM sales JOIN customers USING (customer_id) WHERE sold_on < joined",
        "SELECT count(*) FROM sales JOIN promotions USING (promotion_id) WHERE sold_on NOT BETWEEN starts AND ends",
        "SELECT count(*) FROM sales JOIN returns USING (sale_id) WHERE returned_on <= sold_on OR refund > net_amount",
        "SELECT count(*) FROM (SELECT sale_id, sum(quantity) AS back FROM returns GROUP BY sale_id) "
        "JOIN sales USING (sale_id) WHERE back > quantity",
        "SELECT count(*) FROM sales WHERE net_amount <= 0 OR net_amount > quantity * unit_price",
    ],
)
def test_the_warehouse_holds_nothing_impossible(connection: duckdb.DuckDBPyConnection, impossible: str) -> None:
    assert one(connection, impossible) == 0


def test_a_warehouse_that_is_there_already_is_left_alone(warehouse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = warehouse.stat()
    assert database.main([str(warehouse)]) == 0
    after = warehouse.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert capsys.readouterr().out == f"{warehouse}\n"


def test_a_file_of_another_kind_or_seed_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sales.duckdb"
    path.parent.mkdir()
    path.write_text("not a database")
    database.make(path, seed=8)
    with duckdb.connect(str(path), read_only=True) as other:
        assert fingerprint(other, "regions") == FINGERPRINTS["regions"]
        assert fingerprint(other, "sales") != FINGERPRINTS["sales"]
    assert list(path.parent.iterdir()) == [path]


def test_the_command_without_a_path_tells_its_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert database.main([]) == 2
    assert "PATH" in capsys.readouterr().err


# --- questions and mistakes ---


def test_there_are_sixty_questions_of_which_three_are_beyond_repair() -> None:
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS) == 60
    repaired = [question for question in QUESTIONS if question.mistakes and not question.unrepairable]
    hopeless = [question for question in QUESTIONS if question.unrepairable]
    assert (len(repaired), len(hopeless)) == (23, 3)
    assert sum(len(question.mistakes) == 2 for question in repaired) >= 4
    kinds = [{mistake.kind for mistake in question.mistakes} for question in hopeless]
    assert sorted(map(sorted, kinds)) == [["binder", "syntax"], ["empty"], ["rows"]]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_gold_sql_has_rows_and_survives_a_parser(connection: duckdb.DuckDBPyConnection, question: Question) -> None:
    rows = connection.execute(question.gold).fetchall()
    assert 1 <= len(rows) <= 100
    assert gold.same(connection.execute(canonical(question.gold)).fetchall(), rows)


@pytest.mark.parametrize("question", [question for question in QUESTIONS if "LIMIT" in question.gold])
def test_a_limit_cuts_no_tie(connection: duckdb.DuckDBPyConnection, question: Question) -> None:
    statement, limit = question.gold.rsplit("LIMIT", 1)
    order = statement.rsplit("ORDER BY", 1)[1].replace(" DESC", "").strip()
    assert "," in order, "a second key breaks ties"
    longer = connection.execute(f"{statement} LIMIT {int(limit) + 1}").fetchall()
    assert longer[:-1] == connection.execute(question.gold).fetchall()
    assert longer[-1] not in longer[:-1]


def effect(connection: duckdb.DuckDBPyConnection, sql: str, right: str) -> tuple[str, str]:
    """How a statement ends, as a kind of mistake and DuckDB's message."""
    try:
        rows = connection.execute(sql).fetchall()
    except duckdb.ParserException as error:
        return "syntax", str(error)
    except duckdb.CatalogException as error:
        return "function" if "Function" in str(error) else "binder", str(error)
    except duckdb.BinderException as error:
        return "binder", str(error)
    if not rows:
        return "empty", ""
    return "ok" if gold.same(rows, connection.execute(right).fetchall()) else "rows", ""


@pytest.mark.parametrize(("question", "mistake"), MISTAKES)
def test_a_mistake_shows_as_it_is_said_to(
    connection: duckdb.DuckDBPyConnection, question: Question, mistake: Mistake
) -> None:
    statements = [mistake.sql]
    if mistake.kind == "syntax":
        with pytest.raises(sqlglot.errors.ParseError):
            canonical(mistake.sql)
    else:
        statements.append(canonical(mistake.sql))
    for sql in statements:
        kind, message = effect(connection, sql, question.gold)
        assert kind == mistake.kind
        assert kind != "binder" or mistake.quote in message.splitlines()[0]


def test_an_unknown_kind_of_mistake_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.yaml"
    path.write_text("[{question: Q, gold: SELECT 1, mistakes: [{kind: typo, sql: SELECT 2}]}]")
    with pytest.raises(ValueError, match="'typo' is no kind of mistake"):
        questions.load(path)


# --- the script and the prompts ---


def test_the_script_is_what_its_maker_writes() -> None:
    assert script.FILE.read_text(encoding="utf-8") == script.render(QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_each_rule_answers_in_its_own_situation_alone(question: Question, schema: str) -> None:
    engine = load_script(script.FILE)
    attempts = [mistake.sql for mistake in question.mistakes]
    attempts.append(attempts[0] if question.unrepairable else question.gold)

    def reply(stage: str, **values: str) -> tuple[str, object]:
        rule = engine.find(fill(stage, question=question.text, schema=schema, **values))
        assert rule is not None
        return rule.say, rule.calls[0].arguments.get("sql") if rule.calls else None

    assert reply("generate") == ("", attempts[0])
    for mistake, following in zip(question.mistakes, attempts[1:], strict=True):
        error = mistake.quote or "The statement ran but returned no rows."
        assert reply("fix", sql=mistake.sql, error=error) == ("", following)
        verdict, _ = reply("verify", sql=mistake.sql, rows="| a |")
        assert verdict.startswith("OK:" if mistake.kind != "rows" else f"WRONG: {mistake.quote}")
    assert reply("verify", sql=question.gold)[0].startswith("OK:")


def test_no_rule_is_met_by_what_a_prompt_always_says(schema: str) -> None:
    entries = json.loads(script.render(QUESTIONS))["entries"]
    still = [fill(stage, schema=schema, question=question) for stage in STAGES for question in entries]
    quoting = [rule for rules in entries.values() for rule in rules if "quotes" in rule]
    assert len(quoting) > 40
    for rule in quoting:
        assert all(quote not in text for quote in rule["quotes"] for text in still), rule


@pytest.mark.parametrize("stage", STAGES)
def test_a_prompt_is_a_long_stable_prefix_and_then_the_question(stage: str) -> None:
    text = PROMPTS[stage]
    fixed = text[: text.index("{{")]
    assert 5_000 <= len(fixed.encode()) <= 7_000
    assert text[len(fixed) :].startswith("{{schema}}")
    assert text.splitlines()[-1] == "Question: {{question}}"
    assert [name for name, mark in script.TASKS.items() if mark in text] == [stage]


def test_prompts_of_different_stages_share_no_prefix_block() -> None:
    assert len({PROMPTS[stage][:32] for stage in STAGES}) == len(STAGES)


def test_prompts_use_the_variables_of_their_stage() -> None:
    used = {stage: Counter(re.findall(r"\{\{(\w+)\}\}", text)) for stage, text in PROMPTS.items()}
    assert used == {
        "generate": Counter(["schema", "question"]),
        "verify": Counter(["schema", "sql", "rows", "question"]),
        "fix": Counter(["schema", "sql", "error", "question"]),
        "answer": Counter(["question", "row_count", "sql", "rows"]),
    }


@pytest.mark.parametrize("stage", ["generate", "fix"])
def test_the_examples_in_a_prompt_run(connection: duckdb.DuckDBPyConnection, stage: str) -> None:
    examples = [sql for sql in re.findall(r"```sql\n(.*?)```", PROMPTS[stage], re.DOTALL) if "{{" not in sql]
    assert len(examples) >= 4
    for sql in examples:
        assert connection.execute(sql).fetchall(), sql


@pytest.mark.parametrize("stage", ["verify", "fix"])
def test_the_failing_examples_in_a_prompt_do_not_name_a_question(stage: str) -> None:
    assert not [question.text for question in QUESTIONS if question.text in PROMPTS[stage]]


# --- the comparison with gold ---


@pytest.mark.parametrize(
    ("rows", "other", "equal"),
    [
        ([["a", 1], ["b", 2]], [["b", 2], ["a", 1]], True),
        ([["a", 1], ["a", 1]], [["a", 1]], False),
        ([["a", 1], ["a", 1], ["b", 2]], [["a", 1], ["b", 2], ["b", 2]], False),
        ([["12.50"]], [[Decimal("12.5")]], True),
        ([["12.51"]], [[Decimal("12.50")]], False),
        ([["9007199254740993"]], [[9007199254740993]], True),
        ([["9007199254740992"]], [[9007199254740993]], False),
        ([["2024-02-29"]], [[datetime.date(2024, 2, 29)]], True),
        ([["x", 0.1 + 0.2], ["y", 0.3]], [["y", 0.3], ["x", 0.3]], True),
        ([[0.31]], [[0.3]], False),
        ([[None, True]], [[None, True]], True),
        ([[None]], [["None"]], False),
        ([[True]], [[1]], False),
        ([["a"]], [["a", None]], False),
        ([[]], [], False),
    ],
)
def test_rows_are_compared_as_multisets_of_values(
    rows: list[list[object]], other: list[list[object]], equal: bool
) -> None:
    assert gold.same(rows, other) is equal
    assert gold.same(other, rows) is equal


def test_gold_answers_come_by_question(warehouse: Path) -> None:
    answers = gold.answers(warehouse, QUESTIONS[:2])
    assert list(answers) == [question.text for question in QUESTIONS[:2]]
    assert gold.same([["19500375.69"]], answers[QUESTIONS[0].text])
