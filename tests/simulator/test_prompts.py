from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from policies.routing.prefix import spans
from simulator.prompts import Reuse, chained, leading
from simulator.workload import Segment

PROMPTS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 90)), min_size=1, max_size=5)


def written_out(segments: Sequence[Segment]) -> list[Segment]:
    """The prompt token by token: in a segment of a name each place has a token of its own."""
    return [(name, place) for name, tokens in segments for place in range(tokens)]


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


@given(one=PROMPTS, other=PROMPTS, size=st.sampled_from([1, 7, 16]))
def test_two_prompts_share_the_hashes_of_the_blocks_that_their_tokens_share(
    one: list[Segment], other: list[Segment], size: int
) -> None:
    first, second = chained(one, size, 0), chained(other, size, 0)
    assert len(first) == len(written_out(one)) // size
    assert shared(first, second) == shared(written_out(one), written_out(other)) // size
    assert len(set(first)) == len(first)


@given(one=PROMPTS, other=PROMPTS)
def test_the_gateways_blocks_end_where_its_prefix_index_says(one: list[Segment], other: list[Segment]) -> None:
    lengths = [len(written_out(prompt)) for prompt in (one, other)]
    first, second = (leading(prompt, length, 0) for prompt, length in zip((one, other), lengths, strict=True))
    assert len(first) == len(spans(lengths[0]))
    same = shared(written_out(one), written_out(other))
    assert shared(first, second) == sum(end <= same for end in spans(min(lengths)))


def test_prompts_of_different_seeds_share_nothing() -> None:
    assert not set(chained([(1, 640)], 64, 1)) & set(chained([(1, 640)], 64, 2))


@given(seen=st.lists(PROMPTS, max_size=3), prompt=PROMPTS)
def test_a_memory_knows_the_longest_beginning_that_it_has_seen(
    seen: list[list[Segment]], prompt: list[Segment]
) -> None:
    memory = Reuse()
    for other in seen:
        memory.see(other, 0)
    longest = max((shared(written_out(prompt), written_out(other)) for other in seen), default=0)
    assert memory.known(prompt, 0) == longest
    assert memory.known(prompt, 1) == 0
