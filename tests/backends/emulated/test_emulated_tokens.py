"""Text as tokens: what is cut comes together again, and equal beginnings stay equal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.emulated.tokens import (
    TOKEN_BYTES,
    block_hashes,
    chat_prompt,
    cut,
    pieces,
    text_prompt,
    token_ids,
    token_prompt,
    whole_tokens,
)

CALL = {"id": "x", "type": "function", "function": {"name": "execute_sql", "arguments": '{"sql":"SELECT 1"}'}}


@given(st.text())
def test_the_pieces_of_a_text_are_one_a_token_and_join_to_the_text(text: str) -> None:
    cut_up = pieces(text)
    assert "".join(cut_up) == text
    assert len(cut_up) == len(whole_tokens(text)) // TOKEN_BYTES


@given(st.text(), st.integers(0, 20))
def test_a_cut_text_is_a_beginning_that_fits(text: str, tokens: int) -> None:
    assert text.startswith(cut(text, tokens))
    assert len(pieces(cut(text, tokens))) <= tokens


@given(st.binary(max_size=200), st.binary(max_size=60), st.binary(max_size=60))
def test_equal_beginnings_have_equal_hashes_and_nothing_else_has(shared: bytes, one: bytes, other: bytes) -> None:
    first, second = block_hashes(shared + one, 2), block_hashes(shared + other, 2)
    common = 0
    while (shared + one)[: common * 8 + 8] == (shared + other)[: common * 8 + 8] and common < min(
        len(first), len(second)
    ):
        common += 1
    assert first[:common] == second[:common]
    assert not set(first[common:]) & set(second[common:])


def test_another_salt_shares_nothing() -> None:
    data = b"abcd" * 64
    assert not set(block_hashes(data, 4, "one")) & set(block_hashes(data, 4, "two"))


def test_a_prompt_that_goes_on_keeps_the_tokens_it_had() -> None:
    system: dict[str, object] = {"role": "system", "content": "Be brief."}
    first = chat_prompt([system, {"role": "user", "content": "né?"}])
    reply: dict[str, object] = {"role": "assistant", "content": "oui", "tool_calls": [CALL]}
    answered: list[dict[str, object]] = [system, {"role": "user", "content": "né?"}, reply]
    second = chat_prompt([*answered, {"role": "tool", "content": "[]"}])
    assert second.data.startswith(first.data)
    assert second.text.startswith(first.text)
    assert '"arguments": {"sql":"SELECT 1"}}' in second.text


def test_the_tools_come_first_and_parts_of_content_are_joined() -> None:
    parts: list[object] = [
        {"type": "text", "text": "one "},
        {"type": "image_url", "image_url": {"url": "u"}},
        {"text": "two"},
    ]
    prompt = chat_prompt([{"role": "user", "content": parts}], [{"type": "function"}])
    assert prompt.text.index('[{"type":"function"}]') < prompt.text.index("one ")
    assert 'one {"type":"image_url","image_url":{"url":"u"}}two' in prompt.text
    assert chat_prompt([{"role": "assistant", "content": None, "tool_calls": ["?"]}]).text.count("<|im_end|>") == 1


def test_token_ids_go_both_ways() -> None:
    prompt = text_prompt("ten bytes!")
    assert prompt.tokens == 3
    assert token_prompt(token_ids(prompt)).data == prompt.data
