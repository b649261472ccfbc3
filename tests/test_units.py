"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.units import (
    format_bytes,
    format_estimate,
    format_tokens,
    parse_bytes,
    parse_tokens,
    plan_rows,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("8192", 8192),
        (8192, 8192),
        ("8k", 8192),
        ("8K", 8192),
        (" 64 k ", 65536),
        ("1M", 1048576),
        ("1.5k", 1536),
        ("1_000", 1000),
        ("262,144", 262144),
        ("1g", 2**30),
    ],
)
def test_token_counts_are_binary(text: str | int, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("300MB", 300_000_000),
        ("1GiB", 2**30),
        ("1.5 kib", 1536),
        ("17", 17),
        ("17b", 17),
        ("2t", 2 * 10**12),
        ("2.05GB", 2_050_000_000),
        ("1.1MB", 1_100_000),
        ("4.35 gb", 4_350_000_000),
        ("0.29MB", 290_000),
    ],
)
def test_bytes_are_decimal_unless_they_say_so(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "size"), [("0.7kib", 717), ("1.4b", 1), ("2.0000000001kB", 2000), ("0.9b", 1)]
)
def test_fractions_of_a_byte_are_rounded(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@given(st.integers(1, 10**15))
def test_decimal_sizes_lose_no_byte(size: int) -> None:
    whole, rest = divmod(size, 10**9)
    assert parse_bytes(f"{whole}.{rest:09}GB") == size


@given(st.integers(1, 2**50))
def test_binary_fractions_of_tokens_lose_none(tokens: int) -> None:
    whole, rest = divmod(tokens, 1024)
    fraction = f"{rest / 1024:.10f}"[1:]  # 1024ths end within ten digits
    assert parse_tokens(f"{whole}{fraction}k") == tokens


@pytest.mark.parametrize(
    "text", ["", "k", "8q", "8kb", "-8k", "0", "0.5", "1.0001k", "8 k k", "nan", "1e5", "_8"]
)
def test_what_is_no_token_count_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="8192, 64k or 1M") as caught:
        parse_tokens(text)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("text", ["", "MB", "1 xb", "0", "-1MB", "0.3b"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="such as 300MB"):
        parse_bytes(text)


@given(st.integers(1, 2**50))
def test_formatted_token_counts_read_back(tokens: int) -> None:
    assert parse_tokens(format_tokens(tokens)) == tokens


def test_tokens_take_the_largest_unit_that_divides_them() -> None:
    assert [format_tokens(n) for n in (8192, 1048576, 12000, 1023, 1536 * 1024)] == [
        "8k",
        "1M",
        "12000",
        "1023",
        "1536k",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (335544320, "336 MB"),
        (1_500_000, "1.5 MB"),
        (999_600, "1 MB"),
        (99_960_000, "100 MB"),
        (16.06e9, "16.1 GB"),
        (2.5e15, "2500 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_bytes_are_shown_with_three_digits(size: float, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(1, 10**14))
def test_a_shown_size_is_within_its_last_digit(size: int) -> None:
    number, unit = format_bytes(size).split()
    assert float(number) * parse_bytes(f"1{unit}") == pytest.approx(size, rel=0.005, abs=0.5)


def test_a_plan_has_sizes_for_people_and_the_users_names_unchanged() -> None:
    plan = {"read_bytes": 32_121_044_992, "seconds": 2.5, "graft/my_bytes": "a -> b"}
    assert plan_rows(plan) == [
        ("read", "32.1 GB"), ("time", "about 2.5 s"), ("graft/my_bytes", "a -> b")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00172, "less than 0.1 s"), (2.34, "about 2.3 s"), (110, "about 110 s"),
     (400, "about 6.7 min"), (4e4, "about 11 h"), (1e6, "about 12 days")],
)  # fmt: skip
def test_times_are_no_more_exact_than_they_are_known(seconds, text):
    assert format_estimate(seconds) == text
