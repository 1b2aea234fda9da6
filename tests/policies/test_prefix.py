"""Which engine probably holds how much of a prompt: chained hashes, bounded per engine."""

from __future__ import annotations

import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.routing.prefix import BLOCK_BYTES, BLOCK_TOKENS, MAX_BLOCKS, PrefixIndex, chain


def digest(block: bytes, previous: int) -> int:
    return zlib.crc32(block, previous & 0xFFFFFFFF) | (previous & 0xFFFF) << 32


def an_index(*engines: str, capacity: int = 100) -> PrefixIndex:
    index = PrefixIndex(capacity)
    for engine in engines:
        index.add_engine(engine)
    return index


def matched(index: PrefixIndex, prefix: tuple[int, ...], *engines: str) -> list[int]:
    """In blocks, engine by engine."""
    found = index.matches(prefix, engines)
    return [found[engine] // BLOCK_TOKENS for engine in engines]


def test_equal_beginnings_have_equal_hashes_up_to_the_block_that_differs() -> None:
    text = bytes(range(256)) * 6
    one, other = chain(text, digest), chain(text[: 4 * BLOCK_BYTES] + b"x" * 2 * BLOCK_BYTES, digest)
    assert len(one) == 6 * 256 // BLOCK_BYTES
    assert one[:4] == other[:4]
    assert not set(one[4:]) & set(other[4:])


def test_only_whole_blocks_count_and_only_the_first_of_them() -> None:
    assert chain(b"x" * (BLOCK_BYTES - 1), digest) == ()
    assert len(chain(b"x" * (3 * BLOCK_BYTES + 1), digest)) == 3
    assert len(chain(b"x" * (MAX_BLOCKS + 9) * BLOCK_BYTES, digest)) == MAX_BLOCKS


def test_another_seed_gives_other_hashes() -> None:
    text = b"the same prompt " * 64
    assert not set(chain(text, digest, seed=1)) & set(chain(text, digest, seed=2))


def test_an_engine_holds_what_it_was_sent() -> None:
    index = an_index("a", "b", "c")
    index.sent((1, 2, 3, 4), "a")
    index.sent((1, 2, 9), "b")
    assert matched(index, (1, 2, 3, 4), "a", "b", "c") == [4, 2, 0]
    assert matched(index, (1, 2, 9, 4), "a", "b", "c") == [2, 3, 0]
    assert matched(index, (7, 2, 3), "a", "b", "c") == [0, 0, 0]
    assert matched(index, (), "a", "b") == [0, 0]
    assert matched(index, (1, 2, 3, 4, 5, 6), "a") == [4]


def test_the_least_recently_sent_goes_first_and_the_deepest_before_the_shallow() -> None:
    index = an_index("a", capacity=5)
    index.sent((1, 2, 3), "a")
    index.sent((7, 8, 9), "a")
    assert index.blocks("a") == 5
    assert matched(index, (1, 2, 3), "a") == [2]
    index.sent((1, 2), "a")  # used again, so that now the other goes first
    index.sent((20, 21), "a")
    assert matched(index, (1, 2), "a") == [2]
    assert matched(index, (7, 8, 9), "a") == [1]


def test_a_prompt_longer_than_the_bound_keeps_its_beginning() -> None:
    index = an_index("a", capacity=3)
    index.sent((1, 2, 3, 4, 5), "a")
    assert index.blocks("a") == 3
    assert matched(index, (1, 2, 3, 4, 5), "a") == [3]


def test_an_engine_that_goes_takes_what_it_held_with_it() -> None:
    index = an_index("a", "b")
    index.sent((1, 2), "a")
    index.sent((1, 2), "b")
    index.drop_engine("a")
    assert matched(index, (1, 2), "a", "b") == [0, 2]
    index.drop_engine("b")
    assert len(index) == 0


def test_a_new_engine_does_not_inherit_what_a_gone_one_held() -> None:
    index = an_index("a", "b")
    index.sent((1, 2), "a")
    index.drop_engine("a")
    for name in ("c", "d"):
        index.add_engine(name)
    assert matched(index, (1, 2), "b", "c", "d") == [0, 0, 0]
    index.sent((1, 2), "d")
    assert matched(index, (1, 2), "b", "c", "d") == [0, 0, 2]


def test_an_engine_that_is_not_known_holds_nothing() -> None:
    index = an_index("a")
    index.sent((1,), "stranger")
    index.drop_engine("stranger")
    assert matched(index, (1,), "stranger", "a") == [0, 0]
    assert index.blocks("stranger") == 0


def test_adding_an_engine_again_keeps_what_it_holds() -> None:
    index = an_index("a")
    index.sent((1, 2), "a")
    index.add_engine("a")
    assert matched(index, (1, 2), "a") == [2]


prompts = st.lists(st.integers(0, 3), max_size=6).map(tuple)
names = st.sampled_from("abcd")
changes = st.one_of(
    st.tuples(st.just("sent"), names, prompts),
    st.tuples(st.just("add"), names, st.just(())),
    st.tuples(st.just("drop"), names, st.just(())),
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(changes, max_size=30), prompts)
def test_the_index_agrees_with_plain_lists(
    done: list[tuple[str, str, tuple[int, ...]]], asked: tuple[int, ...]
) -> None:
    capacity = 6
    index, plain = PrefixIndex(capacity), dict[str, list[tuple[int, ...]]]()
    for what, engine, blocks in done:
        prefix = tuple(blocks[: n + 1] for n in range(len(blocks)))
        numbers = tuple(hash(block) for block in prefix)
        if what == "add":
            index.add_engine(engine)
            plain.setdefault(engine, [])
        elif what == "drop":
            index.drop_engine(engine)
            plain.pop(engine, None)
        else:
            index.sent(numbers, engine)
            if engine in plain:
                kept = [block for block in plain[engine] if block not in prefix]
                plain[engine] = [*kept, *reversed(prefix)][-capacity:]
    wanted = [asked[: n + 1] for n in range(len(asked))]
    found = index.matches(tuple(hash(block) for block in wanted), list("abcd"))
    for engine in "abcd":
        held = plain.get(engine, [])
        depth = next((n for n, block in enumerate(wanted) if block not in held), len(wanted))
        assert found[engine] == depth * BLOCK_TOKENS
        assert index.blocks(engine) == len(held)
