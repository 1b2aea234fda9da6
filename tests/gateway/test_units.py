"""Durations and sizes: what is read, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.units import duration, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8s", 8.0), ("250ms", 0.25), ("2m", 120.0), ("1h", 3600.0), ("1.5 s", 1.5), ("0s", 0.0), (0, 0.0), ("0", 0.0)],
)
def test_a_duration_is_seconds(text: object, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1B", 1),
        ("64kB", 64_000),
        ("10MB", 10**7),
        ("1.5GB", 1_500_000_000),
        ("512MiB", 2**29),
        ("1KiB", 1024),
        (0, 0),
    ],
)
def test_a_size_is_bytes(text: object, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("bare", [8, 2.5, "8", "-3", "0.5"])
def test_a_bare_number_is_told_which_units_there_are(bare: object) -> None:
    with pytest.raises(ValueError, match="has no unit; write a duration such as 8s, 250ms, 2m or 1h"):
        duration(bare)
    with pytest.raises(ValueError, match="has no unit; write a size such as 10MB, 512MiB or 64kB"):
        size(bare)


@pytest.mark.parametrize(
    "wrong", ["", "s", "8 sec", "-8s", "8S", "1h30m", "8s ", "1e3s", "9" * 400 + "s", "10MB", True, None, []]
)
def test_anything_else_is_no_duration(wrong: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        duration(wrong)


@pytest.mark.parametrize("wrong", ["", "MB", "10mb", "10M", "-1MB", "10 megabytes", "8s", False, None, {}])
def test_anything_else_is_no_size(wrong: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        size(wrong)


@given(st.integers(0, 10**9))
def test_whole_sizes_are_exact(count: int) -> None:
    assert size(f"{count}B") == count
    assert size(f"{count}KiB") == count * 1024
