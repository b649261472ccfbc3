"""NaN, infinity and overflow are seen, whatever the dtype."""

from __future__ import annotations

import pytest
import torch

from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.finite import is_finite, norm_bound


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_one_nan_or_infinity_is_seen(dtype: torch.dtype) -> None:
    values = torch.zeros(3, 5, dtype=dtype)
    assert is_finite(values)
    for wrong in (float("nan"), float("inf"), -float("inf")):
        values[1, 2] = wrong
        assert not is_finite(values)


def test_the_norm_bound_is_above_the_norm_of_the_product_and_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(6, 6, generator=generator) for _ in range(2))
    # one rounding of float64 for each of about 100 operations
    norm = float(torch.linalg.vector_norm(b.double() @ a.double()))
    assert norm <= norm_bound(b, a) * (1 + 1e-13)
    column, row = b[:, :1], a[:1]
    assert norm_bound(column, row) == pytest.approx(
        float(torch.linalg.vector_norm(column.double() @ row.double())), rel=1e-13
    )
    largest = torch.full((6, 6), torch.finfo(torch.float32).max)
    assert norm_bound(largest, largest) == pytest.approx((6 * 3.4028235e38) ** 2, rel=1e-6)
