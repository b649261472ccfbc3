"""The laws for theta, against published values and their definitions."""

from __future__ import annotations

import math

import pytest

from regraft.errors import InputError
from regraft.rope import longest_wavelength, men_bound, ntk, scaling_law, theta_report


def test_the_scaling_law_gives_gradients_published_thetas() -> None:
    assert round(scaling_law(500000, 8192, 262144)) == 283461213
    assert round(scaling_law(500000, 8192, 1048576)) == 3580165449


def test_ntk_stretches_the_longest_wavelength_by_the_ratio() -> None:
    stretched = longest_wavelength(ntk(500000, 8192, 65536, 128), 128)
    assert stretched == pytest.approx(8 * longest_wavelength(500000, 128), rel=1e-12)


def test_the_scaling_law_keeps_the_critical_dimension() -> None:
    theta = scaling_law(500000, 8192, 65536)
    share = [math.log(n / (2 * math.pi)) / math.log(t) for n, t in [(8192, 5e5), (65536, theta)]]
    assert share[0] == pytest.approx(share[1], rel=1e-12)


def test_the_bound_follows_mens_fit() -> None:
    assert men_bound(1000) == pytest.approx(0.0424 * 10 ** (3 * 1.628), rel=1e-12)
    assert round(men_bound(1048576), -6) == 268_000_000


def test_the_report_warns_below_the_bound() -> None:
    report = theta_report(8192, 1048576, 500000)
    assert report.laws["scaling"].theta == 3580165449
    assert report.laws["ntk"].below_bound
    assert not report.laws["scaling"].below_bound
    assert not report.laws["bound"].below_bound
    assert report.base_wavelength == round(longest_wavelength(500000, 128))
    (warning,) = report.warnings
    assert "ntk" in warning
    assert "1M" in warning
    assert theta_report(8192, 16384, 500000).warnings == []


@pytest.mark.parametrize(("theta", "trained", "target"), [(1, 8192, 9000), (1e4, 2, 9000)])
def test_laws_refuse_numbers_they_do_not_hold_for(theta: float, trained: int, target: int) -> None:
    with pytest.raises(InputError):
        scaling_law(theta, trained, target)
    with pytest.raises(InputError):
        ntk(theta, trained, target, 128)
