"""The NL2SQL demo in a short form: its agent, its candidates and its figures, on two real servers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from examples.nl2sql import database, demo_vllm, questions, servers
from examples.nl2sql.play import DATABASE, play
from examples.nl2sql.script import TASKS
from tests.vllm.conftest import BLOCK, BLOCKS, MODEL, Pair

# The demo's own prompts are longer than these servers, whose tokenizer knows few words, take.
PROMPTS = {
    "generate": TASKS["generate"] + " for the warehouse.\n" * 20 + "Question: {{question}}",
    "verify": TASKS["verify"] + "\n```sql\n{{sql}}\n```\nQuestion: {{question}}",
    "fix": TASKS["fix"] + "\n```sql\n{{sql}}\n```\nIt went wrong.\nQuestion: {{question}}",
}


@pytest.mark.timeout(300)
async def test_real_engines_choose_the_statements_that_the_agent_runs(pair: Pair) -> None:
    database.make(DATABASE)
    at = await servers.attached(pair.urls)
    assert (at.model, at.block_size, at.kv_blocks) == (MODEL, BLOCK, BLOCKS)
    asked = demo_vllm.chosen(questions.load())[:5]
    what = replace(demo_vllm.playing(at, asked), prompts=PROMPTS)
    played = await play(what, {"LAYOUT": "isolated", "AFFINITY": "1"}, lambda: None)
    assert (played.errors, len(played.results)) == ({}, 5)
    for question in asked:
        result = played.results[question.text]
        tried = [sql for sql, _ in result.attempts]
        assert set(tried) <= {question.gold, *(mistake.sql for mistake in question.mistakes)}
        assert result.failure or tried[-1] == question.gold
    assert played.engines["vllm:request_prefill_kv_computed_tokens_sum"] > 0
    assert played.engines["vllm:prefix_cache_hits_total"] > 0
