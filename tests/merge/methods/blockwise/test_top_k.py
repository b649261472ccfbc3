"""The exact selection of the k largest, on ordinary and hostile data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.errors import InputError
from regraft.merge.methods.blockwise import top_k
from regraft.merge.methods.blockwise.top_k import Cut, largest


def expected_mask(magnitudes: Tensor, k: int) -> Tensor:
    order = magnitudes.flatten().sort(descending=True, stable=True).indices[:k]
    return torch.zeros(magnitudes.numel()).scatter_(0, order, 1.0).bool().view(magnitudes.shape)


def stream_of(magnitudes: Tensor, height: int, passes: list[int]) -> top_k.Stream:
    def stream(step: int) -> Iterator[list[Tensor]]:
        passes.append(step)
        for row in range(0, magnitudes.shape[0], height * step):
            yield [magnitudes[row : row + height * step : step]]

    return stream


ROWS, COLUMNS = 150, 41


HOSTILE: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.randn(ROWS, COLUMNS),
    "rows of all sizes": lambda: torch.randn(ROWS, COLUMNS) * torch.rand(ROWS, 1) ** 9,
    "lattice": lambda: (torch.randn(ROWS, COLUMNS) * 2).round(),
    "mostly zero": lambda: (torch.randn(ROWS, COLUMNS) * 0.4).round(),
    "sorted": lambda: torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS).float(),
    "all equal": lambda: torch.ones(ROWS, COLUMNS),
    "subnormal": lambda: torch.rand(ROWS, COLUMNS) * 1e-42,
    "infinite": lambda: torch.randn(ROWS, COLUMNS).reciprocal_().mul_(1e38).mul_(10),
    # the sampled rows are the odd ones out
    "misled": lambda: torch.randn(ROWS, COLUMNS) * torch.arange(ROWS).remainder(5)[:, None],
    "double": lambda: torch.randn(ROWS, COLUMNS, dtype=torch.float64) * torch.rand(ROWS, 1) ** 9,
}  # fmt: skip


@settings(max_examples=75)
@given(
    kind=st.sampled_from(list(HOSTILE)),
    k=st.integers(0, ROWS * COLUMNS),
    height=st.sampled_from([1, 7, ROWS]),
    seed=st.integers(0, 99),
)
def test_selection_is_exact_for_any_data(kind: str, k: int, height: int, seed: int) -> None:
    torch.manual_seed(seed)
    magnitudes = HOSTILE[kind]().abs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "_SAMPLE", 1500)  # every fifth row
        passes: list[int] = []
        (cut,) = largest(stream_of(magnitudes, height, passes), [(0, k)], ROWS, COLUMNS)
    assert len(passes) <= (7 if magnitudes.dtype == torch.float64 else 5)
    blocks = [cut.mask(magnitudes[row : row + height], row) for row in range(0, ROWS, height)]
    assert torch.equal(torch.cat(blocks), expected_mask(magnitudes, k))
    values = -magnitudes
    blocks = [cut.trim(values[row : row + height], row) for row in range(0, ROWS, height)]
    assert torch.equal(torch.cat(blocks), torch.where(expected_mask(magnitudes, k), values, 0))


def test_selection_reads_ordinary_data_once_after_the_sample() -> None:
    torch.manual_seed(0)
    rows, columns = 1200, 2048  # more than two samples
    for magnitudes in (
        torch.randn(rows, columns).abs(),
        torch.randn(rows, columns).bfloat16().abs(),
    ):
        passes: list[int] = []
        stream = stream_of(magnitudes.float(), 64, passes)
        requests = [(0, int(share * rows * columns)) for share in (0.1, 0.5, 0.9)]
        cuts = largest(stream, requests, rows, columns)
        assert passes == [3, 1]
        for cut, (_, k) in zip(cuts, requests, strict=True):
            assert int(cut.mask(magnitudes.float(), 0).sum()) == k


def test_selection_of_all_or_nothing_reads_nothing() -> None:
    passes: list[int] = []
    stream = stream_of(torch.randn(4, 4), 4, passes)
    all_of_it, none_of_it = largest(stream, [(0, 16), (0, 0)], 4, 4)
    assert passes == []
    assert bool(all_of_it.mask(torch.zeros(4, 4), 0).all())
    assert not bool(none_of_it.mask(torch.full((4, 4), torch.inf), 0).any())


def test_selection_among_nan_is_refused() -> None:
    stream = stream_of(torch.full((4, 4), torch.nan), 4, [])
    with pytest.raises(InputError, match="not numbers"):
        largest(stream, [(0, 3)], 4, 4)


def test_a_range_gives_no_cut_for_a_rank_outside_it() -> None:
    bracket = top_k._Range(2.0, 3.0)
    bracket.add(torch.tensor([[4.0, 3.0, 2.5, 2.0, 1.0]]), 0)
    assert [bracket.cut(k) for k in (1, 5)] == [None, None]
    assert [bracket.cut(k) for k in (2, 4)] == [Cut(3.0, 0, 1), Cut(2.0, 0, 1)]


def test_a_cut_selects_equal_values_up_to_its_position() -> None:
    equal = torch.ones(3, 4)
    mask = Cut(1.0, row=1, within=2).mask(equal, 0)
    assert mask.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
