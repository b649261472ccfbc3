"""Rank rules: what is signal, what is the rounding of a checkpoint, and what a budget buys."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.lowrank import rank as rank_module
from regraft.lowrank.noise import rounding_noise
from regraft.lowrank.rank import (
    RankRule,
    break_even,
    decompose,
    least_common_rank,
    parse_rule,
    share_budget,
    uniform_rank,
)
from regraft.lowrank.svd import squared_frobenius

TRUE_RANK = 12


def pair(
    share: float, m: int = 384, n: int = 320, rank: int = TRUE_RANK, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(base, extended) in float32: the delta has `rank` and `share` of the weights' norm."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(m, n, generator=generator) * 0.02
    left, right = (
        torch.randn(m, rank, generator=generator),
        torch.randn(rank, n, generator=generator),
    )
    delta = left.double() @ right.double()
    return base, (base.double() + delta * (share * base.norm() / delta.norm())).float()


def auto(base: torch.Tensor, extended: torch.Tensor, rule: RankRule | None = None) -> int:
    delta = extended.float() - base.float()
    svd, _ = decompose(
        delta,
        rule or RankRule(),
        rounding_noise(base, extended),
        squared_norm=squared_frobenius(delta),
    )
    return svd.rank


@pytest.mark.parametrize("share", [0.0003, 0.003, 0.01, 0.03, 0.3])
def test_auto_finds_the_rank_of_a_float32_delta(share):
    assert auto(*pair(share)) == TRUE_RANK


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stored", ["bfloat16", "upcast to float32", "only extended rounded"])
@pytest.mark.parametrize("base_rounded_first", [True, False])
@pytest.mark.parametrize("share", [0.003, 0.01, 0.03])
def test_auto_finds_the_rank_through_bfloat16(share, base_rounded_first, stored, seed):
    base, extended = pair(share, seed=seed)
    if base_rounded_first:  # trained from the base as it is stored
        delta = extended - base
        base = base.bfloat16().float()
        extended = base + delta
    extended = extended.bfloat16()
    if stored != "only extended rounded" or base_rounded_first:
        base = base.bfloat16()
    if stored == "upcast to float32":
        base, extended = base.float(), extended.float()
    assert auto(base, extended) == TRUE_RANK


@pytest.mark.parametrize("rank", [150, 180])
def test_auto_follows_the_rank_past_the_block_it_began_with(rank):
    base, extended = pair(0.03, 700, 640, rank)
    assert auto(base, extended) == rank


def test_auto_stops_at_break_even_and_at_the_cap():
    base, extended = pair(0.3, 300, 300, rank=280)
    assert auto(base, extended) == break_even(300, 300) == 150
    assert auto(base, extended, RankRule(cap=20)) == 20
    wide = pair(0.3, 20, 400, rank=20)
    assert auto(*wide) == break_even(20, 400) == 19


def test_a_delta_that_is_only_rounding_gets_no_rank():
    base = torch.randn(384, 320, generator=torch.Generator().manual_seed(3)) * 0.02
    assert auto(base, base.bfloat16()) == 0
    assert auto(base.half(), base.bfloat16()) == 0


@settings(max_examples=20)
@given(m=st.integers(1, 60), n=st.integers(1, 60))
def test_break_even_is_where_factors_stop_being_smaller(m, n):
    rank = break_even(m, n)
    assert rank * (m + n) <= m * n or rank == 1
    assert (rank + 1) * (m + n) > m * n


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
def test_energy_is_the_least_rank_that_holds_the_share(share):
    base, extended = pair(0.05, 200, 180, rank=40)
    values = torch.linalg.svdvals((extended - base).double()).square()
    needed = int((values.cumsum(0) < share * values.sum()).sum()) + 1
    assert auto(base, extended, RankRule(energy=share)) == needed


def test_all_the_energy_is_all_that_stands_above_the_noise():
    base, extended = pair(0.01)
    assert auto(base.bfloat16(), extended.bfloat16(), RankRule(energy=1.0)) == TRUE_RANK


def test_a_fixed_rank_is_given_up_to_the_size_of_the_matrix():
    base, extended = pair(0.01, 40, 30)
    assert auto(base, extended, RankRule(rank=8)) == 8
    assert auto(base, extended, RankRule(rank=64)) == 30


spectra = st.lists(
    st.tuples(
        st.lists(st.floats(1e-3, 100), max_size=6).map(lambda v: sorted(v, reverse=True)),
        st.tuples(st.integers(1, 30), st.integers(1, 30)),
    ),
    min_size=1,
    max_size=4,
)


def captured(modules: list[tuple[list[float], tuple[int, int]]], ranks: list[int]) -> float:
    pairs = zip(modules, ranks, strict=True)
    return sum(v**2 for (values, _), rank in pairs for v in values[:rank])


def bytes_of(modules: list[tuple[list[float], tuple[int, int]]], ranks: list[int]) -> int:
    return sum(2 * r * sum(shape) for (_, shape), r in zip(modules, ranks, strict=True))


@settings(max_examples=60)
@given(modules=spectra, extra=st.integers(0, 1000))
def test_a_budget_is_kept_and_buys_at_least_what_a_uniform_rank_does(modules, extra):
    named = {str(i): module for i, module in enumerate(modules)}
    header = rank_module._header_bytes(len(modules))
    ranks = list(share_budget(named, header + extra, 2).values())
    assert bytes_of(modules, ranks) <= extra
    assert all(r <= len(values) for (values, _), r in zip(modules, ranks, strict=True))
    largest = max(2 * sum(shape) for _, shape in modules)
    for r in itertools.count(1):
        uniform = [min(r, len(values)) for values, _ in modules]
        spent = bytes_of(modules, uniform)
        if spent > extra or r > 6:
            break
        # greedy by energy per byte is the optimum but for the last value that does not fit
        slack = largest * max(
            (v[k] ** 2 / (2 * sum(shape)) for (v, shape), k in zip(modules, ranks, strict=True)
             if k < len(v)), default=0.0,
        )  # fmt: skip
        assert captured(modules, ranks) >= captured(modules, uniform) - slack - 1e-9


def test_a_budget_goes_where_a_byte_buys_most():
    named = {
        "strong": ([10.0, 9.0, 8.0], (10, 10)),
        "weak": ([1.0, 0.9], (10, 10)),
        "large": ([10.0, 9.0], (1000, 1000)),
    }
    header = rank_module._header_bytes(3)
    assert share_budget(named, header + 3 * 40, 2) == {"strong": 3, "weak": 0, "large": 0}
    assert share_budget(named, header + 5 * 40, 2) == {"strong": 3, "weak": 2, "large": 0}
    # 4000 bytes would buy one value of the large module, or all of the small ones
    assert share_budget(named, header + 4000, 2) == {"strong": 3, "weak": 2, "large": 0}
    assert share_budget(named, header + 10**6, 2) == {"strong": 3, "weak": 2, "large": 2}


def test_the_uniform_rank_is_the_largest_that_fits():
    shapes = [(100, 60), (60, 60)]
    header = rank_module._header_bytes(2)
    assert uniform_rank(shapes, header + 5 * 280 * 2, 2) == 5
    assert uniform_rank(shapes, header + 5 * 280 * 2 - 1, 2) == 4
    with pytest.raises(InputError, match=r"--budget 100 is less than the \d+ bytes that rank 1"):
        uniform_rank(shapes, 100, 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, None, None), RankRule()),
        (("auto", None, None), RankRule()),
        (("16", None, None), RankRule(rank=16)),
        ((16, None, None), RankRule(rank=16)),
        ((None, 0.9, None), RankRule(energy=0.9)),
        (("auto", 1.0, None), RankRule(energy=1.0)),
        ((None, None, 10**6), RankRule(budget=10**6)),
    ],
)
def test_one_rule_is_read_from_the_arguments(arguments, expected):
    rule = parse_rule(*arguments, None)
    assert rule == expected
    assert rule.describe()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None, 0.5, 100), "--energy and --budget"),
        ((8, 0.5, None), "--rank and --energy"),
        (("8", None, 100), "--rank and --budget"),
        ((0, None, None), "--rank 0 is too small"),
        ((-3, None, None), "--rank -3 is too small"),
        (("many", None, None), "neither a number nor 'auto'"),
        (("8.5", None, None), "neither a number nor 'auto'"),
        ((None, 0.0, None), "not a share"),
        ((None, 1.5, None), "not a share"),
        ((None, math.nan, None), "not a share"),
        ((513, None, None), "vLLM's largest"),
    ],
)
def test_impossible_rules_are_refused_in_one_sentence(arguments, said):
    with pytest.raises(InputError, match=said) as refused:
        parse_rule(*arguments, 512)
    assert "\n" not in str(refused.value)


def test_one_module_of_high_rank_makes_not_all_as_large():
    fast, slow = [1.0, 0.1, 0.01, 0.0], [1e-4, 5e-5, 2e-5, 1e-5, 0.0]
    modules = [(fast, 2)] * 9 + [(slow, 4)]
    assert least_common_rank(modules) == 2 + 1  # 9 x 0.01 + 0 beyond rank 2 is not reached by 2
    assert least_common_rank(modules, slack=0.01) == 2


def test_a_common_rank_gives_exact_changes_up_only_where_none_has_rank_left():
    exact = [([9.0, 4.0, 1.0, 0.0], 3), ([2.0, 0.0], 1)]
    assert least_common_rank(exact) == least_common_rank(exact, slack=0.01) == 3


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0, 1), min_size=2, max_size=9).map(
                lambda values: sorted(values, reverse=True)
            ),
            st.integers(1, 8),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([0.0, 0.01, 0.3]),
)
def test_no_lower_common_rank_has_as_small_an_error(drawn, slack):
    modules = [(errors, min(own, len(errors) - 1)) for errors, own in drawn]

    def error(rank: int) -> float:
        return math.fsum(errors[min(rank, len(errors) - 1)] for errors, _ in modules)

    rank = least_common_rank(modules, slack)
    allowed = (1 + slack) ** 2 * math.fsum(errors[own] for errors, own in modules)
    assert error(rank) <= allowed
    assert rank <= max(own for _, own in modules)
    assert all(error(lower) > allowed for lower in range(1, rank))
